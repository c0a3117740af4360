"""The command line: thin shells over functions. Heavy libraries are imported inside commands, so that help is quick."""
