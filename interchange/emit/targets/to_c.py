"""A rule as one standalone C99 file: a guarded step over arrays of floats or doubles, libm only.

A rule that sees tensors takes one matrix at a time, and room to work in (``c_matrix.USAGE``).
"""

import re

from interchange.emit import c_matrix
from interchange.emit.c_loops import declared, loops, needed
from interchange.emit.c_source import write_step
from interchange.emit.c_tensors import write_function
from interchange.emit.source import branches
from interchange.language.equation import Equation
from interchange.language.expression import to_text

_USAGE = """/* An optimizer that is one equation, in C99; needs the C library only (link with -lm).

       static float m[N], v[N];                 RULE(slots) arrays of zeros
       float *const state[] = {m, v};
       double t = 0;                            steps taken, one number for every array theta
       RULE(step_float)(N, theta, g, state, &t, RULE(constants), lr, 0.0);

   theta <- (1 - lr * weight_decay) * theta + lr * u. A coordinate whose update, new state or new theta is not
   finite is left as it was; the function returns how many were. t stands still where all of them were.
   With -ffast-math, max and min may take their other argument for what is not a number.
   Functions are called rule_step_float and so on: define RULE to give them other names. */
"""

_FILE = """{usage}
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#ifndef RULE
#define RULE(name) rule_##name
#endif
#define NO_CARRY
#define BLOCK 128

const char RULE(name)[] = {name};
const char RULE(expression)[] = {expression};
const int RULE(slots) = {slots};
/* {names} */
const double RULE(constants)[] = {{{constants}}};

{sizes}{float}
{double}"""

_FINITE = """/* By its bits: no option of a compiler makes it true of nan or inf. */
static int finite_{real}({real} x) {{
    uint{bits}_t b;
    memcpy(&b, &x, sizeof b);
    return (b & {exponent}) != {exponent};
}}

"""

_STEP = """size_t RULE(step_real)(size_t size, real *theta, const real *g, real *const *state,
    double *steps, const double *constant, double lr, double weight_decay) {{
    const real scale = (real){scale}, rate = (real)lr, keep = (real)(1.0 - lr * weight_decay);
    const double t = *steps + 1.0;
    const ptrdiff_t n = (ptrdiff_t)size;
    const int first = t == 1.0;
    size_t left = 0;
{slots}{once}    (void)first, (void)constant, (void)state{unread};
{loop}    if (left < size || !size) *steps = t;
    return left;
}}
"""

_LONGEST = 4095  # characters of a string that every C99 compiler takes

# Of both types; {real} stands for the type.
_HELPERS = {
    "sign": "{real} a) {{ return a > 0 ? 1 : a < 0 ? -1 : a == 0 ? 0 : a; }}",
    "max": "{real} a, {real} b) {{ return a > b || a != a ? a : b; }}",
    "min": "{real} a, {real} b) {{ return a < b || a != a ? a : b; }}",
    "sigmoid": "{real} a) {{ {real} tail = exp(-fabs(a)); return (a >= 0 ? 1 : tail) / (1 + tail); }}",
}
_TYPED = ("finite", *_HELPERS, *c_matrix.OPERATORS, "matrix", "vector", "tensor")


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    parts = _matrices(rule) if rule.sees_tensors else _coordinates(rule)
    constants = tuple(rule.constants)
    values = ", ".join(repr(rule.constants[name]) for name in constants)
    return _FILE.format(
        name=_literal(rule.name),
        expression=_literal(to_text(rule.expression)),
        names="the constants, in this order: " + (_comment(constants) or "none"),
        constants=values or "0",
        **parts,
    )


def _coordinates(rule: Equation) -> dict[str, object]:
    """The parts of a file whose step takes one coordinate after the other."""
    program, constants = rule.program(), tuple(rule.constants)
    step = write_step(program, {"g": "g[i]", "theta": "theta[i]"}, constants)
    lines = needed(step.lines, (step.outputs[0], *step.writes))
    finite = "".join(f" && finite_({w})" for w in dict.fromkeys(step.writes))
    final = [
        f"const real u = scale * {step.outputs[0]}, moved = theta[i] * keep + rate * u;",
        f"const int ok = finite_(moved){finite};",
        "theta[i] = ok ? moved : theta[i];",
        *(f"s{slot}[i] = ok ? {w} : s{slot}[i];" for slot, w in enumerate(step.writes)),
        "left += !ok;",
    ]
    loop = loops(lines, (step.outputs[0], *step.writes), final, "    ").replace("long ", "ptrdiff_t ")
    once = declared(step.once, loop, "    ")
    slots = _slots(len(step.writes))
    unread = "" if "g" in program.inputs else ", (void)g"
    text = _STEP.format(scale=repr(rule.scale), slots=slots, once=once, loop=loop, unread=unread)
    return {"usage": _USAGE, "slots": len(step.writes), "sizes": "", **_both(text, once)}


