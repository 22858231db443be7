"""A step of a large tensor as XLA on the CPU runs it best: few passes over memory, every array in its place.

XLA does not fuse a sum with what is summed, and what two results need it computes twice. So the update is
written out once, to be looked at and to be applied; and as old state is overwritten only after that look,
it can be overwritten where it stands, without a copy.
"""

from collections.abc import Sequence

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

from interchange.compiler import Instruction
from tf_impl.lowering import Lowered, Scalar
from tf_impl.operators import op_div, op_mul


class Plain(Lowered):
    """A program that is never differentiated."""

    def _pointwise(self, ins: Instruction, args: Sequence[Scalar]) -> Scalar:
        if ins.op == "sqrt" and isinstance(args[0], tf.Tensor):  # what Lowered adds is for derivatives at 0
            return tf.sqrt(tf.abs(args[0]))
        return super()._pointwise(ins, args)

    def _unbiased(self, x: Scalar, factor: Scalar) -> Scalar:
        return op_mul(x, op_div(1.0, factor))  # one division, of a scalar


def compiling() -> bool:
    """Whether XLA will compile what is being traced."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def written_out(*arrays: tf.Tensor) -> list[tf.Tensor]:
    """The arrays, all of them computed before any is used, and once whatever they are used for."""
    return xla.optimization_barrier(*arrays)


def finite(u: tf.Tensor) -> tf.Tensor:
    """Whether all of ``u`` is finite, 0-dim: its sum tells, unless it overflows."""
    return tf.cond(
        tf.math.is_finite(tf.reduce_sum(u)),
        lambda: tf.constant(True),
        lambda: tf.reduce_all(tf.math.is_finite(u)),
    )
