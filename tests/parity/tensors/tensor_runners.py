"""Every executable target of a rule that sees tensors behind one function: a case -> u, [T, N]."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from interchange.emit import TARGETS
from interchange.language.view import View
from interchange.rule.rule import Rule
from tests.parity.rule_runners import c_library, load, onnx_session, sympy_text
from tests.parity.tensors.tensor_rules import Case

Array = np.ndarray


def whole_sequences(case: Case) -> Array:
    return case.rule.evaluate({"g": case.g, "theta": case.theta}, case.g.dtype, [case.view])


def read_back(case: Case) -> Array:
    """What the SymPy text says, which holds the scale."""
    rule = Rule(case.rule.name, sympy_text(case.rule), case.rule.constants, case.rule.features)
    return rule.evaluate({"g": case.g, "theta": case.theta}, case.g.dtype, [case.view])


def as_tensor(target: str) -> Callable[[Array], Any]:
    return {
        "numpy": lambda a: a,
        "torch": lambda a: import_module("torch").from_numpy(np.ascontiguousarray(a)),
        "tensorflow": lambda a: import_module("tensorflow").constant(a),
        "optax": lambda a: import_module("jax").numpy.asarray(a),
    }[target]


def steps(case: Case, update: Callable, state: Any, like: Callable[[Array], Any]) -> Array:
    """All steps of ``update(g, theta, state, t) -> (u, state)``."""
    out = []
    for t, (row, at) in enumerate(zip(case.g, case.theta, strict=True), 1):
        u, state = update(*(like(np.reshape(a, case.view.shape)) for a in (row, at)), state, t)
        out.append(np.asarray(u))
    return np.stack(out).reshape(case.g.shape)


def file(target: str, case: Case) -> Array:
    """The generated file, one step after the other."""
    module, like, rows = load(case.rule, target), as_tensor(target), case.view.rows
    state = module.init(like(np.reshape(case.theta[0], case.view.shape)), rows=rows)
    found = sum(np.size(np.asarray(slot)) for slot in state["slots"])
    assert found == case.rule.state_size(case.view), (found, case.rule)
    return steps(case, lambda g, at, state, t: module.update(g, state, at, rows=rows), state, like)


def optax_file(case: Case) -> Array:
    import jax

    with jax.enable_x64(case.g.dtype == np.float64):
        return file("optax", case)


def lowered(package: str, case: Case) -> Array:
    target, rule, view = {"tf": "tensorflow"}.get(package, package), case.rule, case.view
    like = as_tensor(target)
    made = import_module(f"{package}_impl.networks.lowering").Lowered(rule.program(view.matrix))

    def update(g, at, state, t):
        (u,), state = made.step({**rule.constants, "g": g, "theta": at}, state, t, view)
        return np.broadcast_to(np.asarray(rule.scale * u, case.g.dtype), view.shape), state

    return steps(case, update, made.initial_state(like(np.reshape(case.theta[0], view.shape)), view), like)


def as_matrix(a: Array, view: View) -> Array:
    """A row for every output; of what is no matrix one row."""
    rows = view.sizes["rows"]
    return np.ascontiguousarray(a.reshape(-1, rows).T if view.matrix else a.reshape(1, -1))


def as_vector(m: Array, view: View) -> Array:
    """The inverse, in C order of the tensor."""
    return np.array((m.T if view.matrix else m).reshape(-1))


class CMatrix:
    """Steps of an emitted C99 file whose rule sees tensors; ``left``: what the last one left alone."""

    def __init__(self, rule: Rule, theta: Array, matrix: bool, *flags: str) -> None:
        self.library = c_library(TARGETS["c"].emit(rule), *flags)
        self.theta, self.matrix, self.t, self.left = theta.copy(), matrix, np.zeros(1), 0
        slots = ctypes.c_int.in_dll(self.library, "rule_slots").value
        self.state = [np.zeros(self._size("state_size", slot), theta.dtype) for slot in range(slots)]
        # What is beyond its end is seen.
        self.scratch = np.full(self._size("scratch") + 4, np.nan, theta.dtype)

    def _size(self, name: str, *slot: int) -> int:
        function = getattr(self.library, f"rule_{name}")
        function.restype = ctypes.c_size_t
        return function(*map(ctypes.c_int, slot), *map(ctypes.c_size_t, self.theta.shape), int(self.matrix))

    def step(self, g: Array, lr: float = 1.0, weight_decay: float = 0.0) -> None:
        function = getattr(self.library, f"rule_step_{ {4: 'float', 8: 'double'}[self.theta.itemsize] }")
        function.argtypes, function.restype = None, ctypes.c_size_t
        arrays = (ctypes.c_void_p * (len(self.state) + 1))(*(a.ctypes.data for a in self.state))
        given = (self.theta, np.ascontiguousarray(g))
        constants = ctypes.c_double.in_dll(self.library, "rule_constants")
        self.left = function(
            *map(ctypes.c_size_t, self.theta.shape), int(self.matrix),
            *(ctypes.c_void_p(a.ctypes.data) for a in given), arrays,
            *(ctypes.c_void_p(a.ctypes.data) for a in (self.scratch, self.t)), ctypes.byref(constants),
            ctypes.c_double(lr), ctypes.c_double(weight_decay),
        )  # fmt: skip
        assert np.isnan(self.scratch[-4:]).all(), "scratch is too small"


def c_file(case: Case) -> Array:
    """theta + u."""
    matrices = [as_matrix(at, case.view) for at in case.theta]
    made, out = CMatrix(case.rule, matrices[0], case.view.matrix), []
    for row, at in zip(case.g, matrices, strict=True):
        made.theta[:] = at
        made.step(as_matrix(row, case.view))
        out.append(as_vector(made.theta, case.view))
    return np.stack(out)


def onnx_file(case: Case) -> Array:
    from interchange.emit.onnx import rule as onnx

    session = onnx_session(onnx.emit(case.rule, vector=not case.view.matrix))
    g = np.stack([as_matrix(row, case.view) for row in case.g])
    theta = np.stack([as_matrix(at, case.view) for at in case.theta])
    sizes = {"rows": g.shape[1], "cols": g.shape[2]}
    states = [value for value in session.get_inputs() if value.name.startswith("state_")]
    state = {s.name: np.zeros([sizes.get(n, n) for n in s.shape], np.float32) for s in states}
    assert sum(map(np.size, state.values())) == case.rule.state_size(case.view)
    names, out = [value.name for value in session.get_inputs()], []
    for t, (row, at) in enumerate(zip(g, theta, strict=True), 1):
        given = {"g": row, "theta": at, "t": np.array(t), **state}
        u, *new = session.run(None, {name: given[name] for name in names})
        state = dict(zip(state, new, strict=True))
        out.append(as_vector(u, case.view))
    return np.stack(out)


@dataclass(frozen=True)
class Row:
    """One target.

    Attributes:
        run: case -> [T, N].
        dtypes: it computes in.
        add_theta: the result is theta + u, and a guard leaves alone what is not finite.
        needs: words for ``needs.need``.
        every: of many rules it takes every so manieth, because every shape is compiled.
    """

    run: Callable[[Case], Array]
    dtypes: tuple[type, ...] = (np.float64, np.float32)
    add_theta: bool = False
    needs: str = ""
    every: int = 1


ROWS: dict[str, Row] = {
    "whole sequences": Row(whole_sequences),
    "sympy text": Row(read_back),
    "numpy file": Row(partial(file, "numpy")),
    "c file": Row(c_file, add_theta=True, needs="exported c"),
    "torch lowered": Row(partial(lowered, "torch"), needs="torch"),
    "tensorflow lowered": Row(partial(lowered, "tf"), needs="tensorflow", every=4),
    "torch file": Row(partial(file, "torch"), needs="torch"),
    "tensorflow file": Row(partial(file, "tensorflow"), needs="tensorflow", every=4),
    "optax file": Row(optax_file, needs="optax", every=6),
    "onnx file": Row(onnx_file, (np.float32,), needs="onnx"),
}
