"""A rule as one standalone NumPy file: constants, ``init``, and a pure ``update``."""

from interchange.emit.source import body, constant, copied_source, header, pointwise_operators
from interchange.language.equation import Equation
from interchange.language.execute import Instruction

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

_FILE = '''"""An optimizer that is one equation, in NumPy.

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""
{imports}
import numpy as np

{header}


{functions}def init(theta):
    """Zero state for one parameter array; float32 at least."""
    dtype = np.result_type(theta, np.float32)
    return {{"t": 0, "slots": tuple(np.zeros(np.shape(theta), dtype) for _ in range({slots}))}}


def update(g, state, theta, constants=CONSTANTS):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state."""
    dtype = np.result_type(theta, np.float32)
    t = state["t"] + 1
    slots = state["slots"]
    with np.errstate(all="ignore"):
{body}
        u = np.broadcast_to(dtype.type(SCALE) * {output}, np.shape(theta))
    slots = tuple(np.array(np.broadcast_to(x, np.shape(theta)), dtype) for x in [{writes}])
    return u, {{"t": t, "slots": slots}}
'''


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    program = rule.program()
    needed = pointwise_operators(program, (*_INFIX, "neg"))
    functions = copied_source("interchange.language.operators", [f"op_{op}" for op in needed])
    code = body(program, _write, " " * 8)
    return _FILE.format(
        imports="\nimport math\n" if "math." in functions + code.lines else "",
        header=header(rule),
        functions=functions + "\n\n\n" if functions else "",
        slots=len(program.writes),
        body=code.lines,
        output=code.texts[program.outputs[0]],
        writes=", ".join(code.texts[register] for register in program.writes),
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or f"dtype.type({constant(ins.name)})"
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    forms = {
        "number": f"dtype.type({ins.value!r})",
        "neg": f"-{first}",
        "read": slot,
        "ema": f"dtype.type({decay}) * {slot} + dtype.type(1.0 - {decay}) * {first}",
        "unbias": f"{first} / dtype.type(-math.expm1(t * math.log({decay})))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"{first} if t == 1 else np.maximum({slot}, {first})",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {"g": "np.asarray(g, dtype)[()]", "theta": "np.asarray(theta, dtype)[()]", "t": "dtype.type(t)"}
