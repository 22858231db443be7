"""``python -m interchange.distill``."""

import sys

from interchange.distill.run import main

if __name__ == "__main__":
    sys.exit(main())
