"""The inner loop and the meta-gradient that needs no optimizee graph (MATH.md section 3).

Inside a rollout nothing is differentiated but the optimizee's loss at one point. The inputs of the
optimizer network and the gradients g_t are kept; with updates that add up,
theta_t = theta_0 + sum_{s<t} lr u_s, the meta-gradient of sum_t w_t f_t is

    dL/dphi = sum_s < c_s , d u_s / d phi >,    c_s = lr sum_{t>s} w_t g_t,

one backward pass of the network as a sequence, chunk by chunk over coordinates. A teacher's network has
compiled code for its steps and this pass (``common.kernels``); the chunks here are for what has none. The
coordinates of a rule that sees tensors do not come apart: it goes back step by step, each computed once more.
Of a teacher with a structure S, u_s = scale S(y_s), they do after one step more: y_s is kept, and c_s becomes
(dS/dy at y_s)^T c_s, which is of all coordinates whatever subset then goes through the network.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from common.metrics import log_slopes, loss_at
from interchange.meta.carried import Carried
from interchange.protocols import Network, Position, State, Task, start
from tf_impl.networks.structure import Structure, structure_of
from tf_impl.problems.batched import BatchedTasks
from tf_impl.problems.tasks import value_and_gradient
from tf_impl.tensors import on_host, to_numpy, view

_CHUNK = 32_768  # coordinates of one backward pass that is not compiled: bounds its memory
_KEPT, _BESIDE = 8, 64  # numbers that the tape keeps of a step: per number of state or input, and beside


def advance(
    task: Task | BatchedTasks,
    network: Network,
    position: Position,
    steps: int,
    lr: float = 1.0,
    *,
    coordinates: np.ndarray | None = None,
    reuse: bool = False,
    keep: bool = True,
    outs: list[tf.Tensor] | None = None,
) -> tuple[Position, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Take ``steps`` steps theta += lr * scale * out, or lr * scale * structure(out), with no graph.

    Args:
        coordinates: numbers of the n coordinates whose gradients and inputs are kept, all if None. Of a
            network with a structure all gradients are kept.
        reuse: the state of ``position`` is not needed any more and may be overwritten.
        keep: gradients and inputs are wanted; without, they are empty.
        outs: takes the outputs [N] of every step, of a network with a structure, for ``by_outputs``.

    Returns:
        The new position, losses [steps + 1] (of lanes [steps + 1, lane]), gradients [steps + 1, n], inputs
        [steps, F, n].
    """
    position, structure = begun(task, position), structure_of(network, task)

    felt = coordinates if structure is None else None
    losses, gradients, inputs = [position.loss], _Rows((steps + 1) * keep), _Rows(steps * keep)
    gradients.add(_chosen(position.gradient, felt))
    for step in range(steps):
        position, x, y = _moved(network, structure, position, lr, reuse or step > 0)
        if structure is not None and outs is not None:
            outs.append(y)
        inputs.add(_chosen(x, coordinates))
        del x, y  # a network's activations take their place
        position = begun(task, position)
        losses.append(position.loss)
        gradients.add(_chosen(position.gradient, felt))
    return position, tf.stack(losses), gradients.stacked(), inputs.stacked()


class _Rows:
    """Tensors of one shape, stacked as they come: from a list they would need their memory twice."""

    def __init__(self, count: int) -> None:
        self._count, self._elsewhere = count, []
        self._array: np.ndarray | None = None

    def add(self, tensor: tf.Tensor) -> None:
        """One more row, where there is to be one."""
        if self._count and not on_host(tensor):
            self._elsewhere.append(tensor)
        elif self._count:
            if self._array is None:
                self._array, self._filled = np.empty((self._count, *tensor.shape), view(tensor).dtype), 0
            self._array[self._filled] = view(tensor)
            self._filled += 1

    def stacked(self) -> tf.Tensor:
        """All rows, [count, ...]; on the host an array, which is not copied again."""
        if self._array is None:
            return tf.stack(self._elsewhere) if self._count else tf.zeros([0])
        return self._array


def _chosen(a: tf.Tensor, coordinates: np.ndarray | None) -> tf.Tensor:
    return a if coordinates is None else tf.gather(a, coordinates, axis=-1)


