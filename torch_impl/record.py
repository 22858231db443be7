"""Record trajectories: ``python -m torch_impl.record runs/rp --out runs/rp/trajectories.h5``."""

import sys

from interchange.commands import bind
from interchange.commands import record as shared

record, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
