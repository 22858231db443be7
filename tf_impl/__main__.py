"""``python -m tf_impl``: the commands of this package."""

import sys

from common.run.doors import door

if __name__ == "__main__":
    sys.exit(door("tf_impl"))
