"""Derivatives of random rules that see tensors, by every constant and along a direction of g."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module

import numpy as np

from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.language.execute import evaluate_with_tangents
from interchange.language.view import View, canonical
from interchange.rule.rule import Rule
from tests.parity import rule_gradients
from tests.parity.rule_gradients import Gradient
from tests.parity.rule_oracle import KINKS, Disturbed
from tests.parity.rule_runners import load
from tests.parity.tensors import tensor_rules

BAR = 1e-9  # of the sum of the sizes of all terms
# A derivative by what polar leaves out, such as the size of a matrix, is nothing but rounding.
LEAST = 1e-3  # of the sum of the sizes of the update


@dataclass(frozen=True)
class Case(rule_gradients.Case):
    """As for rules of coordinates: ``rule`` has g + eps * h for g, and ``inputs`` are g, theta and h.

    Attributes:
        of: the rule that was drawn.
        size: per constant the sum of the sizes of all terms, at least ``LEAST`` of that of the update's.
    """

    of: Rule
    view: View
    size: Gradient


@lru_cache(256)
def case(index: int, shape: tuple[int, ...]) -> Case | None:
    """The steps before anything is infinite or turns at a kink; None where that is the first."""
    rule, view = tensor_rules.rule_of(index), canonical(shape)
    g, theta = tensor_rules.inputs(shape, index, np.float64)
    shift = ex.call("add", ex.name("g"), ex.call("mul", ex.name("eps"), ex.name("h")))
    tree = ex.branch(ex.substitute(rule.inlined(), {"g": shift}), view.matrix)
    moved = Rule(rule.name, tree, {**rule.constants, "eps": 0.0}, {"h": None}, rule.scale)
    program = compile_program([tree], tuple(moved.constants))
    rng = np.random.default_rng(index)
    raw = {"g": g, "theta": theta, "h": rng.normal(size=g.shape)}
    wrt = [name for name in moved.constants if name in program.inputs]
    lanes = (len(g), Disturbed.lanes, g.shape[1])
    run = Disturbed(
        program,
        {**moved.constants, **{name: np.broadcast_to(a[:, None], lanes) for name, a in raw.items()}},
        g.dtype,
        index,
        view,
    )
    run.run(KINKS, wrt)
    bad = run.tainted[program.outputs[0]] | run.spilled[program.outputs[0]]
    with np.errstate(all="ignore"):
        for value, tangents in zip(run.values, run.tangents, strict=True):
            for array in (value, *tangents.values()):
                bad = bad | ~(np.abs(np.broadcast_to(array, lanes)) < 1e100).all(axis=1)
    stop = int(np.argmax(np.append(bad.any(axis=1), True)))
    if not stop:
        return None
    raw = {name: a[:stop] for name, a in raw.items()}
    weight = rng.normal(size=raw["g"].shape)
    own = {name: np.reshape(a, (stop, *view.shape)) for name, a in raw.items()}
    u, tangents = evaluate_with_tangents(program, {**moved.constants, **own}, wrt, view)
    want, unit, size = {}, {}, {}
    for k, name in enumerate(wrt):
        exact = moved.scale * weight * np.reshape(tangents[k], weight.shape)
        others = np.broadcast_to(run.tangents[program.outputs[0]].get(k, 0.0), lanes)[:stop, : Disturbed.near]
        sums = (moved.scale * weight[:, None] * others).sum(axis=(0, 2))
        least = LEAST * np.abs(moved.scale * weight * np.reshape(u, weight.shape)).sum()
        want[name], size[name] = exact.sum(), max(np.abs(exact).sum(), least)
        unit[name] = np.abs(sums - sums[0]).max()
    return Case(moved, program, raw, weight, want, unit, stop, rule, view, size)


def errors(got: Gradient, given: Case) -> float:
    """The largest error over the size of what was summed, of those that the oracle is sure of."""
    worst = 0.0
    for name, want in given.want.items():
        if 8.0 * given.unit[name] <= BAR * given.size[name]:
            error = np.abs(np.asarray(got[name]) - want) / max(given.size[name], 1e-300)
            worst = max(worst, float(np.where(np.isnan(error), np.inf, error)))
    return worst


def lowered(package: str, given: Case) -> Gradient:
    reshape = import_module({"tf": "tensorflow"}.get(package, package)).reshape
    made = import_module(f"{package}_impl.networks.lowering").Lowered(given.program)
    view = given.view

    def step(now, state, t, constants):
        arrays = {name: reshape(a, view.shape) for name, a in now.items()}
        (u,), state = made.step({**arrays, **constants}, state, t, view)
        return given.rule.scale * reshape(u + 0.0 * arrays["g"], (-1,)), state

    def start(like):
        return made.initial_state(reshape(like, view.shape), view)

    return rule_gradients.WEIGHTED[package](given, start, step)


def file(package: str, given: Case) -> Gradient:
    target = {"tf": "tensorflow"}.get(package, package)
    reshape, module, view = import_module(target).reshape, load(given.of, target), given.view

    def step(now, state, t, constants):
        g, theta = (reshape(a, view.shape) for a in (now["g"] + constants["eps"] * now["h"], now["theta"]))
        own = {name: constants[name] for name in given.of.constants}
        u, state = module.update(g, state, theta, own, rows=view.rows)
        return reshape(u + 0.0 * g, (-1,)), state

    def start(like):
        return module.init(reshape(like, view.shape), rows=view.rows)

    return rule_gradients.WEIGHTED[package](given, start, step)


def optax_file(given: Case) -> Gradient:
    import jax
    import jax.numpy as jnp

    module, rows = load(given.of, "optax"), given.view.rows
    g, theta, h, weight = (
        a.reshape(-1, *given.view.shape) for a in (*map(given.inputs.get, ("g", "theta", "h")), given.weight)
    )

    def total(leaves):
        constants = {name: leaves[name] for name in given.of.constants}

        def step(state, now):
            g, theta, h, weight = now
            u, state = module.update(g + leaves["eps"] * h, state, theta, constants, rows=rows)
            return state, (weight * u).sum()

        return jax.lax.scan(step, module.init(theta[0], rows=rows), (g, theta, h, weight))[1].sum()

    with jax.enable_x64(True):
        leaves = {name: jnp.asarray(value) for name, value in given.rule.constants.items()}
        grads = jax.jit(jax.grad(total))(leaves)
        return {name: np.array(grads[name]) for name in given.want}


@dataclass(frozen=True)
class Row:
    """One way to a gradient; ``every`` so manieth rule is taken."""

    run: Callable[[Case], Gradient]
    needs: str
    every: int = 1


ROWS = {
    "torch lowered": Row(partial(lowered, "torch"), "torch"),
    "tensorflow lowered": Row(partial(lowered, "tf"), "tensorflow", 2),
    "torch file": Row(partial(file, "torch"), "torch", 2),
    "tensorflow file": Row(partial(file, "tf"), "tensorflow", 4),
    "optax file": Row(optax_file, "optax", 4),
}
