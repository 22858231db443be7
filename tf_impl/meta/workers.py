"""Meta-training in several processes, as ``TF_CONFIG`` lists them: ``MultiWorkerMirroredStrategy``."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import L2OError
from interchange.meta import workers as shared
from interchange.meta.workers import Alone, Place


def join(device: str) -> shared.Workers:
    """The workers of this process's environment, once all are there; ``Alone`` where there is one.

    Args:
        device: what they compute on, as on the command line.

    Raises:
        L2OError: the others do not come.
    """
    place = shared.place("tf")
    return Workers(place, device) if place.size > 1 else Alone(place)


class Workers(shared.Workers):
    """The processes that were started together, as one of them sees them.

    Args:
        place, device: of this one.
    """

    def __init__(self, place: Place, device: str) -> None:
        super().__init__(place)
        try:
            self._floats, self._integers = _meet(device, shared.patience())
        except RuntimeError as error:  # TensorFlow has run something already
            raise L2OError(
                f"workers must meet before TensorFlow computes anything ({error}); build models and tasks "
                "later, when train asks for them"
            ) from None
        except (tf.errors.OpError, ValueError) as error:
            raise shared.lost(error) from None

    def sum(
        self, tensors: Mapping[str, tf.Tensor], numbers: np.ndarray
    ) -> tuple[dict[str, tf.Tensor], np.ndarray]:
        parts = [tf.reshape(tf.cast(tensor, tf.float64), [-1]) for tensor in tensors.values()]
        flat = tf.concat([*parts, tf.constant(numbers, dtype=tf.float64)], 0)
        try:
            summed = self._floats(flat)
        except tf.errors.OpError as error:
            raise shared.lost(_first_line(error)) from None
        sizes = [*(math.prod(part.shape) for part in parts), len(numbers)]
        *sums, totals = tf.split(summed, sizes)
        found = {
            name: tf.cast(tf.reshape(part, tensor.shape), tensor.dtype)
            for (name, tensor), part in zip(tensors.items(), sums, strict=True)
        }
        return found, totals.numpy()

    def spread(self, data: np.ndarray) -> np.ndarray:
        ours = np.zeros(-(-data.size // 4) * 4, dtype=np.uint8)  # there is no sum of bytes
        if self.leads:
            ours[: data.size] = data
        try:
            summed = self._integers(tf.constant(ours.view(np.int32)))
        except tf.errors.OpError as error:
            raise shared.lost(_first_line(error)) from None
        return summed.numpy().view(np.uint8)[: data.size]

    def device(self, name: str) -> str:
        return "cuda:0" if name.startswith("cuda:") else name  # the one that ``_show_one`` left

    def close(self) -> None:
        pass


@functools.lru_cache(maxsize=1)
def _meet(device: str, seconds: float) -> tuple[Callable[..., tf.Tensor], ...]:
    """Wait for the other workers; sums of float64 and of int32 vectors over all.

    Once for all trainings of a process: when the same workers meet again, their first sum may never end.
    """
    kind = tf.distribute.experimental.CommunicationImplementation
    chosen = kind.AUTO if device.startswith("cuda") else kind.RING
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=seconds, implementation=chosen)
    _show_one(device)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return tuple(_reducer(strategy, options, dtype) for dtype in (tf.float64, tf.int32))


def _reducer(strategy: tf.distribute.Strategy, options: Any, dtype: tf.DType) -> Callable[..., tf.Tensor]:
    """A compiled sum of vectors [n] over all workers."""

    def reduce(values: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # The identity puts them on the replica's device; without one TensorFlow does not know where to sum.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(values), options)

    @tf.function(input_signature=[tf.TensorSpec([None], dtype)])
    def summed(values: tf.Tensor) -> tf.Tensor:
        return strategy.run(reduce, args=(values,))

    return summed


def _show_one(device: str) -> None:
    """Leave TensorFlow the GPU it computes on, or none: every one it sees would be a worker of its own."""
    gpus = tf.config.list_physical_devices("GPU")
    kind, _, number = device.partition(":")
    index = int(number) if number.isdigit() else 0
    tf.config.set_visible_devices(gpus[index : index + 1] if kind == "cuda" else [], "GPU")


def _first_line(error: tf.errors.OpError) -> str:
    """What TensorFlow says, without the stack of its graph."""
    lines = [line for line in error.message.splitlines() if line.strip()]
    return next((line for line in lines if "ollective" in line and "Detected" not in line), lines[0])
