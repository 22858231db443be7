"""A rule as one standalone TensorFlow file: constants, ``init``, pure ``update``, a Keras optimizer."""

import dataclasses

from interchange.emit.source import (
    branches,
    constant,
    copied_source,
    header,
    literal,
    pointwise_operators,
    sight,
    steps,
    tensor_operators,
)
from interchange.language.equation import Equation
from interchange.language.execute import Instruction
from interchange.language.operators import TENSOR

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

_FILE = '''"""An optimizer that is one equation, in TensorFlow.

    model.compile(optimizer=RuleOptimizer(learning_rate=1.0), loss=...)

or, as pure functions (differentiable, also by ``constants``; eagerly and inside ``tf.function``):

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""

import warnings

import keras
import tensorflow as tf

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"expected Keras on tensorflow, got {{keras.backend.backend()}}; unset KERAS_BACKEND")

{header}


{functions}def one_minus_power(b, t):
    """1 - b**t in float64, without cancellation for b near 1."""
    return -tf.math.expm1(tf.cast(t, tf.float64) * tf.math.log(tf.cast(as_tensor(b), tf.float64)))


def working_dtype(theta):
    """The dtype of updates and state: the parameter's, float32 at least."""
    dtype = tf.as_dtype(theta.dtype)
    return dtype if dtype.size > 4 else tf.float32


def init(theta{parameter}):
    """Zero state for one parameter tensor; float32 at least{told}."""
{axes}    slots = tuple({zeros})
    return {{"t": tf.zeros([], tf.int64), "slots": slots}}


def update(g, state, theta, constants=CONSTANTS{parameter}):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state.

    Constants are numbers or 0-dim float64 tensors{told}.
    """
    dtype = working_dtype(theta)
    theta = tf.convert_to_tensor(theta)
{axes}    t = state["t"] + 1
    slots = state["slots"]

    def cast(a):
        return tf.cast(as_tensor(a), dtype)

{body}
{spread}    return u, {{"t": t, "slots": tuple(slots)}}


def finite(x):
    return bool(tf.reduce_all(tf.math.is_finite(x)))


{shared}def fits(x, dtype):
    """Where numbers stay finite in a narrower dtype; XLA leaves a cast there and back out."""
    limit = {{"float16": 2.0**16 - 2.0**4, "bfloat16": 2.0**128 - 2.0**119}}.get(tf.as_dtype(dtype).name)
    return tf.math.is_finite(x) if limit is None else tf.abs(x) < limit


@keras.saving.register_keras_serializable(package={package})
class RuleOptimizer(keras.optimizers.Optimizer):
    """theta <- (1 - lr * weight_decay) * theta + lr * u.

    A coordinate whose new value or state would not be finite is left alone, the others go on; t stays where
    all were. ``look()`` tells: a warning, once for every variable, or ``RuntimeError`` where all of it was
    left alone at ten looks in a row. Eager steps call it every 100 steps; inside ``fit`` nothing can, so call
    it from a callback, as ``LambdaCallback(on_epoch_end=lambda epoch, logs: optimizer.look())``.
    Further options are those of every Keras optimizer{told_optimizer}.
    """

    def __init__(self, learning_rate=1.0, weight_decay=None, constants=CONSTANTS{parameter}, **options):
        for value in (learning_rate, weight_decay or 0.0):
            if isinstance(value, (int, float)) and value < 0.0:
                raise ValueError("expected learning_rate >= 0 and weight_decay >= 0, got " + str(value))
        # Keras would decay before the update is computed, and where it is then left out.
        super().__init__(learning_rate, weight_decay=None, **options)
        self.decoupled_decay = weight_decay
        self.constants = dict(constants)
{keeps}        self._eager_steps, self._whole, self._told, self._seen = 0, [], [], {{}}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._stores = [
            [
                self.add_variable((), dtype="int64", name="step_" + str(i)),
                self.add_variable((), dtype="int64", name="skipped_" + str(i)),
                *(
                    self.add_variable(
                        {own_shape}, dtype=working_dtype(theta).name, name="slot_" + str(i) + "_" + str(k)
                    )
                    for {each_slot}
                ),
            ]
            for i, theta in enumerate(variables)
        ]

    def update_step(self, gradient, variable, learning_rate):
        k = self._get_variable_index(variable)
        store = self._stores[k]
        step, skipped, *old = (tf.convert_to_tensor(kept) for kept in store)
        u, state, new = self._compute(gradient, variable, learning_rate, step, old)
        ok = fits(new, variable.dtype)  # so does u, which is in it
        for slot in state["slots"]:
            ok &= tf.math.is_finite(slot)
        left = tf.size(ok, tf.int64) - tf.math.count_nonzero(ok)
        t = tf.where(left < tf.maximum(tf.size(ok, tf.int64), 1), state["t"], step)
        self.assign(variable, tf.where(ok, tf.cast(new, variable.dtype), variable))
        for kept, value in zip(store, [t, left, *({chosen}(ok, *pair) for pair in zip(state["slots"], old))]):
            self.assign(kept, value)
        if tf.executing_eagerly() and (self._eager_steps + 1) % 100 == 0:
            self._seen[k] = gradient, learning_rate

    def _compute(self, gradient, variable, learning_rate, step, slots):
        """The update, the new state and the new value."""
        u, state = update(gradient, {{"t": step, "slots": tuple(slots)}}, variable, self.constants{rows})
        theta, lr = tf.cast(tf.convert_to_tensor(variable), u.dtype), tf.cast(learning_rate, u.dtype)
        if self.decoupled_decay and self._use_weight_decay(variable):
            theta = (1.0 - lr * self.decoupled_decay) * theta
        return u, state, theta + lr * u

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        if tf.executing_eagerly():
            self._eager_steps += 1
            if self._eager_steps % 100 == 0:
                self.look()
                self._seen = {{}}

    def look(self):
        """Warn of coordinates left alone in the last step, or raise ``RuntimeError``."""
        stores = self._stores if self.built else []
        self._whole = self._whole or [0] * len(stores)
        for k, (variable, store) in enumerate(zip(self._trainable_variables, stores)):
            left, count = int(store[1].numpy()), int(tf.size(variable))
            self._whole[k] = self._whole[k] + 1 if left == count > 0 else 0
            if not left:
                continue
            told = (
                f"{{left}} of {{count}} coordinates of {{getattr(variable, 'path', variable.name)}} of shape "
                f"{{tuple(variable.shape)}} were left alone, because the {{self._cause(k, left < count)}} "
                "was not finite; lower learning_rate or check the gradients"
            )
            if self._whole[k] >= 10:
                raise RuntimeError("at ten looks in a row " + told)
            if k not in self._told:
                self._told.append(k)
                warnings.warn(told, RuntimeWarning, stacklevel=2)

    def _cause(self, k, stepped):
        """What was left alone is as it was: with the gradient, computing the step again tells why."""
        if k not in self._seen:
            return "step"
        (gradient, lr), variable = self._seen[k], self._trainable_variables[k]
        step, _, *slots = (tf.convert_to_tensor(kept) for kept in self._stores[k])
        u, state, new = self._compute(gradient, variable, lr, step - int(stepped), slots)
        parts = {{"gradient": [tf.convert_to_tensor(gradient)], "update": [u], "state": state["slots"]}}
        causes = [name for name, xs in parts.items() if not all(map(finite, xs))]
        return [*causes, "step" if tf.reduce_all(fits(new, variable.dtype)) else "moved parameter"][0]

    def get_config(self):
        constants = {{name: float(value) for name, value in self.constants.items()}}
        return {{**super().get_config(), "weight_decay": self.decoupled_decay, "constants": constants{kept}}}
{rows_of}'''


