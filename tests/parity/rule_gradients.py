"""Derivatives of random rules, by every constant and by a shift of every input: frameworks and oracle."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import numpy as np

from interchange.language.compiler import Program, compile_program
from interchange.rule.rule import Rule
from tests.parity.rule_oracle import KINKS, Disturbed
from tests.parity.rule_runners import load

Array = np.ndarray
Gradient = dict[str, Array]  # a constant: 0-dim; an input: [N]


@dataclass(frozen=True)
class Case:
    """A weighted sum of updates to differentiate, float64.

    Attributes:
        features: inputs are the expression's features as data; else the raw g and theta.
        inputs: name -> [T, N].
        weight: [T, N]; 0 in columns that are not compared.
        want, unit: the oracle's derivatives and how far they move where every node errs by 2 ulp.
        kept: columns that are compared, of N.
    """

    rule: Rule
    program: Program
    inputs: dict[str, Array]
    weight: Array
    want: Gradient
    unit: Gradient
    kept: int


def case(rule: Rule, g: Array, theta: Array, features: bool, seed: int) -> Case | None:
    """None where no column has finite derivatives on the same side of every kink in all lanes."""
    raw = {"g": g, "theta": theta}
    program = compile_program([rule.expression]) if features else rule.program()
    names = [name for name in program.inputs if name != "t" and name not in rule.constants]
    inputs = {name: raw[name] if name in raw else _feature(rule, name, raw) for name in names}
    wrt = [*(name for name in rule.constants if name in program.inputs), *names]
    shape = (len(g), Disturbed.lanes, g.shape[1])
    lanes = {name: np.broadcast_to(a[:, None], shape) for name, a in {**raw, **inputs}.items()}
    run = Disturbed(program, {**rule.constants, **lanes}, g.dtype, seed)
    run.run(KINKS, wrt)
    source = program.outputs[0]
    fine = ~(run.tainted[source] | run.spilled[source]).any(axis=0)
    with np.errstate(all="ignore"):
        for value, tangents in zip(run.values, run.tangents, strict=True):
            for array in (value, *tangents.values()):
                fine &= np.isfinite(np.broadcast_to(array, shape)).all(axis=(0, 1))
                fine &= (np.abs(np.broadcast_to(array, shape)) < 1e150).all(axis=(0, 1))
    if not fine.any():
        return None
    by = {n: np.broadcast_to(run.tangents[source].get(k, 0.0), shape) for k, n in enumerate(wrt)}
    largest = np.max([np.abs(tangent).max(axis=(0, 1)) for tangent in by.values()], axis=0)
    size = np.where(fine & (largest > 1e-100), largest, 1.0)
    weight = np.random.default_rng(seed).normal(size=g.shape) * fine / size
    want, unit = {}, {}
    for name, tangent in by.items():
        terms = rule.scale * weight[:, None] * np.where(fine, tangent, 0.0)
        total = terms.sum(axis=0)
        error = np.abs(total - total[0])[: Disturbed.near].max(axis=0)
        error += 4e-16 * np.abs(terms[:, 0]).sum(axis=0)
        # An input x is shifted as x - d, which leaves -0.0 alone.
        want[name] = total[0].sum() if name in rule.constants else -total[0]
        unit[name] = error.sum() if name in rule.constants else error
    columns = np.where(fine, np.arange(len(fine)), np.flatnonzero(fine)[0])
    inputs = {name: a[:, columns] for name, a in {**raw, **inputs}.items()}
    return Case(rule, program, inputs, weight, want, unit, int(fine.sum()))


def _feature(rule: Rule, name: str, raw: Mapping[str, Array]) -> Array:
    return Rule(name, rule.features[name]).evaluate(raw)


def errors(got: Gradient, given: Case, inputs: bool = True) -> float:
    """The largest error in units; inf where one is not finite. Without ``inputs``: by constants only."""
    worst = 0.0
    for name, want in given.want.items():
        if not inputs and name not in given.rule.constants:
            continue
        difference = np.abs(np.asarray(got[name]) - want)
        error = np.where(difference == 0.0, 0.0, difference / np.maximum(given.unit[name], 1e-300))
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max()))
    return worst


def _torch(given: Case, start: Callable, step: Callable) -> Gradient:
    import torch

    data = {name: torch.from_numpy(a) for name, a in given.inputs.items()}
    leaves = {name: torch.tensor(v, dtype=torch.float64) for name, v in given.rule.constants.items()}
    shifts = {name: torch.zeros(a.shape[1], dtype=torch.float64) for name, a in data.items()}
    for leaf in (*leaves.values(), *shifts.values()):
        leaf.requires_grad_()
    state, total = start(data["theta"][0]), 0.0
    for t, weight in enumerate(torch.from_numpy(given.weight)):
        u, state = step({name: a[t] - shifts[name] for name, a in data.items()}, state, t + 1, leaves)
        total = total + (weight * u).sum()
    by = [{**leaves, **shifts}[name] for name in given.want]
    grads = [None] * len(by)
    if total.requires_grad:
        grads = torch.autograd.grad(total, by, allow_unused=True)
    return {
        name: np.zeros(leaf.shape) if grad is None else grad.numpy()
        for name, leaf, grad in zip(given.want, by, grads, strict=True)
    }


def _tensorflow(given: Case, start: Callable, step: Callable) -> Gradient:
    import tensorflow as tf

    data = {name: tf.constant(a) for name, a in given.inputs.items()}
    leaves = {name: tf.constant(v, tf.float64) for name, v in given.rule.constants.items()}
    shifts = {name: tf.zeros(a.shape[1:], tf.float64) for name, a in data.items()}
    with tf.GradientTape() as tape:
        tape.watch([leaves, shifts])
        state, total = start(data["theta"][0]), 0.0
        for t, weight in enumerate(given.weight):
            u, state = step({name: a[t] - shifts[name] for name, a in data.items()}, state, t + 1, leaves)
            total += tf.reduce_sum(weight * u)
    by = [{**leaves, **shifts}[name] for name in given.want]
    grads = tape.gradient(total, by, unconnected_gradients="zero")
    return {name: grad.numpy() for name, grad in zip(given.want, grads, strict=True)}


WEIGHTED = {"torch": _torch, "tf": _tensorflow}  # a sum of updates, differentiated


def lowered(package: str, given: Case) -> Gradient:
    made = import_module(f"{package}_impl.networks.lowering").Lowered(given.program)

    def step(now, state, t, constants):
        (u,), state = made.step({**now, **constants}, state, t)
        return given.rule.scale * (u if package == "tf" else import_module("torch").as_tensor(u)), state

    return WEIGHTED[package](given, made.initial_state, step)


def file(package: str, given: Case) -> Gradient:
    module = load(given.rule, {"tf": "tensorflow"}.get(package, package))

    def step(now, state, t, constants):
        return module.update(now["g"], state, now["theta"], constants)

    return WEIGHTED[package](given, module.init, step)


def optax_file(given: Case) -> Gradient:
    import jax
    import jax.numpy as jnp

    module = load(given.rule, "optax")
    g, theta = given.inputs["g"], given.inputs["theta"]

    def total(leaves):
        def step(state, now):
            g, theta, weight = now
            shifted = g - leaves["g"], theta - leaves["theta"]
            u, state = module.update(
                shifted[0], state, shifted[1], {n: leaves[n] for n in given.rule.constants}
            )
            return state, (weight * u).sum()

        return jax.lax.scan(step, module.init(theta[0]), (g, theta, given.weight))[1].sum()

    with jax.enable_x64(True):
        zeros = dict.fromkeys(("g", "theta"), jnp.zeros(g.shape[1]))
        leaves = {**{name: jnp.asarray(v) for name, v in given.rule.constants.items()}, **zeros}
        grads = jax.jit(jax.grad(total))(leaves)
        return {name: np.array(grads[name]) for name in given.want}


def vjp(package: str, given: Case) -> Gradient:
    """Compiled code in forward mode; by constants only."""
    framework = import_module({"tf": "tensorflow"}.get(package, package))
    as_tensor = framework.constant if package == "tf" else framework.from_numpy
    names = [name for name in given.inputs if name in given.program.inputs]
    x = np.stack([given.inputs[name] for name in names], axis=1)
    state = [as_tensor(np.zeros(x.shape[2], x.dtype)) for _ in given.program.writes]
    compiled = import_module(f"{package}_impl.networks.compiled").Compiled(given.program, names)
    found = compiled.vjp(as_tensor(x), as_tensor(given.weight), state, given.rule.constants, 0)
    return {name: np.float64(given.rule.scale * value) for name, value in found.items()}


@dataclass(frozen=True)
class Row:
    """One way to a gradient.

    Attributes:
        features: of the expression over its features as data, not of the whole rule over g.
        every: `make test` takes every so manieth rule.
        compiled: it needs a C compiler, and gives derivatives by constants only.
    """

    run: Callable[[Case], Gradient]
    features: bool = False
    every: int = 1
    compiled: bool = False


ROWS: dict[str, Row] = {
    "torch lowered": Row(partial(lowered, "torch"), features=True),
    "torch file": Row(partial(file, "torch"), every=2),
    "tensorflow lowered": Row(partial(lowered, "tf"), features=True, every=2),
    "tensorflow file": Row(partial(file, "tf"), every=5),
    "optax file": Row(optax_file, every=10),
    "torch vjp": Row(partial(vjp, "torch"), compiled=True),
    "tensorflow vjp": Row(partial(vjp, "tf"), every=5, compiled=True),
}
