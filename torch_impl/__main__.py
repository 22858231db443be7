"""``python -m torch_impl``: the commands of this package."""

import sys

from common.run.doors import door

if __name__ == "__main__":
    sys.exit(door("torch_impl"))
