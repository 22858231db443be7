"""Between NumPy and TensorFlow: dtype, device, flat vectors, and the state optimizers carry."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from common import __version__
from common.errors import L2OError

if keras.backend.backend() != "tensorflow":
    raise L2OError(
        f"Keras runs on {keras.backend.backend()}; expected tensorflow: unset KERAS_BACKEND or set it to it"
    )

Weights = dict[str, tf.Tensor]

CREATED_BY = f"symbolic-l2o {__version__}, tensorflow {tf.__version__}"
DTYPES = {"float32": tf.float32, "float64": tf.float64}


def device_of(name: str) -> str:
    """The device called ``name``; one that is not there raises ``L2OError``."""
    kind, _, number = name.partition(":")
    index = int(number) if number.isdigit() else 0
    known = {"cpu": "CPU", "cuda": "GPU"}
    if kind not in known or (number and not number.isdigit()):
        reason = "expected cpu or cuda"
    elif index >= len(tf.config.list_physical_devices(known[kind])):
        reason = f"TensorFlow sees no {known[kind]} {index}"
    else:
        return f"/{known[kind]}:{index}"
    raise L2OError(f"--device {name!r} cannot be used ({reason}); use --device cpu")


def to_tensor(array: np.ndarray, dtype: tf.DType, device: str = "cpu") -> tf.Tensor:
    """A tensor copy of a NumPy array, cast to ``dtype``."""
    with tf.device(device):
        return tf.constant(np.asarray(array), dtype=dtype)


def to_numpy(tensor: tf.Tensor) -> np.ndarray:
    """A NumPy copy of a tensor, detached and on the host; of bfloat16 one in float32."""
    tensor = tf.convert_to_tensor(tensor)
    return (tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy().copy()


def view(tensor: tf.Tensor | np.ndarray) -> np.ndarray:
    """An array that shares the memory of a tensor on the host, read-only; a copy of one elsewhere."""
    if isinstance(tensor, np.ndarray):
        return tensor
    # Python's buffers have no bfloat16.
    shared = on_host(tensor) and tensor.dtype != tf.bfloat16
    return np.asarray(memoryview(tensor)) if shared else tensor.numpy()


def on_host(tensor: tf.Tensor | np.ndarray) -> bool:
    """The values lie in this machine's memory, not in an accelerator's."""
    return isinstance(tensor, np.ndarray) or "CPU" in tensor.device


def flatten(arrays: Mapping[str, np.ndarray], dtype: tf.DType, device: str) -> tf.Tensor:
    """All arrays, in order, as one vector [N]."""
    return to_tensor(np.concatenate([np.ravel(array) for array in arrays.values()]), dtype, device)


def unflatten(vector: tf.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[tf.Tensor]:
    """Views of a vector [N] with the given shapes, in order."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    return [tf.reshape(part, shape) for part, shape in zip(tf.split(vector, sizes), shapes, strict=True)]