def _matrices(rule: Equation) -> dict[str, object]:
    """The parts of a file whose step takes one matrix, or a vector, as a whole."""
    functions = [write_function(program, tuple(rule.constants)) for program in branches(rule)]
    names = ("matrix", "vector") if len(functions) == 2 else ("tensor",)
    count = max(len(function.slots) for function in functions)
    arguments = "(high, wide, theta, g, state, scratch, steps, constant, lr, weight_decay)"
    calls = [f"{name}_{arguments}" for name in names]
    bodies = "".join(
        c_matrix.FUNCTION.format(
            name=name, scale=repr(rule.scale), slots=_slots(len(function.slots)), text=function.text
        )
        + "\n"
        for name, function in zip(names, functions, strict=True)
    )
    text = bodies + c_matrix.STEP.format(call=_either(calls, "\n        "))
    for name, body in reversed(c_matrix.OPERATORS.items()):
        text = f"{body}\n\n{text}" if f"{name}_(" in text else text
    rows = ["{" + ", ".join([*f.slots, *["0"] * (count - len(f.slots))] or ["0"]) + "}" for f in functions]
    sizes = c_matrix.SIZES.format(
        slots=max(count, 1),
        sizes=", ".join(rows),
        matrix="!matrix" if len(functions) == 2 else "0",
        scratch=_either([function.scratch for function in functions], "\n        "),
    )
    return {"usage": c_matrix.USAGE, "slots": count, "sizes": sizes + "\n", **_both(text, text)}


def _either(texts: list[str], gap: str) -> str:
    """What holds for matrices, and for vectors where that is something else."""
    return texts[0] if len(texts) == 1 else f"matrix{gap}? {texts[0]}{gap}: {texts[1]}"


def _slots(count: int) -> str:
    return "".join(f"    real *const s{slot} = state[{slot}];\n" for slot in range(count))


def _both(text: str, once: str) -> dict[str, str]:
    """The step in both types; declarations of ``once`` use helpers of doubles."""
    of_double = "double" if re.search(r"_double\(", once) else ""
    return {"float": _typed("float", text, once, of_double), "double": _typed("double", text, once, "")}


def _typed(real: str, text: str, once: str, also: str) -> str:
    """The step in one type; ``also``: another type's helpers too, which its declarations use."""
    text = re.sub(r"(\b|_)real\b", rf"\1{real}", text)
    text = re.sub(r"\b(exp|tanh|log|pow)_\(", r"\1(", text)
    text = re.sub(rf"\b({'|'.join(_TYPED)})_\(", rf"\1_{real}(", text)
    helpers = "".join(
        f"static {kind} {name}_{kind}({body.format(real=kind)}\n\n"
        for kind in dict.fromkeys(filter(None, (also, real)))
        for name, body in _HELPERS.items()
        if f"{name}_{kind}(" in text and not (kind == real == "double" and f"{name}_double(" in once)
    )
    finite = _FINITE.format(
        real=real,
        bits=32 if real == "float" else 64,
        exponent="UINT32_C(0x7f800000)" if real == "float" else "UINT64_C(0x7ff0000000000000)",
    )
    return finite + helpers + text


def _literal(text: str) -> str:
    """The value of a C array of these characters: a string, or numbers where it is too long for one.

    What is not plain is an octal byte (``??`` may begin a trigraph).
    """
    if len(text) > _LONGEST and text.isascii():
        numbers = [", ".join(map(str, text[k : k + 20].encode())) for k in range(0, len(text), 20)]
        return "{\n    " + ",\n    ".join([*numbers, "0"]) + "}"
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'


def _comment(names: tuple[str, ...]) -> str:
    """Names as text that cannot end a comment."""
    return ", ".join(name if name.isascii() and name.isidentifier() else _literal(name) for name in names)
