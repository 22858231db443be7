"""A rule as one standalone JAX file: constants, ``init``, pure ``update``, an optax transformation."""

from interchange.emit.source import body, constant, copied_source, header, pointwise_operators
from interchange.program import Instruction
from interchange.rule import Rule

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

import jax
import jax.numpy as jnp
import optax

{header}
READS_THETA = {reads_theta}


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

    A step whose u is not finite leaves that array and its state as they were and is counted in the state's
    "skipped"; see ``look``. Extra arguments of ``update`` are ignored.

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
        t, skipped = (jax.tree.map(lambda theta: jnp.zeros((), jnp.int32), params) for _ in range(2))
        slots = [jax.tree.map(lambda theta, k=k: init(theta)["slots"][k], params) for k in range({slots})]
        return {{"count": jnp.zeros((), jnp.int32), "t": t, "skipped": skipped, "slots": tuple(slots)}}

    def update_fn(grads, state, params=None, **extra_args):
        del extra_args
        if params is None and (READS_THETA or decays):
            raise ValueError("expected params, which this rule or weight_decay reads, got None")
        lr = learning_rate(state["count"]) if callable(learning_rate) else learning_rate
        leaves, tree = jax.tree.flatten(grads, is_leaf=lambda g: g is None)
        thetas = [None] * len(leaves) if params is None else tree.flatten_up_to(params)
        kept = [tree.flatten_up_to(part) for part in (state["t"], state["skipped"], *state["slots"])]
        rows = [one_array(lr, *row) for row in zip(leaves, thetas, *kept)]
        updates, t, skipped, *slots = (
            jax.tree.unflatten(tree, [row[i] for row in rows]) for i in range(len(kept) + 1)
        )
        new = {{"count": state["count"] + 1, "t": t, "skipped": skipped, "slots": tuple(slots)}}
        return updates, new

    def one_array(lr, g, theta, t, skipped, *slots):
        if g is None:
            return g, t, skipped, *slots
        if not jnp.issubdtype(g.dtype, jnp.floating):
            raise TypeError(f"expected real floating-point gradients, got {{g.dtype}}")
        u, state = update(g, {{"t": t, "slots": slots}}, theta, values)
        ok = jnp.isfinite(u).all()
        change = u - weight_decay * jnp.asarray(theta).astype(u.dtype) if decays else u
        change = jnp.where(ok, (lr * change).astype(g.dtype), 0)
        news = (jnp.where(ok, new, old) for new, old in zip(state["slots"], slots))
        return change, jnp.where(ok, state["t"], t), jnp.where(ok, 0, skipped + 1), *news

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def look(state):
    """Raise ``RuntimeError`` if the last ten updates of an array were not finite; call it outside ``jit``."""
    if any(int(skipped) >= 10 for skipped in jax.tree.leaves(state["skipped"])):
        raise RuntimeError("ten updates in a row were not finite; lower learning_rate or check the gradients")


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


def emit(rule: Rule) -> str:
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
