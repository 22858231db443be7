"""A rule's program as the C text that ``common.kernels`` compiles, one text for every structure.

Constants are arguments. Four forms: a step of an optimizer in place, with the guard of FORMATS.md section 3
in the same pass over memory; a step from inputs to outputs, for rollouts and input features; the derivatives
of an unroll by constants; those of theta and of the state, carried along step by step.
"""

import dataclasses
import functools
from collections.abc import Sequence

from interchange.emit.c_loops import declared, loops, needed
from interchange.emit.c_source import Step, write_step
from interchange.language.compiler import Program

_COST = 50  # of a library function, in operations
_DEEP = 2**17  # numbers a thread's stack may hold for derivatives


@dataclasses.dataclass(frozen=True)
class Source:
    """C text to compile.

    Attributes:
        slots: arrays of state.
        constants: names in the order in which their values are handed over.
        cost: operations of one coordinate, about.
    """

    text: str
    slots: int
    constants: tuple[str, ...]
    cost: int


@functools.lru_cache(maxsize=256)
def step_source(program: Program) -> Source:
    """theta <- keep * theta + rate * scale * out and the new state, in place, where all are finite."""
    constants = _constants(program, ("g", "theta"))
    step = write_step(program, {"g": "sign * widen(g[i])", "theta": "widen(theta[i])"}, constants)
    finite = "".join(f" & finite_({w})" for w in dict.fromkeys(step.writes))
    final = [
        f"const real u = scale * {step.outputs[0]}, moved = widen(theta[i]) * keep + rate * u;",
        "const stored to = narrow(moved);",
        f"const word ok = off | (finite_(moved) & finite_(widen(to)){finite});",
        "theta[i] = ok ? to : theta[i];",
        *(f"s{slot}[i] = ok ? {w} : s{slot}[i];" for slot, w in enumerate(step.writes)),
        "left += 1 - ok;",
    ]
    head = (
        "static word span(const long n, stored *const theta, const stored *const g,\n"
        "                 real *const *const state,\n"
        "                 const double *const constant, const double t, const settings *const set) {\n"
        "    const real scale = (real)set->scale, rate = (real)set->rate, keep = (real)set->keep;\n"
        "    const real sign = set->maximize ? (real)-1 : (real)1;\n"
        "    const word off = !set->guard;\n"
    )
    head += _arrays(len(step.writes), "real *const s{slot} = state[{slot}];") + "    word left = 0;\n"
    body = _body(step, (step.outputs[0], *step.writes), final, "    ")
    return _source(program, constants, step, head + body + "    return left;\n}\n", "rule_step.h")


@functools.lru_cache(maxsize=256)
def roll_source(program: Program, inputs: tuple[str, ...]) -> Source:
    """Outputs [O, n] and new state from inputs [F, n], rows in the order of ``inputs``."""
    constants = _constants(program, inputs)
    step = write_step(program, {name: f"in{k}[i]" for k, name in enumerate(inputs)}, constants)
    final = [f"out{k}[i] = {text};" for k, text in enumerate(step.outputs)]
    final += [f"a{slot}[i] = {text};" for slot, text in enumerate(step.writes)]
    head = (
        "static void span(const long n, const long in_apart, const long out_apart, const real *const x,\n"
        "                 real *const *const before, real *const *const after, real *const out,\n"
        "                 const double *const constant, const double t) {\n"
    )
    head += _arrays(len(inputs), "const real *const in{slot} = x + {slot} * in_apart;")
    head += _arrays(len(step.outputs), "real *const out{slot} = out + {slot} * out_apart;")
    head += _arrays(len(step.writes), "real *const s{slot} = before[{slot}], *const a{slot} = after[{slot}];")
    body = _body(step, (*step.outputs, *step.writes), final, "    ")
    return _source(program, constants, step, head + body + "}\n", "rule_roll.h")


