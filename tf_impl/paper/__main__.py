"""The tables and figures of the ICLR 2022 paper: ``python -m tf_impl.paper``."""

import sys

from interchange.commands import bind
from interchange.paper import paper as shared

paper, main = bind(shared, "tf_impl")

if __name__ == "__main__":
    sys.exit(main())
