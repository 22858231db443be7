"""Time of a step of a rule of Muon's kind on ResNet-18's tensors: python tests/benchmarks/step_muon_tf.py

In Keras, eagerly and in one ``tf.function``, against the same iteration written plainly in TensorFlow, tensor
by tensor and, for equal shapes, batched; vectors take plain momentum everywhere. float32; the rule's guard
is on.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Sequence

import interleaved
import keras
import numpy as np
import tensorflow as tf
from shapes import resnet18
from step_tf import stepper

from interchange.rule.rule import Rule
from tf_impl.optimizers.optimizers import SymbolicOptimizer

C, B, LR = 0.95, 0.9, 1e-3
RULE = Rule.from_text(
    "by_matrix(-0.2 * sqrt(max(rows, cols)) * polar(g + c * ema(g, b)), -(g + c * ema(g, b)))",
    {"c": C, "b": B},
)


def polar(x: tf.Tensor) -> tf.Tensor:
    """Newton-Schulz of matrices [..., n, m], as users write it: products on the smaller side."""
    tall = x.shape[-2] > x.shape[-1]
    x = x / (tf.norm(x, axis=(-2, -1), keepdims=True) + 1e-30)
    for _ in range(5):
        a = tf.matmul(x, x, transpose_a=tall, transpose_b=not tall)
        b = -4.7750 * a + 2.0315 * tf.matmul(a, a)
        x = 3.4445 * x + (tf.matmul(x, b) if tall else tf.matmul(b, x))
    return x


class Plain:
    """An optimizer written by hand."""

    def __init__(self, params: Sequence[keras.Variable], batched: bool) -> None:
        self.params = [p.value for p in params]
        self.averages = [tf.Variable(tf.zeros(p.shape)) for p in params]
        self.together: dict[object, list[int]] = {}
        for k, p in enumerate(params):
            key = tuple(p.shape) if batched and len(p.shape) > 1 else k
            self.together.setdefault(key, []).append(k)

    def apply(self, grads: Sequence[tf.Tensor], params: Sequence[keras.Variable]) -> None:
        for numbers in self.together.values():
            directions = []
            for k in numbers:
                m = B * self.averages[k] + (1.0 - B) * grads[k]
                self.averages[k].assign(m)
                directions.append(grads[k] + C * m)
            shape = directions[0].shape
            if shape.rank > 1:
                flat = [tf.reshape(d, [-1, shape[-1]]) for d in directions]
                scale = 0.2 * max(flat[0].shape) ** 0.5
                found = tf.unstack(polar(tf.stack(flat))) if len(flat) > 1 else [polar(flat[0])]
                directions = [scale * tf.reshape(u, shape) for u in found]
            for k, u in zip(numbers, directions, strict=True):
                self.params[k].assign_sub(LR * u)


def main() -> None:
    parser = interleaved.parser_of(__doc__.partition("\n")[0], rounds=5)
    parser.add_argument("--modes", nargs="+", default=["eager", "graph"], choices=["eager", "graph", "xla"])
    parser.add_argument("--cpu", action="store_true", help="time of the processor, on one thread")
    args = parser.parse_args()
    if args.cpu:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    clock = time.process_time if args.cpu else time.perf_counter
    # As Keras lays them out, [kh, kw, in, out] and [in, out].
    shapes = [(*shape[2:], *shape[1::-1]) if len(shape) > 1 else shape for shape in resnet18()]
    rng, rows = np.random.default_rng(0), {}
    grads = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]
    for mode in args.modes:
        params = [[keras.Variable(np.zeros(s), dtype="float32") for s in shapes] for _ in range(3)]
        rule = SymbolicOptimizer(RULE, LR)
        rule.build(params[0])
        made = {"rule": rule, "by hand": Plain(params[1], False), "by hand, batched": Plain(params[2], True)}
        steps = {
            name: stepper(one, grads, own, mode)
            for (name, one), own in zip(made.items(), params, strict=True)
        }
        for step in steps.values():
            step()
        worst = max(float(tf.reduce_max(tf.abs(p - q))) for p, q in zip(*params[:2], strict=True))
        assert worst < 1e-4 * LR * 0.2 * 4608**0.5, worst
        rows[mode] = medians = interleaved.compare(steps, args.rounds, 0, clock)
        best = min(medians["by hand"], medians["by hand, batched"])
        print(interleaved.table({mode: medians}, "by hand"))
        print(f"{mode}: {medians['rule'] / best:.3f} times the better", flush=True)
    if args.json:
        interleaved.save(args.json, rows)


if __name__ == "__main__":
    main()
