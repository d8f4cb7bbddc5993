"""`python -m distgan` is the command `distgan`."""

import sys

from distgan.cli import main

if __name__ == "__main__":
    sys.exit(main())
