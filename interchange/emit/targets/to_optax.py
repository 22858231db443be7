"""A rule as one standalone JAX file: constants, ``init``, pure ``update``, an optax transformation."""

from interchange.emit.source import (
    body,
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


def init(theta{parameter}):
    """Zero state for one parameter array; float32 at least{told}."""
    dtype = jnp.result_type(theta, jnp.float32)
{init_axes}    slots = tuple({zeros})
    return {{"t": jnp.zeros((), jnp.int32), "slots": slots}}


def update(g, state, theta=None, constants=CONSTANTS{parameter}):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state.

    Constants are numbers or 0-dim arrays. Of a decay b, 1 - b is exact if it is a Python number; an array in
    float32 holds 0.999 no closer than 1 - b to 5e-5.{also}
    """
    t = state["t"] + 1
    slots = state["slots"]
    dtype = jnp.result_type(g, jnp.float32, *slots)

    def cast(a):
        return jnp.asarray(a).astype(dtype)

{axes}{body}
{results}
    slots = tuple(jnp.broadcast_to(x, s.shape).astype(s.dtype) for x, s in zip(news, slots))
    return u, {{"t": t, "slots": slots}}


def rule_optimizer(learning_rate=1.0, weight_decay=0.0, constants=None{parameter}):
    """theta <- (1 - lr * weight_decay) * theta + lr * u, as an ``optax.GradientTransformationExtraArgs``.

    A coordinate whose change or new state would not be finite is left alone, the others go on; t stays where
    all of an array were. Where ``update`` is given params, params + change have to be finite as well, as far
    as it knows them: what follows in a chain it does not. ``look`` tells how many were. Extra arguments of
    ``update`` are ignored.

    Args:
        learning_rate: a number, or a schedule: function of the number of updates before this one.
        constants: a dict with some of CONSTANTS, or an array of all in their order, which
            ``optax.inject_hyperparams`` takes for a hyperparameter (give it ``hyperparam_dtype=jnp.float32``
            where parameters are bfloat16). Traced values are differentiable.{option}
    """
    values = all_constants(constants)
    decays = not is_number(weight_decay) or weight_decay != 0
    for setting in (learning_rate, weight_decay):
        if is_number(setting) and setting < 0:
            raise ValueError(f"expected learning_rate >= 0 and weight_decay >= 0, got {{setting}}")

    def init_fn(params):
        t, skipped, looks = (jax.tree.map(lambda theta: jnp.zeros((), jnp.int32), params) for _ in range(3))
{slot_trees}        tallies = {{"t": t, "skipped": skipped, "looks": looks}}
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
{each}        updates, t, skipped, looks, *slots = (
            jax.tree.unflatten(tree, [row[i] for row in rows]) for i in range(len(kept) + 1)
        )
        tallies = {{"t": t, "skipped": skipped, "looks": looks}}
        return updates, {{"count": state["count"] + 1, **tallies, "slots": tuple(slots)}}

{rows_of}    def one_array(lr, looking, {own}g, theta, t, skipped, looks, *slots):
        if g is None:
            return g, t, skipped, looks, *slots
        for name, leaf in (("gradients", g), ("params", g if theta is None else theta)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(f"expected real floating-point {{name}}, got {{jnp.result_type(leaf)}}")
        u, state = update(g, {{"t": t, "slots": slots}}, theta, values{own_given})
        change = u - weight_decay * jnp.asarray(theta).astype(u.dtype) if decays else u
        dtype = u.dtype if theta is None else jnp.result_type(g, theta)
        change = (lr * change).astype(dtype)  # of a narrow gradient the wider dtype of params is kept
        ok = fits(change, dtype)
        if theta is not None:
            ok &= fits(theta + change, jnp.result_type(theta))
        for slot in state["slots"]:
            ok &= jnp.isfinite(slot)
        left = (ok.size - jnp.count_nonzero(ok)).astype(skipped.dtype)
        whole = (left == ok.size) & (ok.size > 0)
        looks = jnp.where(looking, jnp.where(whole, looks + 1, 0), looks)
        news = (jnp.where({kept_ok}, new, old) for new, old in zip(state["slots"], slots))
        return jnp.where(ok, change, 0), jnp.where(whole, t, state["t"]), left, looks, *news{rest}

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


# What a file has in these places, and what it has where its rule sees tensors.
_PLAIN = {
    "results": "    u = jnp.broadcast_to({output}, jnp.shape(g))\n    news = [{writes}]",
    "slot_trees": (
        '        slots = [jax.tree.map(lambda theta, k=k: init(theta)["slots"][k], params) '
        "for k in range({slots})]\n"
    ),
    "each": "        rows = [one_array(lr, looking, *row) for row in zip(leaves, thetas, *kept)]\n",
    **dict.fromkeys(("rows_of", "helpers", "also", "option", "own", "own_given", "rest"), ""),
    "kept_ok": "ok",
}
_SEEING = {
    "results": ("    u = jnp.broadcast_to(cast(SCALE) * results[0], jnp.shape(g))\n    news = results[1:]"),
    "slot_trees": """
        def slot(k):
            def made(path, theta):
                own = init(theta, rows_of(path, theta))["slots"]
                return own[k] if k < len(own) else jnp.zeros(0, jnp.float32)

            return jax.tree_util.tree_map_with_path(made, params)

        slots = [slot(k) for k in range({slots})]
""",
    "each": """        named = jax.tree_util.tree_leaves_with_path(grads, is_leaf=lambda g: g is None)
        paths = [path for path, _ in named]
        rows = [one_array(lr, looking, *row) for row in zip(paths, leaves, thetas, *kept)]
""",
    "helpers": '''def any_of(ok, shape):
    """Where any coordinate of a row, a column or the array moved: ``ok`` in the shape of their state."""
    axes = tuple(k for k, (n, own) in enumerate(zip(ok.shape, shape)) if n != own)
    return jnp.any(ok, axis=axes, keepdims=True) if axes else ok


''',
    "rows_of": """    def rows_of(path, array):
        return None if rows is None else rows(jax.tree_util.keystr(path), array)

""",
    "also": "\n\n    ``rows``: as of ``init``.",
    "option": """
        rows: a function of an array's path, such as "['dense']['kernel']", and of the array: axes that number
            the outputs. () for what is no matrix, as embeddings; None for the last one of two or more.
            ``optax.inject_hyperparams`` has to be told ``static_args="rows"``.""",
    "own": "path, ",
    "own_given": ", rows_of(path, g)",
    "kept_ok": "any_of(ok, old.shape)",
    "rest": ', *slots[len(state["slots"]) :]',
}


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    seen = sight(rule, programs := branches(rule), "(-1,)")
    needed = dict.fromkeys(op for p in programs for op in pointwise_operators(p, (*_INFIX, "neg")))
    operators = [f"op_{op}" for op in (*needed, *tensor_operators(programs))]
    if any(ins.op == "cummax" for program in programs for ins in program.instructions):
        operators.append("op_max")
    functions = copied_source("interchange.emit.jax_operators", operators)
    slots = max(len(program.writes) for program in programs)
    parts = _SEEING if seen.axes else _PLAIN
    if seen.axes:
        zeros = "jnp.zeros(shape, dtype) for shape in slot_shapes(jnp.shape(theta), axes)"
        lines = steps(programs, _write, " " * 4)
        results = parts["results"]
    else:
        zeros = f"jnp.zeros_like(theta, dtype=dtype) for _ in range({slots})"
        code = body(programs[0], _write, " " * 4)
        lines = code.lines
        output, *writes = (code.texts[register] for register in (*programs[0].outputs, *programs[0].writes))
        results = parts["results"].format(output=f"cast(SCALE) * {output}", writes=", ".join(writes))
    return _FILE.format(
        header=header(rule),
        reads_theta=any("theta" in program.inputs for program in programs),
        functions=(functions + "\n\n\n" if functions else "") + seen.functions + parts["helpers"],
        body=lines,
        zeros=zeros,
        parameter=seen.parameter,
        init_axes=seen.axes.replace("theta.shape", "jnp.shape(theta)"),
        axes=seen.axes.replace("theta.shape", "jnp.shape(g)"),
        told=seen.told,
        **{
            **parts,
            "results": results,
            "slot_trees": parts["slot_trees"].replace("{slots}", str(slots)),
        },
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or f"cast({constant(ins.name)})"
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    if ins.op in TENSOR:
        whole = f"jnp.broadcast_to({args[0]}, jnp.shape(g))" if ins.op in ("polar", "orth") else args[0]
        return f"op_{ins.op}({whole}, axes)"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    average = f"cast({decay}) * {slot} + cast(1.0 - {decay}) * {first}"
    if ins.op == "ema" and not decay:
        average = f"{args[1]} * {slot} + {args[2]} * {first}"
    forms = {
        "number": f"cast({ins.value!r})",
        "neg": f"-{first}",
        "read": f"cast({slot})",
        "ema": average,
        "unbias": f"{first} / cast(one_minus_power({decay}, t))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"jnp.where(t == 1, {first}, op_max({slot}, {first}))",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {
    "g": "cast(g)",
    "theta": "cast(theta)",
    "t": "cast(t)",
    "rows": "cast(size_of(jnp.shape(g), axes[0]))",
    "cols": "cast(size_of(jnp.shape(g), axes[1]))",
    "numel": "cast(jnp.size(g))",
}
