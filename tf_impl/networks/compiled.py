"""Programs of rules and features as compiled code on tensors of the CPU (``common.kernels``)."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from common.kernels import RuleCode, rule_code
from common.machine import default_threads
from interchange.emit.c_kernels import Source, roll_source, step_source, tangents_source, vjp_source
from interchange.language.compiler import Program
from tf_impl.tensors import on_host, view

_Array = np.ndarray


class Compiled:
    """A program's rollouts and derivatives for vectors.

    Args:
        inputs: the program's inputs that are rows of arrays, in order; all others but ``t`` are constants.
    """

    def __init__(self, program: Program, inputs: Sequence[str]) -> None:
        self._program, self._inputs = program, tuple(inputs)

    def roll(
        self, x: tf.Tensor, state: Sequence[tf.Tensor], constants: Mapping[str, float], t: int
    ) -> tuple[_Array, tuple[_Array, ...]] | None:
        """Outputs [O, N] and new state for inputs x [F, N] at step ``t`` (from 1).

        As arrays; None where there is no compiled code.
        """
        return self.roll_batched(x, state, [constants], t)

    def roll_batched(
        self, x: tf.Tensor, state: Sequence[tf.Tensor], constants: Sequence[Mapping[str, float]], t: int
    ) -> tuple[_Array, tuple[_Array, ...]] | None:
        """``roll`` with constants of its own for each of as many equal parts of the coordinates."""
        code = self._code(x, state, lambda: roll_source(self._program, self._inputs))
        if code is None:
            return None
        x, before = np.ascontiguousarray(view(x)), [np.ascontiguousarray(view(a)) for a in state]
        out = np.empty((len(self._program.outputs), x.shape[1]), x.dtype)
        after = tuple(np.empty_like(a) for a in before)
        n = x.shape[1] // len(constants)
        for k, values in enumerate(constants):
            shift = k * n * x.itemsize
            code.roll(
                n, x.ctypes.data + shift, [a + shift for a in _addresses(before)],
                [a + shift for a in _addresses(after)], out.ctypes.data + shift,
                [values[name] for name in code.constants], t, threads(), x.shape[1], x.shape[1],
            )  # fmt: skip
        return out, after

    def tangents(
        self,
        x: tf.Tensor,
        state: Sequence[tf.Tensor],
        moved: Sequence[tf.Tensor | _Array],
        constants: Mapping[str, float],
        seeds: Mapping[str, float],
        t: int,
        keep: float,
        rate: float,
    ) -> list[_Array] | None:
        """Derivatives by constants one step on, in place as far as they can be; None without compiled code.

        Args:
            x: inputs [F, N]; state: before the step.
            moved: for every constant of ``seeds`` of theta [N], and of the slots that it moves.
            seeds: constant -> its derivative by what is trained.
            keep, rate: those of theta become keep * E + rate * d out / d constant.
        """
        wrt = tuple(seeds)
        code = self._code(x, state, lambda: tangents_source(self._program, self._inputs, wrt))
        if code is None or any(not on_host(a) or a.dtype != x.dtype or a.shape != x.shape[1:] for a in moved):
            return None
        arrays = [a if isinstance(a, _Array) and a.flags.writeable else np.array(view(a)) for a in moved]
        x, *before = (np.ascontiguousarray(view(a)) for a in (x, *state))
        code.tangents(
            x.shape[1], x.ctypes.data, _addresses(before), _addresses(arrays),
            [constants[name] for name in code.constants], tuple(seeds.values()), t, keep, rate, threads(),
        )  # fmt: skip
        return arrays

    def vjp(
        self,
        x: tf.Tensor,
        c: tf.Tensor,
        state: Sequence[tf.Tensor],
        constants: Mapping[str, float],
        before: int,
    ) -> dict[str, float] | None:
        """sum_t <c_t, d out_t / d constant> for every constant the program reads; None without compiled code.

        Args:
            x: inputs [T, F, N]; c: [T, N].
            state: before the first step, after ``before`` steps.
        """
        wrt = tuple(name for name in constants if name in self._program.inputs)
        code = self._code(x, state, lambda: vjp_source(self._program, self._inputs, wrt))
        if code is None or c.dtype != x.dtype or not wrt:
            return {} if code is not None and not wrt else None
        x, c, *start = (np.ascontiguousarray(view(a)) for a in (x, c, *state))
        found = code.vjp(
            c.shape[1], len(c), x.ctypes.data, c.ctypes.data, _addresses(start),
            [constants[name] for name in code.constants], before, len(wrt), threads(),
        )  # fmt: skip
        # In the dtype of the arrays: what is too large for it is infinite, which ends an epoch, as without C.
        with np.errstate(over="ignore"):
            return dict(zip(wrt, found.astype(x.dtype).tolist(), strict=True))

    def _code(
        self, x: tf.Tensor, state: Sequence[tf.Tensor], source: Callable[[], Source]
    ) -> RuleCode | None:
        """The code for these arrays; None where there is none, or where a graph is being made."""
        name = tf.as_dtype(x.dtype).name
        if (
            name not in ("float32", "float64")
            or not tf.executing_eagerly()
            or x.shape[-2] != len(self._inputs)
        ):
            return None
        if not all(on_host(a) and tf.as_dtype(a.dtype).name == name for a in (x, *state)):
            return None
        if any(math.prod(a.shape) != x.shape[-1] for a in state):  # code believes what it is told of them
            return None
        return rule_code(source(), name)


def step_fresh(
    program: Program,
    scale: float,
    constants: Mapping[str, float],
    rate: float,
    keep: float,
    guard: bool,
    theta: tf.Tensor,
    g: tf.Tensor,
    t: float,
    state: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, float, int, list[tf.Tensor]] | None:
    """One step of an optimizer, keep * theta + rate * scale * u, on fresh tensors.

    Args:
        t: steps taken before.

    Returns:
        The moved parameter, steps taken, coordinates left alone, new state; None where compiled code cannot
        be used: none there, in a graph, on another device, in bfloat16 (TensorFlow does not show its memory).
    """
    work = tf.float64 if theta.dtype == tf.float64 else tf.float32
    fits = tf.executing_eagerly() and theta.dtype == g.dtype and theta.dtype != tf.bfloat16
    if not fits or not all(on_host(a) for a in (theta, g, *state)) or any(a.dtype != work for a in state):
        return None
    code = rule_code(step_source(program), theta.dtype.name)
    if code is None:
        return None
    # The code works in place; what others may hold of the old tensors must not change.
    moved, *new = (tf.raw_ops.DeepCopy(x=a) for a in (theta, *state))
    taken, left = np.array([t], np.float32), np.zeros(1, np.int64)
    code.step(
        [view(theta).size], _addresses([view(moved)]), _addresses([view(g)]),
        _addresses([taken, left, *map(view, new)]),
        [constants[name] for name in code.constants], scale, rate, keep, False, guard, threads(),
    )  # fmt: skip
    size = view(theta).size
    return moved, t + (int(left[0]) < size or not size), int(left[0]), new


def threads() -> int:
    """Threads for compiled code: as many as the user gave TensorFlow."""
    return tf.config.threading.get_intra_op_parallelism_threads() or default_threads()


def _addresses(arrays: Sequence[_Array]) -> list[int]:
    return [a.ctypes.data for a in arrays]
