"""Meta-train a teacher: ``python -m torch_impl.train --teacher rnnprop --problem mnist-mlp --out DIR``."""

import sys

from interchange.commands import bind
from interchange.commands import train as shared

train, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
