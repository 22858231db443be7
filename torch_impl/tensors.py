"""Between NumPy and torch: dtype, device, flat vectors, and the state optimizers carry."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from common import __version__
from common.errors import L2OError

Weights = dict[str, torch.Tensor]

CREATED_BY = f"symbolic-l2o {__version__}, torch {torch.__version__}"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def device_of(name: str) -> torch.device:
    """The device called ``name``; one that is not there raises ``L2OError``."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("expected cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise L2OError(f"--device {name!r} cannot be used ({reason}); use --device cpu") from None
    return device


def to_tensor(array: np.ndarray, dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor copy of a NumPy array, cast to ``dtype``."""
    return torch.tensor(np.asarray(array), dtype=dtype, device=device)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A NumPy copy of a tensor, detached and on the host; of bfloat16 one in float32."""
    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    return tensor.detach().cpu().numpy().copy()


def flatten(arrays: Mapping[str, np.ndarray], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """All arrays, in order, as one vector [N]."""
    return torch.cat([to_tensor(array, dtype, device).reshape(-1) for array in arrays.values()])


def unflatten(vector: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """Views of a vector [N] with the given shapes, in order."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    return [part.view(shape) for part, shape in zip(torch.split(vector, sizes), shapes, strict=True)]
