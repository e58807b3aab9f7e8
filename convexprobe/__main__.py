"""`python -m convexprobe` is the command `convexprobe`."""

import sys

from convexprobe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
