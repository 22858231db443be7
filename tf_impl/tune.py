"""Meta-tune a rule's constants: ``python -m tf_impl.tune rules/best.json --problem mnist-conv``."""

import sys

from interchange.commands import bind
from interchange.commands import tune as shared

tune, main = bind(shared, "tf_impl")

if __name__ == "__main__":
    sys.exit(main())