@functools.lru_cache(maxsize=256)
def vjp_source(program: Program, inputs: tuple[str, ...], wrt: tuple[str, ...]) -> Source:
    """sum_t <c_t, d out_t / d constant> for the constants ``wrt``, from inputs [T, F, n]."""
    constants = _constants(program, inputs)
    rows = {name: f"in{k}[i]" for k, name in enumerate(inputs)}
    step = write_step(program, rows, constants, "s{slot}[i]", wrt, "ds{slot}_{k}[i]")
    of_output, of_state = step.tangents[0], step.tangents[len(step.outputs) :]
    moving = [(slot, k) for slot in range(len(step.writes)) for k in range(len(wrt))]
    moving = [(slot, k) for slot, k in moving if f"ds{slot}_{k}[i]" in {line.text for line in step.lines}]
    wide = max(16, min(256, _DEEP // (len(step.writes) + len(moving) + len(wrt) + 1) // 16 * 16))
    final = [f"sum{k}[i] += c_t[i] * {text};" for k, text in of_output.items()]
    final += [f"s{slot}[i] = {text};" for slot, text in enumerate(step.writes)]
    final += [f"ds{slot}_{k}[i] = {of_state[slot].get(k, '0')};" for slot, k in moving]
    used = [*of_output.values(), *step.writes, *(of_state[slot].get(k, "") for slot, k in moving)]
    head = (
        f"#define WRT {len(wrt)}\n#define WIDE {wide}\n"
        "static void span(const long n, const long steps, const long apart, const real *const x,\n"
        "                 const real *const c, real *const *const start, const double *const constant,\n"
        "                 const double before, double *const found) {\n"
    )
    head += "".join(f"    real sum{k}[WIDE] = {{0}};\n" for k in of_output)
    head += "".join(f"    real ds{slot}_{k}[WIDE] = {{0}};\n" for slot, k in moving)
    for slot in range(len(step.writes)):
        head += f"    real s{slot}[WIDE];\n    memcpy(s{slot}, start[{slot}], (size_t)n * sizeof(real));\n"
    head += "    for (long step = 0; step < steps; step++) {\n"
    head += "        const double t = before + (double)step + 1.0;\n"
    head += "        const real *const c_t = c + step * apart;\n"
    for k in range(len(inputs)):
        head += f"        const real *const in{k} = x + (step * {len(inputs)} + {k}) * apart;\n"
    body = _body(step, used, final, "        ") + "    }\n"
    for k in of_output:
        body += f"    for (long i = 0; i < n; i++) found[{k}] += sum{k}[i];\n"
    return _source(program, constants, step, head + body + "}\n", "rule_vjp.h")


@functools.lru_cache(maxsize=256)
def tangents_source(program: Program, inputs: tuple[str, ...], wrt: tuple[str, ...]) -> Source:
    """E_k <- keep * E_k + rate * d out / d constant k, and the derivatives of state, in place, for ``wrt``.

    After each E_k come the derivatives of the slots that the constant moves (``Program.reach``).
    """
    constants = _constants(program, inputs)
    rows = {name: f"in{k}[i]" for k, name in enumerate(inputs)}
    step = write_step(program, rows, constants, "s{slot}[i]", wrt, "ds{slot}_{k}[i]", "seed[{k}]")
    of_output, of_state = step.tangents[0], step.tangents[len(step.outputs) :]
    slots = program.reach(wrt)[1]
    moved = [(slot, k) for k, name in enumerate(wrt) for slot, names in enumerate(slots) if name in names]
    final = [
        f"e{k}[i] = keep * e{k}[i]" + (f" + rate * {of_output[k]};" if k in of_output else ";")
        for k in range(len(wrt))
    ]
    final += [f"ds{slot}_{k}[i] = {of_state[slot].get(k, '0')};" for slot, k in moved]
    used = [*of_output.values(), *(of_state[slot].get(k, "") for slot, k in moved)]
    head = (
        f"#define MOVED {len(wrt) + len(moved)}\n"
        "static void span(const long n, const long apart, const real *const x, real *const *const state,\n"
        "                 real *const *const moved, const double *const constant, const double *const seed,\n"
        "                 const double t, const real keep, const real rate) {\n"
    )
    head += _arrays(len(inputs), "const real *const in{slot} = x + {slot} * apart;")
    head += _arrays(len(step.writes), "const real *const s{slot} = state[{slot}];")
    names = [n for k in range(len(wrt)) for n in (f"e{k}", *(f"ds{slot}_{k}" for slot, j in moved if j == k))]
    head += "".join(f"    real *const {name} = moved[{number}];\n" for number, name in enumerate(names))
    body = _body(step, used, final, "    ")
    return _source(program, constants, step, f"{head}{body}}}\n", "rule_tangents.h")


def _constants(program: Program, inputs: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in program.inputs if name not in inputs and name != "t")


def _arrays(count: int, text: str) -> str:
    return "".join(f"    {text.format(slot=slot)}\n" for slot in range(count))


def _body(step: Step, used: Sequence[str], final: Sequence[str], indent: str) -> str:
    """The declarations of the step and its loop, without what nothing needs."""
    loop = loops(needed(step.lines, used), used, final, indent)
    fixed = f"{indent}const int first = t == 1.0;\n{indent}(void)first, (void)t, (void)constant;\n"
    return declared(step.once, loop, indent) + fixed + loop


def _source(program: Program, constants: tuple[str, ...], step: Step, text: str, frame: str) -> Source:
    slots = len(program.writes)
    cost = sum(_COST if line.calls else 1 for line in step.lines) + 2 * slots + 4
    text = f'#include "rule.h"\n\n#define SLOTS {slots}\n\n{helpers(text)}{text}\n#include "{frame}"\n'
    return Source(text, slots, constants, cost)


def helpers(text: str) -> str:
    """Functions of doubles that the declarations use."""
    return "".join(f"{body}\n" for name, body in _DOUBLE.items() if f"{name}(" in text)


_DOUBLE = {
    "sign_double": "INLINE double sign_double(double a) { return a > 0 ? 1 : a < 0 ? -1 : a == 0 ? 0 : a; }",
    "max_double": "INLINE double max_double(double a, double b) { return (a > b) | (a != a) ? a : b; }",
    "min_double": "INLINE double min_double(double a, double b) { return (a < b) | (a != a) ? a : b; }",
    "sigmoid_double": "INLINE double sigmoid_double(double a) { return 1 / (1 + exp(-a)); }",
}
