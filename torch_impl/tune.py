"""Meta-tune a rule's constants: ``python -m torch_impl.tune rules/best.json --problem mnist-conv``."""

import sys

from interchange.commands import bind
from interchange.commands import tune as shared

tune, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
