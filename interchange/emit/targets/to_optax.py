"""A rule as one standalone JAX file: constants, ``init``, pure ``update``, an optax transformation."""

from interchange.emit.source import body, constant, copied_source, header, pointwise_operators
from interchange.language.equation import Equation
from interchange.language.execute import Instruction

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

_FILE = '''"""An optimizer that is one equation, in JAX and optax.

    optimizer = rule_optimizer(learning_rate=1.0)
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)

or, as pure functions of one array (differentiable, also by ``constants``):

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""

import math
import warnings

import jax
import jax.numpy as jnp
import optax

{header}
READS_THETA = {reads_theta}
TALLIES = ("t", "skipped", "looks")


{functions}def one_minus_power(b, t):
    """1 - b**t without cancellation; the logarithm of a Python number is taken in float64."""
    return -jnp.expm1(t * (math.log(b) if isinstance(b, (int, float)) else jnp.log(b)))


def init(theta):
    """Zero state for one parameter array; float32 at least."""
    dtype = jnp.result_type(theta, jnp.float32)
    slots = tuple(jnp.zeros_like(theta, dtype=dtype) for _ in range({slots}))
    return {{"t": jnp.zeros((), jnp.int32), "slots": slots}}


def update(g, state, theta=None, constants=CONSTANTS):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state.

    Constants are numbers or 0-dim arrays. Of a decay b, 1 - b is exact if it is a Python number; an array in
    float32 holds 0.999 no closer than 1 - b to 5e-5.
    """
    t = state["t"] + 1
    slots = state["slots"]
    dtype = jnp.result_type(g, jnp.float32, *slots)

    def cast(a):
        return jnp.asarray(a).astype(dtype)

{body}
    u = jnp.broadcast_to({output}, jnp.shape(g))
    news = [{writes}]
    slots = tuple(jnp.broadcast_to(x, s.shape).astype(s.dtype) for x, s in zip(news, slots))
    return u, {{"t": t, "slots": slots}}


def rule_optimizer(learning_rate=1.0, weight_decay=0.0, constants=None):
    """theta <- (1 - lr * weight_decay) * theta + lr * u, as an ``optax.GradientTransformationExtraArgs``.

    A coordinate whose change or new state would not be finite is left alone, the others go on; t stays where
    all of an array were. Where ``update`` is given params, params + change have to be finite as well, as far
    as it knows them: what follows in a chain it does not. ``look`` tells how many were. Extra arguments of
    ``update`` are ignored.

    Args:
        learning_rate: a number, or a schedule: function of the number of updates before this one.
        constants: a dict with some of CONSTANTS, or an array of all in their order, which
            ``optax.inject_hyperparams`` takes for a hyperparameter (give it ``hyperparam_dtype=jnp.float32``
            where parameters are bfloat16). Traced values are differentiable.
    """
    values = all_constants(constants)
    decays = not is_number(weight_decay) or weight_decay != 0
    for setting in (learning_rate, weight_decay):
        if is_number(setting) and setting < 0:
            raise ValueError(f"expected learning_rate >= 0 and weight_decay >= 0, got {{setting}}")

    def init_fn(params):
        t, skipped, looks = (jax.tree.map(lambda theta: jnp.zeros((), jnp.int32), params) for _ in range(3))
        slots = [jax.tree.map(lambda theta, k=k: init(theta)["slots"][k], params) for k in range({slots})]
        tallies = {{"t": t, "skipped": skipped, "looks": looks}}
        return {{"count": jnp.zeros((), jnp.int32), **tallies, "slots": tuple(slots)}}

    def update_fn(grads, state, params=None, **extra_args):
        del extra_args
        if params is None and (READS_THETA or decays):
            raise ValueError("expected params, which this rule or weight_decay reads, got None")
        lr = learning_rate(state["count"]) if callable(learning_rate) else learning_rate
        leaves, tree = jax.tree.flatten(grads, is_leaf=lambda g: g is None)
        thetas = [None] * len(leaves) if params is None else tree.flatten_up_to(params)
        kept = [tree.flatten_up_to(part) for part in (*map(state.get, TALLIES), *state["slots"])]
        looking = (state["count"] + 1) % 100 == 0
        rows = [one_array(lr, looking, *row) for row in zip(leaves, thetas, *kept)]
        updates, t, skipped, looks, *slots = (
            jax.tree.unflatten(tree, [row[i] for row in rows]) for i in range(len(kept) + 1)
        )
        tallies = {{"t": t, "skipped": skipped, "looks": looks}}
        return updates, {{"count": state["count"] + 1, **tallies, "slots": tuple(slots)}}

    def one_array(lr, looking, g, theta, t, skipped, looks, *slots):
        if g is None:
            return g, t, skipped, looks, *slots
        if not jnp.issubdtype(g.dtype, jnp.floating):
            raise TypeError(f"expected real floating-point gradients, got {{g.dtype}}")
        u, state = update(g, {{"t": t, "slots": slots}}, theta, values)
        change = u - weight_decay * jnp.asarray(theta).astype(u.dtype) if decays else u
        change = (lr * change).astype(g.dtype)
        ok = fits(change, g.dtype)
        if theta is not None:
            ok &= fits(theta + change, jnp.result_type(theta))
        for slot in state["slots"]:
            ok &= jnp.isfinite(slot)
        left = (ok.size - jnp.count_nonzero(ok)).astype(skipped.dtype)
        whole = (left == ok.size) & (ok.size > 0)
        looks = jnp.where(looking, jnp.where(whole, looks + 1, 0), looks)
        news = (jnp.where(ok, new, old) for new, old in zip(state["slots"], slots))
        return jnp.where(ok, change, 0), jnp.where(whole, t, state["t"]), left, looks, *news

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def look(state):
    """Warn of coordinates left alone in the last step; call it outside ``jit``.

    ``RuntimeError`` if all of an array were at every 100th step ten times in a row.
    """
    looks = jax.tree.leaves(state["looks"])
    for (path, left), whole in zip(jax.tree_util.tree_leaves_with_path(state["skipped"]), looks):
        told = f"{{int(left)}} coordinates of params{{jax.tree_util.keystr(path)}} were left alone, because "
        told += "the step was not finite; lower learning_rate or check the gradients"
        if int(whole) >= 10:
            raise RuntimeError("at ten looks in a row " + told)
        if int(left):
            warnings.warn(told, RuntimeWarning, stacklevel=2)


def fits(x, dtype):
    """Where numbers are finite in a dtype; XLA leaves a cast to a narrower one and back out."""
    info = jnp.finfo(dtype)
    return jnp.isfinite(jax.lax.reduce_precision(x, info.nexp, info.nmant))


def all_constants(given):
    if given is None:
        return CONSTANTS
    if not isinstance(given, dict):
        if jnp.shape(given) != (len(CONSTANTS),):
            raise ValueError(f"expected {{len(CONSTANTS)}} constants, got shape {{jnp.shape(given)}}")
        given = dict(zip(CONSTANTS, given))
    unknown = [name for name in given if name not in CONSTANTS]
    if unknown:
        raise ValueError(f"unknown constants {{unknown}}; known: {{list(CONSTANTS)}}")
    return {{**CONSTANTS, **given}}


def is_number(value):
    return isinstance(value, (int, float))
'''


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    program = rule.program()
    needed = [f"op_{op}" for op in pointwise_operators(program, (*_INFIX, "neg"))]
    if any(ins.op == "cummax" for ins in program.instructions):
        needed.append("op_max")
    functions = copied_source("interchange.emit.jax_operators", needed)
    code = body(program, _write, " " * 4)
    return _FILE.format(
        header=header(rule),
        reads_theta="theta" in program.inputs,
        functions=functions + "\n\n\n" if functions else "",
        slots=len(program.writes),
        body=code.lines,
        output=f"cast(SCALE) * {code.texts[program.outputs[0]]}",
        writes=", ".join(code.texts[register] for register in program.writes),
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or f"cast({constant(ins.name)})"
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    forms = {
        "number": f"cast({ins.value!r})",
        "neg": f"-{first}",
        "read": f"cast({slot})",
        "ema": f"cast({decay}) * {slot} + cast(1.0 - {decay}) * {first}",
        "unbias": f"{first} / cast(one_minus_power({decay}, t))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"jnp.where(t == 1, {first}, op_max({slot}, {first}))",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {"g": "cast(g)", "theta": "cast(theta)", "t": "cast(t)"}
