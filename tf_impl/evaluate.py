"""Fair comparison: ``python -m tf_impl.evaluate --problem mnist-mlp --optimizers all rule:best.json``."""

import sys

from interchange.commands import bind
from interchange.commands import evaluate as shared

evaluate, main = bind(shared, "tf_impl")

if __name__ == "__main__":
    sys.exit(main())