# Texts of the file, of a rule that does not see tensors and of one that does.
_EMPTY = ("parameter", "told", "told_optimizer", "axes", "shared", "keeps", "rows", "kept", "rows_of")
_PLAIN = dict.fromkeys(_EMPTY, "") | {
    "zeros": "tf.zeros(tf.shape(theta), working_dtype(theta)) for _ in range({slots})",
    "own_shape": "theta.shape",
    "each_slot": "k in range({slots})",
    "chosen": "tf.where",
    "spread": "    u, *slots = (tf.broadcast_to(x, tf.shape(theta)) for x in results)\n",
}
_SEEING = {
    "told_optimizer": """.

    ``rows``: path of a variable, or an end of it -> axes that number the outputs, as {"embeddings": ()}
    for what is no matrix; of others (-1,) for two axes or more""",
    "shared": '''def chosen(ok, new, old):
    """New state where any of the coordinates for which it is kept is ok."""
    summed = [axis for axis, (n, kept) in enumerate(zip(ok.shape, old.shape)) if n != kept]
    return tf.where(tf.reduce_any(ok, summed, keepdims=True), new, old)


''',
    "keeps": "        self.rows = {name: list(axes) for name, axes in (rows or {}).items()}\n",
    "rows": ", self._rows(variable)",
    "kept": ',\n                "rows": dict(self.rows)',
    "rows_of": '''
    def _rows(self, variable):
        """Its axes of rows. A loaded model's paths may be shorter, so that names may end in them, too."""
        variable = self._trainable_variables[self._get_variable_index(variable)]
        path = "/" + getattr(variable, "path", variable.name)
        found = [name for name in self.rows if path.endswith("/" + name) or ("/" + name).endswith(path)]
        return self.rows[found[0]] if found else None

    def _shapes(self, variable):
        return slot_shapes(variable.shape, axes_of(variable.shape, self._rows(variable), (-1,)))
''',
    "zeros": "tf.zeros(shape, working_dtype(theta)) for shape in slot_shapes(theta.shape, axes)",
    "own_shape": "shape",
    "each_slot": "k, shape in enumerate(self._shapes(theta))",
    "chosen": "chosen",
    "spread": """    shapes = [theta.shape, *(old.shape for old in slots)]
    u, *slots = (tf.broadcast_to(x, shape) for x, shape in zip(results, shapes))
""",
}


