"""Meta-training in several processes, started by ``torchrun``: gloo on CPU, NCCL between GPUs."""

import atexit
import datetime
from collections.abc import Mapping

import numpy as np
import torch
from torch import distributed

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
    place = shared.place("torch")
    return Workers(place, device) if place.size > 1 else Alone(place)


class Workers(shared.Workers):
    """The processes that were started together, as one of them sees them.

    Args:
        place, device: of this one.
    """

    def __init__(self, place: Place, device: str) -> None:
        super().__init__(place)
        self._local = place.local
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        if gpus and device == "cuda" and place.local < torch.cuda.device_count():
            torch.cuda.set_device(place.local)
        self._ours = not distributed.is_initialized()  # there is one group in a process's life
        if not self._ours:
            return
        wait = datetime.timedelta(seconds=shared.patience())
        try:
            store, _, _ = next(distributed.rendezvous("env://", place.rank, place.size, timeout=wait))
            # torchrun's store may outlive a restart; what the workers before wrote must not be found.
            store = distributed.PrefixStore(f"start_{place.restarts}", store)
            kind = "cpu:gloo,cuda:nccl" if gpus else "gloo"
            distributed.init_process_group(
                kind, store=store, rank=place.rank, world_size=place.size, timeout=wait
            )
        except ValueError as error:
            raise L2OError(f"workers cannot meet ({error}); start them by torchrun") from None
        except RuntimeError as error:
            raise shared.lost(error) from None
        atexit.register(self.close)

    def sum(
        self, tensors: Mapping[str, torch.Tensor], numbers: np.ndarray
    ) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        parts = [tensor.detach().reshape(-1) for tensor in tensors.values()]
        target = parts[0].device if parts else torch.device("cpu")
        ours = torch.as_tensor(numbers, dtype=torch.float64)
        flat = torch.cat([part.to(target, torch.float64) for part in [*parts, ours]])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise shared.lost(error) from None
        *sums, totals = torch.split(flat, [*(part.numel() for part in parts), ours.numel()])
        found = {
            name: part.view(tensor.shape).to(tensor.dtype)
            for (name, tensor), part in zip(tensors.items(), sums, strict=True)
        }
        return found, totals.cpu().numpy().copy()

    def spread(self, data: np.ndarray) -> np.ndarray:
        tensor = torch.tensor(data, dtype=torch.uint8)
        try:
            distributed.broadcast(tensor, 0)
        except RuntimeError as error:
            raise shared.lost(error) from None
        return tensor.numpy()

    def device(self, name: str) -> str:
        return f"cuda:{self._local}" if name == "cuda" else name

    def close(self) -> None:
        if self._ours and distributed.is_initialized():
            distributed.destroy_process_group()