def begun(task: Task | BatchedTasks, position: Position) -> Position:
    """The position with its loss and gradient."""
    if position.loss is not None:
        return position
    loss, g = value_and_gradient(task, position.theta, position.step)
    return dataclasses.replace(position, loss=loss, gradient=g)


def contribution(position: Position | Carried, loss: str) -> tf.Tensor:
    """The derivative [N] by theta of what one step's loss adds to the objective ``loss``."""
    if loss != "log":
        return position.gradient
    return position.gradient * float(log_slopes(float(position.loss)))


def chosen_state(state: State, coordinates: np.ndarray | None) -> State:
    """The network's state at the given coordinates, a copy; the state itself if None."""
    if coordinates is None:
        return state
    network = (
        a[..., coordinates] if isinstance(a, np.ndarray) else tf.gather(a, coordinates, axis=-1)
        for a in state.network
    )
    return dataclasses.replace(state, network=tuple(network))


def cotangents(
    gradients: tf.Tensor,
    loss: str,
    keep: float = 1.0,
    losses: tf.Tensor | None = None,
    counts: Sequence[int] = (),
    *,
    reuse: bool = False,
) -> tf.Tensor:
    """c_s [T, N] = sum_{t>s} w_t keep^(t-s-1) g_t from gradients [T + 1, N].

    Args:
        loss: w is all 1 (``sum``), e_T (``last``) or one over the losses (``log``).
        keep: what weight decay leaves of theta in a step (``decay_factor``).
        losses: for ``log``, [T + 1], or of lanes [T + 1, lane], which have ``counts`` coordinates each.
        reuse: the gradients are not needed any more and may be overwritten.
    """
    if loss == "log":
        slopes = log_slopes(to_numpy(losses))
        slopes = np.repeat(slopes, counts, 1) if counts else slopes[:, None]
        gradients, reuse = gradients * tf.constant(slopes, gradients.dtype), True
    if on_host(gradients):
        given = view(gradients)[1:]
        c = given if reuse and given.flags.writeable else given.copy()
        for t in range(len(c) - 2, -1, -1):
            c[t] = keep * c[t + 1] + (0.0 if loss == "last" else c[t])
        return c
    found = [gradients[-1]]
    for g in tf.unstack(gradients[1:-1])[::-1]:
        found.append(keep * found[-1] + (g if loss == "sum" else 0.0))
    return tf.stack(found[::-1])


def meta_gradient(
    network: Network,
    state: State,
    inputs: tf.Tensor,
    c: tf.Tensor,
    coordinates: np.ndarray | None = None,
    memory: float = 0.0,
) -> dict[str, tf.Tensor]:
    """sum_s <c_s, d u_s / d weights> by one backward pass of the network as a sequence.

    Args:
        state: at the start of the unroll.
        inputs: [T, F, N]; c: [T, N], with the learning rate in it, by the outputs (``structure.by_outputs``).
        coordinates: numbers of the coordinates to use, all if None; the result is scaled by N/n, so
            a random subset is unbiased.
        memory: GiB that one pass may take beside ``inputs`` and ``c``, about, where it is not compiled: it
            decides on how many coordinates go through at once; 0 leaves that to what is fast.

    Returns:
        Weight name -> gradient.
    """
    factor = network.scale
    if coordinates is not None:
        factor *= inputs.shape[2] / len(coordinates)
        inputs, c = tf.gather(inputs, coordinates, axis=2), tf.gather(c, coordinates, axis=1)
        state = chosen_state(state, coordinates)
    if (found := network.vjp(state, inputs, c)) is not None:
        return {name: grad * factor for name, grad in found.items()}
    if network.sees_tensors:
        return _swept(network, state, inputs, c * factor)
    hidden = state.network
    grads = {name: tf.zeros_like(w) for name, w in network.weights.items()}
    size = _CHUNK
    if memory:
        numbers = _KEPT * (sum(len(a) if len(a.shape) > 1 else 1 for a in hidden) + inputs.shape[1]) + _BESIDE
        size = max(1, int(memory * 2**30 / (len(inputs) * numbers * c.dtype.size)))
    for low in range(0, c.shape[1], size):
        part = slice(low, low + size)
        pieces = _part(
            network, state.t, tuple(a[..., part] for a in hidden), inputs[..., part], c[:, part] * factor
        )
        for name, piece in zip(grads, pieces, strict=True):
            if piece is not None:  # a constant of a rule may have no gradient, as under greater
                grads[name] += piece
    return grads


