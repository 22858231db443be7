"""Every executable target of a rule behind one function: (rule, g, theta) -> u, all [T, N] of one dtype."""

import ctypes
import dataclasses
import importlib
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from interchange.dialects.sympy_tree import from_sympy
from interchange.dialects.table import DIALECTS
from interchange.emit import TARGETS
from interchange.emit.targets.to_sympy import build_rule
from interchange.language.execute import evaluate
from interchange.language.expression import Node
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from tests.parity.rule_oracle import expect

Array = np.ndarray
_COUNT = itertools.count()


def load(rule: Rule, target: str) -> ModuleType:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generated.py")
        path.write_text(TARGETS[target].emit(rule))
        spec = importlib.util.spec_from_file_location(f"generated_{next(_COUNT)}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def start(rule: Rule, target: str, theta: object) -> tuple[ModuleType, dict]:
    """The generated file as a module, and its state before the first step."""
    module = load(rule, target)
    state = module.init(theta)
    assert len(state["slots"]) == rule.state_floats
    return module, state


def stepped(target: str, rule: Rule, g: Array, theta: Array) -> Array:
    """The generated file, one step after the other."""
    as_tensor = {
        "numpy": lambda a: a,
        "torch": lambda a: importlib.import_module("torch").from_numpy(a),
        "tensorflow": lambda a: importlib.import_module("tensorflow").constant(a),
    }[target]
    (module, state), out = start(rule, target, as_tensor(theta[0])), []
    for row, at in zip(g, theta, strict=True):
        u, state = module.update(as_tensor(row), state, as_tensor(at))
        out.append(np.asarray(u))
    return np.stack(out)


def whole_sequences(rule: Rule, g: Array, theta: Array) -> Array:
    return rule.evaluate({"g": g, "theta": theta}, g.dtype)


def sympy_text(rule: Rule) -> Node:
    read = parse(TARGETS["sympy"].emit(rule).splitlines()[0], None, DIALECTS["sympy"])
    assert read == parse(str(read))
    return read


def read_back(read: Callable[[Rule], Node], rule: Rule, g: Array, theta: Array) -> Array:
    """What SymPy's notation or its own tree says, which hold the scale."""
    unscaled = Rule(rule.name, read(rule), rule.constants, rule.features)
    return unscaled.evaluate({"g": g, "theta": theta}, g.dtype)


WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")


@lru_cache(4096)
def c_library(text: str, *flags: str) -> ctypes.CDLL:
    """An emitted C99 file, compiled without a warning."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"rule{next(_COUNT)}.so")
        # With -Ofast the start files would make this process take numbers below the smallest normal for 0.
        options = *(flags or ("-O1",)), "-fPIC", "-shared", "-nostartfiles"
        command = [shutil.which("cc"), *WARNINGS, *options, "-o", str(path)]
        done = subprocess.run([*command, "-x", "c", "-", "-lm"], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(path))
    for name in ("rule_step_float", "rule_step_double"):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_size_t, *[ctypes.c_void_p] * 5, ctypes.c_double, ctypes.c_double]
        function.restype = ctypes.c_size_t
    return library


class CSteps:
    """Steps of an emitted C99 file; ``left``: coordinates that the last one left alone."""

    def __init__(self, library: ctypes.CDLL, theta: Array) -> None:
        self.library, self.theta, self.t, self.left = library, theta.copy(), np.zeros(1), 0
        self.state = [np.zeros_like(theta) for _ in range(ctypes.c_int.in_dll(library, "rule_slots").value)]

    def step(self, g: Array, lr: float = 1.0, weight_decay: float = 0.0) -> None:
        real = {"float32": "float", "float64": "double"}[str(self.theta.dtype)]
        arrays = (ctypes.c_void_p * (len(self.state) + 1))(*(a.ctypes.data for a in self.state))
        constants = ctypes.addressof(ctypes.c_double.in_dll(self.library, "rule_constants"))
        self.left = getattr(self.library, f"rule_step_{real}")(
            self.theta.size, self.theta.ctypes.data, np.ascontiguousarray(g).ctypes.data,
            ctypes.addressof(arrays), self.t.ctypes.data, constants, lr, weight_decay,
        )  # fmt: skip


def c_file(rule: Rule, g: Array, theta: Array, **_: object) -> Array:
    """theta + u: what the array is after one step from theta."""
    steps, out = CSteps(c_library(TARGETS["c"].emit(rule)), theta[0]), []
    for row, at in zip(g, theta, strict=True):
        steps.theta[:] = at
        steps.step(row)
        out.append(steps.theta.copy())
    return np.stack(out)


def torch_lowered(rule: Rule, g: Array, theta: Array) -> Array:
    import torch

    from torch_impl.networks.rule import lower

    lowered, out = lower(rule), []
    g, theta = torch.from_numpy(g), torch.from_numpy(theta)
    state = lowered.initial_state(g[0])
    for t, (row, at) in enumerate(zip(g, theta, strict=True), 1):
        (u,), state = lowered.step({**rule.constants, "g": row, "theta": at}, state, t)
        out.append(rule.scale * torch.as_tensor(u, dtype=g.dtype).expand_as(row))
    return torch.stack(out).numpy()


def torch_optimizer(rule: Rule, g: Array, theta: Array, **options: object) -> Array:
    """theta + u: what the parameters are after one step from theta."""
    import torch

    from torch_impl.optimizers.optimizers import SymbolicOptimizer

    p = torch.nn.Parameter(torch.from_numpy(theta[0].copy()))
    with warnings.catch_warnings(action="ignore"):  # rules that move weights at zero gradient say so
        optimizer, out = SymbolicOptimizer([p], rule, lr=1.0, **{"nonfinite": "off", **options}), []
    for row, at in zip(g, theta, strict=True):
        with torch.no_grad():
            p.copy_(torch.from_numpy(at))
        p.grad = torch.from_numpy(row)
        optimizer.step()
        out.append(p.detach().numpy().copy())
    return np.stack(out)


def _tf_steps(update: Callable, state: object, g: Array, theta: Array, jit: bool = False) -> Array:
    """All steps in one graph: ``update(g, theta, state, t) -> (u, state)``."""
    import tensorflow as tf

    @tf.function(jit_compile=jit, autograph=False)
    def run(g, theta):
        def step(t, state, out):
            u, state = update(g[t], theta[t], state, t + 1)
            return t + 1, state, out.write(t, u)

        out = tf.TensorArray(g.dtype, g.shape[0])
        return tf.while_loop(lambda t, *_: t < g.shape[0], step, (tf.constant(0), state, out))[2].stack()

    return run(tf.constant(g), tf.constant(theta)).numpy()


def tf_lowered(rule: Rule, g: Array, theta: Array, jit: bool = False) -> Array:
    import tensorflow as tf

    from tf_impl.networks.rule import lower

    lowered = lower(rule)

    def update(row, at, state, t):
        (u,), state = lowered.step({**rule.constants, "g": row, "theta": at}, state, t)
        return rule.scale * tf.broadcast_to(tf.cast(u, row.dtype), row.shape), state

    return _tf_steps(update, lowered.initial_state(tf.constant(g[0])), g, theta, jit)


def tf_file(rule: Rule, g: Array, theta: Array) -> Array:
    import tensorflow as tf

    module, state = start(rule, "tensorflow", tf.constant(theta[0]))
    return _tf_steps(lambda row, at, state, t: module.update(row, state, at), state, g, theta)


def keras_optimizer(rule: Rule, g: Array, theta: Array, **options: object) -> Array:
    """theta + u: what the variables are after one step from theta."""
    import keras
    import tensorflow as tf

    from tf_impl.optimizers.optimizers import SymbolicOptimizer

    variable, out = keras.Variable(theta[0], dtype=str(theta.dtype)), []
    with warnings.catch_warnings(action="ignore"):  # rules that move weights at zero gradient say so
        optimizer = SymbolicOptimizer(rule, learning_rate=1.0, **{"nonfinite": "off", **options})
    optimizer.build([variable])
    step = tf.function(lambda row: optimizer.apply([row], [variable]))
    for row, at in zip(g, theta, strict=True):
        variable.assign(at)
        step(tf.constant(row))
        out.append(variable.numpy())
    return np.stack(out)


def guarded(run: Callable[..., Array]) -> Callable[[Rule, Array, Array], Array]:
    """``run`` with its guard on, on columns where it has nothing to leave alone."""

    def some(rule: Rule, g: Array, theta: Array) -> Array:
        expected, program = expect(rule, g, theta, add_theta=True), rule.program()
        out, fine = expected.u.copy(), (np.isfinite(expected.u) & ~expected.apart).all(axis=0)
        states = dataclasses.replace(program, outputs=program.writes)
        for a in evaluate(states, {**rule.constants, "g": g, "theta": theta}, g.dtype):
            fine &= (np.abs(a) < 0.1 * np.finfo(g.dtype).max).all(axis=0)
        if fine.any():
            given = (np.ascontiguousarray(a[:, fine]) for a in (g, theta))
            out[:, fine] = run(rule, *given, nonfinite="skip")
        return out

    return some


def optax_file(rule: Rule, g: Array, theta: Array) -> Array:
    import jax

    def steps(*now):
        module, state = start(rule, "optax", now[1][0])
        return jax.lax.scan(lambda state, now: module.update(now[0], state, now[1])[::-1], state, now)[1]

    with jax.enable_x64(g.dtype == np.float64):
        return np.array(jax.jit(steps)(g, theta))


def onnx_session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


def onnx_steps(session: Any, g: Array, theta: Array) -> Array:
    names = [value.name for value in session.get_inputs()]
    slots, out = [name for name in names if name.startswith("state_")], []
    state = dict.fromkeys(slots, np.zeros_like(g[0]))
    for t, (row, at) in enumerate(zip(g, theta, strict=True), 1):
        given = {"g": row, "theta": at, "t": np.array(t), **state}
        u, *new = session.run(None, {name: given[name] for name in names})
        state = dict(zip(slots, new, strict=True))
        out.append(u)
    return np.stack(out)


def onnx_file(rule: Rule, g: Array, theta: Array) -> Array:
    return onnx_steps(onnx_session(TARGETS["onnx"].emit(rule)), g, theta)


@dataclass(frozen=True)
class Row:
    """One target.

    Attributes:
        run: (rule, g, theta) -> [T, N].
        dtypes: it computes in.
        add_theta: the result is theta + u.
        graph: a compiler of graphs or fused calls (b * s + c * g * g) regroup sums and products, so that
            what leaves the range of the dtype on the way may differ.
        every: of the rules it takes every so manieth, because it takes long or is a variant of another row.
        compiled: it needs a C compiler, and time of it for every rule.
        k: units it may be off, per dtype.
    """

    run: Callable[[Rule, Array, Array], Array]
    dtypes: tuple[type, ...] = (np.float64, np.float32)
    add_theta: bool = False
    graph: bool = False
    every: int = 1
    compiled: bool = False
    k: Mapping[type, float] = field(default_factory=dict)


# Around -0.4 log1p of XLA is 125 ulp off in float64; the optax file avoids it there.
_XLA = {np.float64: 64.0}
ROWS: dict[str, Row] = {
    "whole sequences": Row(whole_sequences),
    "numpy file": Row(partial(stepped, "numpy")),
    "c file": Row(guarded(c_file), add_theta=True, compiled=True),
    "sympy text": Row(partial(read_back, sympy_text)),
    "sympy tree": Row(partial(read_back, lambda rule: from_sympy(build_rule(rule)))),
    "torch lowered": Row(torch_lowered),
    "torch file": Row(partial(stepped, "torch")),
    "torch opt. compiled": Row(torch_optimizer, add_theta=True, compiled=True),
    "torch opt. guarded": Row(guarded(torch_optimizer), add_theta=True, compiled=True),
    "torch opt. plain": Row(partial(torch_optimizer, foreach=False), add_theta=True, every=2),
    "tensorflow lowered": Row(tf_lowered, graph=True, every=2),
    "tensorflow xla": Row(partial(tf_lowered, jit=True), graph=True, every=20, k=_XLA),
    "tensorflow file": Row(tf_file, graph=True, every=2),
    "tensorflow eager": Row(partial(stepped, "tensorflow"), every=20),
    "keras optimizer": Row(keras_optimizer, add_theta=True, graph=True, every=20),
    "keras opt. guarded": Row(guarded(keras_optimizer), add_theta=True, graph=True, every=20),
    "optax file": Row(optax_file, graph=True, every=2),
    "onnx file": Row(onnx_file, (np.float32,)),
}
