"""Rules that see tensors on flat vectors, which hold one tensor after another."""

import itertools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from interchange.language.compiler import Program
from interchange.language.view import View, slices
from interchange.meta.rule_weights import kind_of
from tf_impl.networks.lowering import LoweredBatched
from tf_impl.networks.operators import as_tensor


class PerTensor:
    """A rule's programs, each for the tensors it is for; state is the arrays of every tensor in turn.

    Args:
        programs: for tensors with (True) and without (False) a matrix view, of one output.
    """

    def __init__(self, programs: Mapping[bool, Program]) -> None:
        self._lowered = {has_matrix: LoweredBatched(program) for has_matrix, program in programs.items()}

    def initial_state(self, like: tf.Tensor, views: Sequence[View]) -> tuple[tf.Tensor, ...]:
        """Zero state for a vector [..., N] of tensors with these views."""
        parts = ((tensor_of(like, place, view), view) for place, view in slices(views))
        return tuple(a for part, view in parts for a in self._lowered[view.matrix].initial_state(part, view))

    def step(
        self,
        arrays: Mapping[str, tf.Tensor],
        constants: Mapping[str, tf.Tensor],
        state: tuple[tf.Tensor, ...],
        t: tf.Tensor,
        views: Sequence[View],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Output [..., N] and new state.

        Args:
            arrays: inputs [..., N], ``g`` among them.
            constants: 0-dim, of each lane [lane, 1] or of every one of ``KINDS`` [kind].
        """
        like, outs, after, before = arrays["g"], [], [], iter(state)
        for place, view in slices(views):
            lowered = self._lowered[view.matrix]
            own = tuple(itertools.islice(before, len(lowered.program.writes)))
            given = {name: tensor_of(a, place, view) for name, a in arrays.items()}
            numbers = {name: _constant(value, view) for name, value in constants.items()}
            (out,), new = lowered.step(given | numbers, own, t, view)
            out = tf.broadcast_to(tf.cast(as_tensor(out), like.dtype), given["g"].shape)
            outs.append(tf.reshape(out, [*like.shape[:-1], -1]))
            after += new
        return tf.concat(outs, -1), tuple(after)


def tensor_of(a: tf.Tensor, place: slice, view: View) -> tf.Tensor:
    """One tensor [..., *shape] of a vector [..., N]."""
    return tf.reshape(a[..., place], [*a.shape[:-1], *view.shape])


def _constant(value: tf.Tensor, view: View) -> tf.Tensor:
    """A constant that meets arrays of the tensor's shape, with lanes or without."""
    if value.shape.rank == 1:
        return value[kind_of(view.shape)]
    return tf.reshape(value, [-1, *[1] * len(view.split)]) if value.shape.rank else value
