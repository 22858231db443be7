"""Plain training with any optimizer: ``python -m torch_impl.optimize adam:lr=0.001 --problem mnist-mlp``."""

import sys

from interchange.commands import bind
from interchange.commands import optimize as shared

optimize, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
