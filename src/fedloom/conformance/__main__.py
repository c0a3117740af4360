"""`python -m fedloom.conformance` is the command."""

import sys

from fedloom.conformance.command import main

if __name__ == "__main__":
    sys.exit(main())
