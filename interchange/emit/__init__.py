"""Rules as text and as files: one module per target, each with ``emit(rule) -> str`` or ``bytes``.

Adding a target is one module and one row; modules are imported when used.
"""

import dataclasses
import importlib
from typing import TYPE_CHECKING

from common.errors import L2OError
from common.registry import Registry
from interchange.language.equation import Equation

if TYPE_CHECKING:
    from interchange.files.weights import Teacher


@dataclasses.dataclass(frozen=True)
class Target:
    """One row: what the file is called and which module of this package writes it.

    Attributes:
        teachers: the module that writes a trained teacher; "" for none.
    """

    suffix: str
    module: str
    note: str
    teachers: str = ""

    def emit(self, source: "Equation | Teacher", **options: bool) -> str | bytes:
        """The content of the exported file: text, or bytes where the format is binary.

        Args:
            options: of the target's own ``emit``; only ``onnx`` has some.
        """
        module = self.module if isinstance(source, Equation) else self.teachers
        if source.step_sizes:
            raise L2OError(
                "expected one learning rate for all tensors, got step sizes by tensor, whose names no "
                "exported form knows; export the rule or teacher from before tune --per-tensor"
            )
        if not module:
            known = ", ".join(name for name, row in TARGETS.items() if row.teachers)
            name = next(name for name, row in TARGETS.items() if row is self)
            raise L2OError(f"a teacher has no form as {name}; export it to {known}, or distill a rule first")
        return importlib.import_module(f"{__name__}.{module}").emit(source, **options)


TARGETS: Registry[Target] = Registry(
    "target",
    {
        "sympy": Target(
            ".txt", "targets.to_sympy", "an expression SymPy and interchange.language.parse read"
        ),
        "latex": Target(".tex", "targets.to_latex", "the update equation, constants rounded for print"),
        "mathml": Target(
            ".html", "targets.to_mathml", "the same as Presentation MathML, to put into a web page"
        ),
        "c": Target(".c", "targets.to_c", "a standalone step in C99, float and double, with the guard"),
        "numpy": Target(".py", "targets.to_numpy", "a standalone optimizer in NumPy"),
        "torch": Target(".py", "targets.to_torch", "a standalone torch.optim.Optimizer"),
        "tensorflow": Target(".py", "targets.to_tensorflow", "a standalone keras.optimizers.Optimizer"),
        "optax": Target(
            ".py", "targets.to_optax", "a standalone optax.GradientTransformationExtraArgs in JAX"
        ),
        "onnx": Target(".onnx", "onnx.rule", "one step, float32 or double; a teacher's too", "onnx.teacher"),
    },
)
