"""``python -m interchange.analysis``."""

import sys

from interchange.analysis.run import main

if __name__ == "__main__":
    sys.exit(main())
