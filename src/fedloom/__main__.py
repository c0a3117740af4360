"""`python -m fedloom` is the command line."""

from fedloom.cli.main import entry

if __name__ == "__main__":
    entry()