def emit(rule: Equation) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    seen = sight(rule, programs := branches(rule), "(-1,)")
    own = {"parameter": seen.parameter, "told": seen.told, "axes": seen.axes}
    texts, slots = _PLAIN | (_SEEING | own if seen.axes else {}), len(programs[0].writes)
    needed = dict.fromkeys(f"op_{op}" for p in programs for op in pointwise_operators(p, (*_INFIX, "neg")))
    if any(ins.op == "cummax" for p in programs for ins in p.instructions):
        needed["op_max"] = None
    sources = [copied_source("tf_impl.networks.operators", ["as_tensor", *needed])]
    if tensors := tensor_operators(programs):
        sources.append(copied_source("tf_impl.networks.matrix", [f"op_{op}" for op in tensors]))
    # Keras finds classes of saved models by package and name, and two rules may be loaded at once.
    package = dataclasses.replace(rule, name="rule", provenance={}).sha256[:16]
    return _FILE.format(
        header=header(rule),
        functions="\n\n\n".join(sources) + "\n\n\n" + seen.functions,
        body=steps(programs, _write, " " * 4, "cast(SCALE) * "),
        package=literal(f"rule_{package}"),
        **texts | {key: text.format(slots=slots) for key, text in texts.items() if "{slots}" in text},
    )


def _write(ins: Instruction, args: list[str], decay: str) -> str:
    if ins.op == "input":
        return _INPUTS.get(ins.name) or f"cast({constant(ins.name)})"
    if ins.op in _INFIX:
        return f"{args[0]} {_INFIX[ins.op]} {args[1]}"
    if ins.op in TENSOR:
        whole = f"tf.broadcast_to({args[0]}, theta.shape)" if ins.op in ("polar", "orth") else args[0]
        return f"op_{ins.op}({whole}, axes)"
    slot, first = f"slots[{ins.slot}]", args[0] if args else ""
    average = f"cast({decay}) * {slot} + cast(1.0 - {decay}) * {first}"
    if ins.op == "ema" and not decay:
        average = f"{args[1]} * {slot} + {args[2]} * {first}"
    forms = {
        "number": f"cast({ins.value!r})",
        "neg": f"-{first}",
        "read": slot,
        "ema": average,
        "unbias": f"{first} / cast(one_minus_power({decay}, t))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"tf.where(tf.equal(t, 1), {first}, op_max({slot}, {first}))",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {
    "g": "cast(g)",
    "theta": "cast(theta)",
    "t": "cast(t)",
    "rows": "cast(size_of(theta.shape, axes[0]))",
    "cols": "cast(size_of(theta.shape, axes[1]))",
    "numel": "cast(size_of(theta.shape, axes[0] + axes[1]))",
}
