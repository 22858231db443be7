"""Rules as text and as source files: one module per target, each with ``emit(rule) -> str``.

Adding a target is one module and one row; modules are imported when used.
"""

import dataclasses
import importlib

from common.registry import Registry
from interchange.rule import Rule


@dataclasses.dataclass(frozen=True)
class Target:
    """One row: what the file is called and which module of this package writes it."""

    suffix: str
    module: str
    note: str

    def emit(self, rule: Rule) -> str:
        """The content of the exported file."""
        return importlib.import_module(f"{__name__}.{self.module}").emit(rule)


TARGETS: Registry[Target] = Registry(
    "target",
    {
        "sympy": Target(".txt", "to_sympy", "an expression SymPy and interchange.parse read"),
        "latex": Target(".tex", "to_latex", "the update equation, constants rounded for print"),
        "mathml": Target(".html", "to_mathml", "the same as Presentation MathML, to put into a web page"),
        "numpy": Target(".py", "to_numpy", "a standalone optimizer in NumPy"),
        "torch": Target(".py", "to_torch", "a standalone torch.optim.Optimizer"),
        "tensorflow": Target(".py", "to_tensorflow", "a standalone keras.optimizers.Optimizer"),
    },
)
