"""Time of a step of the Adam rule beside Keras' own Adam: python tests/benchmarks/step_tf.py --threads 1

Each optimizer steps the same parameters by the same gradients eagerly, in one ``tf.function``, and in one
compiled by XLA. Ratios are to Keras Adam's fastest mode.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from interleaved import compare, parser_of, save, table

from interchange.rule.rule import Rule
from tf_impl.optimizers.optimizers import SymbolicOptimizer

ADAM = Rule.from_text(
    "-ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + eps)", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
)
OPTIMIZERS = {
    "keras": lambda: keras.optimizers.Adam(1e-3),
    "rule": lambda: SymbolicOptimizer(ADAM, 1e-3),
    "unguarded": lambda: SymbolicOptimizer(ADAM, 1e-3, nonfinite="off"),
}
MODES = ("eager", "graph", "xla")


def cases(size: int, tensors: int, names: list[str], modes: list[str]) -> dict:
    """Name -> one step of ``size`` parameters in ``tensors`` equal parts."""
    shape, generator = (max(size // tensors, 1),), np.random.default_rng(0)
    made = {}
    for name in names:
        for mode in modes:
            params = [keras.Variable(generator.normal(size=shape).astype("float32")) for _ in range(tensors)]
            grads = [tf.constant(generator.normal(size=shape).astype("float32")) for _ in range(tensors)]
            optimizer = OPTIMIZERS[name]()
            optimizer.build(params)
            made[f"{name} {mode}"] = stepper(optimizer, grads, params, mode)
    return made


def stepper(optimizer: keras.optimizers.Optimizer, grads: list, params: list, mode: str):
    """One step as a function without arguments; it returns when the new parameters are there."""

    def apply(row):
        optimizer.apply(row, params)

    if mode != "eager":
        apply = tf.function(apply, jit_compile=mode == "xla")

    def step():
        apply(grads)
        params[-1].value.value()[:1].numpy()

    return step


def main() -> None:
    parser = parser_of(__doc__.partition("\n")[0], tensors=10, rounds=15)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 25e6])
    parser.add_argument("--threads", type=int, default=0, help="0 is TensorFlow's choice")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    options = parser.parse_args()
    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    rows = {}
    for size in options.sizes:
        medians = compare(
            cases(int(size), options.tensors, options.optimizers, options.modes), options.rounds
        )
        fastest = min((name for name in medians if name.startswith("keras")), key=medians.get)
        rows[f"{size:.0e}"] = medians
        print(table({f"{size:.0e}": medians}, against=fastest), flush=True)
    if options.json:
        save(options.json, {"command": sys.argv[1:], "seconds": rows})


if __name__ == "__main__":
    main()
