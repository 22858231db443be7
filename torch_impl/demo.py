"""The main job on embedded data: ``python -m torch_impl.demo``."""

import sys

from interchange.commands import bind
from interchange.commands import demo as shared

demo, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
