"""A rule as one standalone NumPy file: constants, ``init``, and a pure ``update``."""

from interchange.emit.source import (
    branches,
    constant,
    copied_source,
    header,
    pointwise_operators,
    sight,
    steps,
    tensor_operators,
)
from interchange.language.equation import Equation
from interchange.language.execute import Instruction
from interchange.language.operators import TENSOR

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

_FILE = '''"""An optimizer that is one equation, in NumPy.

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""
{imports}
import numpy as np

{header}


{functions}def init(theta{parameter}):
    """Zero state for one parameter array; float32 at least{told}."""
    dtype = np.result_type(theta, np.float32)
{axes}    return {{"t": 0, "slots": tuple({zeros})}}


def update(g, state, theta, constants=CONSTANTS{parameter}):
    """One step from the gradient ``g``: the update u, before any learning rate, and the new state{told}."""
    dtype = np.result_type(theta, np.float32)
    t = state["t"] + 1
    slots = state["slots"]
{axes}    with np.errstate(all="ignore"):
{body}
        u = np.broadcast_to(dtype.type(SCALE) * results[0], np.shape(theta))
    pairs = zip(results[1:], slots)
    return u, {{"t": t, "slots": tuple(np.array(np.broadcast_to(x, old.shape), dtype) for x, old in pairs)}}
'''


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    seen = sight(rule, programs := branches(rule), "(0,)")
    needed = dict.fromkeys(op for p in programs for op in pointwise_operators(p, (*_INFIX, "neg")))
    sources = [
        copied_source(f"interchange.language.{module}", [f"op_{op}" for op in ops])
        for module, ops in (("operators", needed), ("matrix", tensor_operators(programs)))
        if ops
    ]
    functions = "".join(text + "\n\n\n" for text in sources) + seen.functions
    code = steps(programs, _write, " " * 8)
    slots = len(programs[0].writes)
    shapes = f"np.zeros({'shape' if seen.axes else 'np.shape(theta)'}, dtype)"
    places = "shape in slot_shapes(np.shape(theta), axes)" if seen.axes else f"_ in range({slots})"
    return _FILE.format(
        imports="\nimport math\n" if "math." in functions + code else "",
        header=header(rule),
        functions=functions,
        zeros=f"{shapes} for {places}",
        body=code,
        parameter=seen.parameter,
        axes=seen.axes.replace("theta.shape", "np.shape(theta)"),
        told=seen.told,
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or f"dtype.type({constant(ins.name)})"
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    if ins.op in TENSOR:
        whole = f"np.broadcast_to({args[0]}, np.shape(theta))" if ins.op in ("polar", "orth") else args[0]
        return f"op_{ins.op}({whole}, axes)"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    average = f"dtype.type({decay}) * {slot} + dtype.type(1.0 - {decay}) * {first}"
    if ins.op == "ema" and not decay:
        average = f"{args[1]} * {slot} + {args[2]} * {first}"
    forms = {
        "number": f"dtype.type({ins.value!r})",
        "neg": f"-{first}",
        "read": slot,
        "ema": average,
        "unbias": f"{first} / dtype.type(-math.expm1(t * math.log({decay})))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"{first} if t == 1 else np.maximum({slot}, {first})",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {
    "g": "np.asarray(g, dtype)[()]",
    "theta": "np.asarray(theta, dtype)[()]",
    "t": "dtype.type(t)",
    "rows": "dtype.type(size_of(np.shape(theta), axes[0]))",
    "cols": "dtype.type(size_of(np.shape(theta), axes[1]))",
    "numel": "dtype.type(np.size(theta))",
}
