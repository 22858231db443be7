"""Fair comparison: ``python -m torch_impl.evaluate --problem mnist-mlp --optimizers all rule:best.json``."""

import sys

from interchange.commands import bind
from interchange.commands import evaluate as shared

evaluate, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
