"""A rule as one standalone TensorFlow file: constants, ``init``, pure ``update``, a Keras optimizer."""

import dataclasses

from interchange.emit.source import body, constant, copied_source, header, literal, pointwise_operators
from interchange.program import Instruction
from interchange.rule import Rule

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}

_FILE = '''"""An optimizer that is one equation, in TensorFlow.

    model.compile(optimizer=RuleOptimizer(learning_rate=1.0), loss=...)

or, as pure functions (differentiable, also by ``constants``; eagerly and inside ``tf.function``):

    state = init(theta)
    u, state = update(g, state, theta)
    theta = theta + lr * u
"""

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


def init(theta):
    """Zero state for one parameter tensor; float32 at least."""
    slots = tuple(tf.zeros(theta.shape, working_dtype(theta)) for _ in range({slots}))
    return {{"t": tf.zeros([], tf.int64), "slots": slots}}


def update(g, state, theta, constants=CONSTANTS):
    """One step from the gradient ``g``: the update u, to be scaled by a learning rate, and the new state.

    Constants are numbers or 0-dim float64 tensors.
    """
    dtype = working_dtype(theta)
    theta = tf.convert_to_tensor(theta)
    t = state["t"] + 1
    slots = state["slots"]

    def cast(a):
        return tf.cast(as_tensor(a), dtype)

{body}
    results = [{results}]
    u, *slots = (tf.broadcast_to(x, tf.shape(theta)) for x in results)
    return u, {{"t": t, "slots": tuple(slots)}}


@keras.saving.register_keras_serializable(package={package})
class RuleOptimizer(keras.optimizers.Optimizer):
    """theta <- (1 - lr * weight_decay) * theta + lr * u.

    A step whose u is not finite leaves that tensor and its state as they were. Ten of them in a row raise
    ``RuntimeError`` in ``look()``: eager steps call it every 100 steps; inside ``fit`` nothing can raise, so
    call it from a callback, as ``LambdaCallback(on_epoch_end=lambda epoch, logs: optimizer.look())``.
    Further options are those of every Keras optimizer.
    """

    def __init__(self, learning_rate=1.0, weight_decay=None, constants=CONSTANTS, **options):
        for value in (learning_rate, weight_decay or 0.0):
            if isinstance(value, (int, float)) and value < 0.0:
                raise ValueError("expected learning_rate >= 0 and weight_decay >= 0, got " + str(value))
        # Keras would decay before the update is computed, and where it is then left out.
        super().__init__(learning_rate, weight_decay=None, **options)
        self.decoupled_decay = weight_decay
        self.constants = dict(constants)
        self._eager_steps = 0

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
                        theta.shape, dtype=working_dtype(theta).name, name="slot_" + str(i) + "_" + str(k)
                    )
                    for k in range({slots})
                ),
            ]
            for i, theta in enumerate(variables)
        ]

    def update_step(self, gradient, variable, learning_rate):
        store = self._stores[self._get_variable_index(variable)]
        step, skipped, *old = (tf.convert_to_tensor(kept) for kept in store)
        u, state = update(gradient, {{"t": step, "slots": tuple(old)}}, variable, self.constants)
        theta = tf.cast(tf.convert_to_tensor(variable), u.dtype)
        lr = tf.cast(learning_rate, u.dtype)
        new = theta + lr * u
        if self.decoupled_decay and self._use_weight_decay(variable):
            new = (1.0 - lr * self.decoupled_decay) * theta + lr * u
        ok = tf.reduce_all(tf.math.is_finite(u))
        news = [state["t"], tf.zeros_like(skipped), *state["slots"]]
        olds = [step, skipped + 1, *old]
        self.assign(variable, tf.where(ok, new, theta))
        for kept, value, before in zip(store, news, olds):
            self.assign(kept, tf.where(ok, value, before))

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)
        if tf.executing_eagerly():
            self._eager_steps += 1
            if self._eager_steps % 100 == 0:
                self.look()

    def look(self):
        """Raise ``RuntimeError`` if the last ten updates of a tensor were not finite."""
        if self.built and any(int(store[1].numpy()) >= 10 for store in self._stores):
            raise RuntimeError("ten updates in a row were not finite; lower lr or check the gradients")

    def get_config(self):
        constants = {{name: float(value) for name, value in self.constants.items()}}
        return {{**super().get_config(), "weight_decay": self.decoupled_decay, "constants": constants}}
'''


def emit(rule: Rule) -> str:
    """The file's text. A feature without definition raises ``L2OError``."""
    program = rule.program()
    needed = [f"op_{op}" for op in pointwise_operators(program, (*_INFIX, "neg"))]
    if any(ins.op == "cummax" for ins in program.instructions):
        needed.append("op_max")
    code = body(program, _write, " " * 4)
    results = [f"cast(SCALE) * {code.texts[program.outputs[0]]}"]
    results += [code.texts[register] for register in program.writes]
    # Keras finds classes of saved models by package and name, and two rules may be loaded at once.
    package = dataclasses.replace(rule, name="rule", provenance={}).sha256[:16]
    return _FILE.format(
        header=header(rule),
        functions=copied_source("tf_impl.operators", ["as_tensor", *needed]) + "\n\n\n",
        slots=len(program.writes),
        body=code.lines,
        results=", ".join(results),
        package=literal(f"rule_{package}"),
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
        "read": slot,
        "ema": f"cast({decay}) * {slot} + cast(1.0 - {decay}) * {first}",
        "unbias": f"{first} / cast(one_minus_power({decay}, t))",
        "cumsum": f"{slot} + {first}",
        "cummax": f"tf.where(tf.equal(t, 1), {first}, op_max({slot}, {first}))",
    }
    return forms.get(ins.op) or f"op_{ins.op}({', '.join(args)})"


_INPUTS = {"g": "cast(g)", "theta": "cast(theta)", "t": "cast(t)"}
