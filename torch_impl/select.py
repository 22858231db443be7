"""Choose from a front by rolling its rules out: ``python -m torch_impl.select FRONT --problem mnist-mlp``."""

import sys

from interchange.commands import bind
from interchange.commands import select as shared

select, main = bind(shared, "torch_impl")

if __name__ == "__main__":
    sys.exit(main())
