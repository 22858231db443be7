"""Teachers as coordinate-wise networks over named weight arrays.

Arrays are laid out [feature or unit, coordinate], coordinates contiguous, so that every gate of the
LSTM is one contiguous block.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.kernels import Kernel, kernel
from common.tables.teachers import GAIN, TeacherRow, folded, unfolded
from interchange.language.view import View
from interchange.protocols import State, lanes_of
from tf_impl.networks.compiled import threads
from tf_impl.networks.features import FeatureStream
from tf_impl.problems.direct import Direct
from tf_impl.tensors import Weights, on_host, view


class TeacherNetwork:
    """A teacher's network with its weights: a function from weights to an optimizer.

    Args:
        teacher: the row.
        weights: arrays by canonical name (``TeacherRow.weight_shapes``).
        state_dtype: of h and c between steps, ``dtype`` if None; arithmetic is in ``dtype``.
    """

    tasks_batchable = True
    sees_tensors = False  # given its inputs

    def __init__(
        self,
        teacher: TeacherRow,
        weights: Mapping[str, np.ndarray],
        dtype: tf.DType = tf.float32,
        device: str = "cpu",
        state_dtype: tf.DType | None = None,
    ) -> None:
        self.teacher, self.state_dtype = teacher, state_dtype or dtype
        self._narrow = self.state_dtype != dtype
        self.scale, self.weight_decay, self.structure = teacher.scale, 0.0, teacher.structure
        self.features = FeatureStream(teacher.expressions())
        self.views: tuple[View, ...] = ()
        with tf.device(device):
            self.weights: Weights = {
                name: tf.Variable(weights[name], dtype=dtype) for name in teacher.weight_shapes()
            }
        self._step = tf.function(self._one_step)
        self._joined = Direct(
            lambda: tf.concat([tf.reshape(w, [-1]) for w in folded(self.weights).values()], 0)
        )

    @functools.cached_property
    def compiled(self) -> Kernel | None:
        """The network as compiled code; None on other devices, or where there is no compiler."""
        w = self.weights["out/w"]
        if "CPU" not in w.device or self.state_dtype not in (w.dtype, tf.bfloat16):
            return None
        return kernel(self.teacher, self.state_dtype.name)

    @property
    def weights_batchable(self) -> bool:
        """``batched`` is there: with compiled code."""
        return self.compiled is not None

    def batched(self, weights: Sequence[Mapping[str, np.ndarray]]) -> "BatchedTeachers":
        """The network in lanes of optimizees of one size, with the given weights of each."""
        return BatchedTeachers(self, weights)

    @property
    def source(self) -> TeacherRow:
        """What the network is made of, but for its weights."""
        return self.teacher

    def bind(self, task: Any) -> None:
        """Take the views of a task's tensors, of one lane of ``BatchedTasks``, where features see them."""
        if self.features.sees_tensors:
            self.views, _ = lanes_of(task, f"teacher {self.teacher.name!r}")

    def rows(self, theta: tf.Tensor) -> list[tf.Tensor]:
        """Inputs beside the features: none."""
        return []

    def initial_state(self, theta: tf.Tensor) -> State:
        """Zero state for a flat vector [N]."""
        shapes = [(size, theta.shape[0]) for size in self.teacher.lstm for _ in ("h", "c")]
        kind = self.state_dtype if self._narrow else theta.dtype
        # Arrays, which steps may overwrite, where steps are compiled.
        ours = self.compiled is not None and tf.executing_eagerly() and on_host(theta)
        network = tuple(np.zeros(s, kind.as_numpy_dtype) if ours else tf.zeros(s, kind) for s in shapes)
        return State(0, self.features.initial_state(theta), network)

    def inputs(self, g: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """The network's inputs [F, N] for gradient [N]; first order, so outside the meta-gradient."""
        x, features = self.features.step(g, state.features, state.t + 1, self.views)
        return x, State(state.t + 1, features, state.network)

    def step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``structure`` and ``scale``, and the new network state, for inputs x [F, N]."""
        del t  # a rule's network reads it
        arrays = tuple(tf.cast(a, x.dtype) for a in network)
        out, after = self._step({name: tf.convert_to_tensor(w) for name, w in weights.items()}, x, arrays)
        return out, tuple(map(self._kept, after))

    def _kept(self, a: tf.Tensor) -> tf.Tensor:
        """An array of the state rounded to what is kept; the rounding is not differentiated."""
        if not self._narrow:
            return a
        return a + tf.stop_gradient(tf.cast(tf.cast(a, self.state_dtype), a.dtype) - a)

    def _one_step(
        self, weights: Weights, x: tf.Tensor, network: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        if self.teacher.pre:
            x = tf.nn.elu(weights["pre/w"] @ x + weights["pre/b"][:, None])
        new_state: list[tf.Tensor] = []
        for layer in range(len(self.teacher.lstm)):
            h, c = lstm_cell(
                weights[f"lstm_{layer}/w_input"],
                weights[f"lstm_{layer}/w_hidden"],
                weights[f"lstm_{layer}/bias"],
                x,
                *network[2 * layer : 2 * layer + 2],
            )
            new_state += [h, c]
            x = h
        out = (weights["out/w"] @ x + weights["out/b"][:, None])[0]
        if self.teacher.pre_tanh_scale:
            out = out * weights[GAIN]
        return (tf.tanh(out) if self.teacher.output == "tanh" else out), tuple(new_state)

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """``step`` with the network's own weights, not recorded.

        Args:
            network: tensors, or the arrays of an earlier ``roll``.
            reuse: the new state may take the place of the old one in its arrays.
        """
        if self.compiled is None or x.dtype != self.weights["out/w"].dtype or not on_host(x):
            out, after = self.step(self.weights, x, network, t)
            return out, tuple(tf.cast(a, self.state_dtype) if self._narrow else a for a in after)
        self._check(network, x.shape[1])
        before, inputs, weights = self._arrays(network), view(x), self._flat()
        reuse = reuse and all(a.flags.writeable for a in before)  # those of tensors are not
        after = before if reuse else [np.empty_like(a) for a in before]
        out = np.empty(inputs.shape[1], inputs.dtype)
        self.compiled.step(
            weights.ctypes.data, len(out), inputs.ctypes.data, _addresses(before), _addresses(after),
            out.ctypes.data, threads(),
        )  # fmt: skip
        return tf.convert_to_tensor(out), tuple(after)

    def vjp(self, state: State, inputs: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none.

        Args:
            inputs: [T, F, N]; c: [T, N].
        """
        if self.compiled is None or not on_host(c) or self.weights["out/w"].dtype != c.dtype:
            return None
        self._check(state.network, c.shape[1])
        start, weights = self._arrays(state.network), self._flat()
        inputs, c = np.ascontiguousarray(view(inputs)), np.ascontiguousarray(view(c))
        found = self.compiled.gradient(
            weights.ctypes.data, *c.shape, inputs.ctypes.data, c.ctypes.data, _addresses(start), threads()
        )
        sizes = [w.shape.num_elements() for n, w in self.weights.items() if n != GAIN]
        parts = iter(np.split(found, np.cumsum(sizes)))
        grads = {name: next(parts).reshape(w.shape) for name, w in self.weights.items() if name != GAIN}
        grads = unfolded(grads, self.weights)
        return {name: tf.constant(grads[name], w.dtype) for name, w in self.weights.items()}

    def _arrays(self, network: tuple[tf.Tensor, ...]) -> list[np.ndarray]:
        kind = self.state_dtype.as_numpy_dtype
        return [np.ascontiguousarray(view(a)).astype(kind, copy=False) for a in network]

    def _check(self, network: Sequence[Any], n: int) -> None:
        """Compiled code believes what it is told of arrays, which may come from a file."""
        expected = [(size, n) for size in self.teacher.lstm for _ in ("h", "c")]
        if (got := [tuple(a.shape) for a in network]) != expected:
            raise ValueError(f"state: expected shapes {expected} of teacher {self.teacher.name}, got {got}")

    def _flat(self) -> np.ndarray:
        return view(self._joined())


class BatchedTeachers:
    """A teacher's network with weights of its own in every lane of optimizees of one size.

    Args:
        alone: with compiled code.
        weights: of every lane.
    """

    def __init__(self, alone: TeacherNetwork, weights: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.scale, self.inputs, self.rows = alone.scale, alone.inputs, alone.rows
        self.structure = alone.structure
        self._compiled, self._count = alone.compiled, len(weights)
        dtype = alone.weights["out/w"].dtype.as_numpy_dtype
        lanes = [folded({name: lane[name] for name in alone.weights}) for lane in weights]
        flat = [np.concatenate([np.ravel(w) for w in lane.values()]).astype(dtype) for lane in lanes]
        self._weights = np.stack(flat)

    def roll(
        self, x: tf.Tensor, network: tuple[tf.Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [N] before ``scale`` and the new state, h and c [lane, H, n], for inputs [F, N]."""
        del t
        before, inputs = [np.ascontiguousarray(view(a)) for a in network], view(x)
        reuse = reuse and all(a.flags.writeable for a in before)  # those of tensors are not
        after = before if reuse else [np.empty_like(a) for a in before]
        out = np.empty(inputs.shape[1], inputs.dtype)
        n = len(out) // self._count
        for k, weights in enumerate(self._weights):
            part = slice(k * n, (k + 1) * n)
            self._compiled.step(
                weights.ctypes.data, n, inputs[:, part].ctypes.data, _addresses([a[k] for a in before]),
                _addresses([a[k] for a in after]), out[part].ctypes.data, threads(), len(out),
            )  # fmt: skip
        return tf.convert_to_tensor(out), tuple(after)


def _addresses(arrays: list[np.ndarray]) -> list[int]:
    return [a.ctypes.data for a in arrays]


def lstm_cell(
    w_input: tf.Tensor,
    w_hidden: tf.Tensor,
    bias: tf.Tensor,
    x: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One LSTM cell, gates in the order i, f, g, o, one bias [4H]; x [D, N], h and c [H, N]."""
    i, f, g, o = tf.split(w_input @ x + w_hidden @ h + bias[:, None], 4)
    c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
    return tf.sigmoid(o) * tf.tanh(c), c
