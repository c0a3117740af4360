"""Tasks of our own, as YAML of lm-eval's form, and the functions these files name."""