def _part(
    network: Network, t: int, hidden: tuple[tf.Tensor, ...], inputs: tf.Tensor, c: tf.Tensor
) -> list[tf.Tensor | None]:
    """The gradient of one chunk of coordinates, weight by weight."""
    weights = {name: tf.convert_to_tensor(w) for name, w in network.weights.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(weights.values()))
        outs = []
        for s in range(len(inputs)):
            out, hidden = network.step(weights, inputs[s], hidden, t + 1 + s)
            outs.append(out)
        total = tf.stack(outs)
    return tape.gradient(total, list(weights.values()), output_gradients=c)


def _swept(network: Network, state: State, inputs: tf.Tensor, c: tf.Tensor) -> dict[str, tf.Tensor]:
    """The gradient of all coordinates, step by step: what the tape keeps of iterations is one step's."""
    before = [state.network]
    for s in range(len(inputs) - 1):
        before.append(network.roll(inputs[s], before[-1], state.t + 1 + s)[1])
    weights = {name: tf.convert_to_tensor(w) for name, w in network.weights.items()}
    grads = {name: tf.zeros_like(w) for name, w in weights.items()}
    by_hidden = tuple(map(tf.zeros_like, state.network))
    for s in reversed(range(len(inputs))):
        hidden = tuple(map(tf.identity, before.pop()))  # the tape tells tensors apart, not values
        with tf.GradientTape() as tape:
            tape.watch([*hidden, *weights.values()])
            out, after = network.step(weights, inputs[s], hidden, state.t + 1 + s)
        by_hidden, pieces = tape.gradient(
            [out, *after],
            (hidden, weights),
            output_gradients=[c[s], *by_hidden],
            unconnected_gradients="zero",
        )
        grads = {name: g + pieces[name] for name, g in grads.items()}
    return grads


def rollout(task: Task, network: Network, steps: int, lr: float = 1.0) -> np.ndarray:
    """Losses [steps + 1] of one whole rollout, float64, no meta-gradient and nothing else kept."""
    return segment(task, network, start(task, network), steps, lr)[1]


def segment(
    task: Task, network: Network, position: Position, steps: int, lr: float = 1.0
) -> tuple[Position, np.ndarray]:
    """The position after ``steps`` steps and the losses [steps + 1], float64; nothing else is kept."""
    position, losses, _, _ = advance(task, network, position, steps, lr, keep=False)
    return position, losses.numpy().astype(np.float64)


def mean_loss_at(tasks: Iterable[Task], network: Network, steps: int) -> float:
    """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""
    return float(np.mean([loss_at(rollout(task, network, steps)[:-1], steps) for task in tasks]))


def decay_factor(network: Network, lr: float = 1.0) -> float:
    """What weight decay leaves of theta in one step: 1 without."""
    return 1.0 - lr * network.scale * network.weight_decay


def inputs_at(network: Network, at: Position) -> tuple[tf.Tensor, State]:
    """The network's inputs [F, N] at a position whose gradient is known, and the state after their step."""
    x, state = network.inputs(at.gradient, at.state)
    rows = network.rows(at.theta)
    return (tf.concat([x, *rows], 0) if rows else x), state


def _moved(
    network: Network, structure: Structure | None, at: Position, lr: float, reuse: bool
) -> tuple[Position, tf.Tensor, tf.Tensor]:
    """The position after a step, loss and gradient still to be taken; inputs [F, N] and outputs [N] of it."""
    x, state = inputs_at(network, at)
    y, hidden = network.roll(x, state.network, state.t, reuse=reuse)
    out = y if structure is None else structure(y)
    theta = at.theta + (lr * network.scale) * out
    return Position(at.step + 1, theta, dataclasses.replace(state, network=hidden)), x, y
