"""Record a training loop of one's own, which stays as it is: ``recorder = Recorder(optimizer)`` before the
loop, ``recorder.save("trajectories.h5")`` after it.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.errors import L2OError
from interchange.files.recording import Recording
from torch_impl.networks.features import FeatureStream
from torch_impl.recording.hooks import Tape, one_number
from torch_impl.tensors import CREATED_BY, to_numpy

_log = logging.getLogger(__name__)


class Recorder(Recording):
    """Records what any torch optimizer sees and does, by its step hooks, as a file of trajectories.

    Args:
        optimizer: a fresh one: features are recorded as starting from zero.
        features: names of the table, such as ``g+m_tilde+g_tilde`` (with a teacher's usual decays), or
            name -> expression over ``g`` and ``t``.
        coordinates: how many of a run, in equal shares from every parameter tensor that has a gradient at
            the first step.
        steps: of a run that are recorded, its first ones.
        problem: a name for what is optimized.
        seed: of the choice of coordinates.
        include_lr: leave the learning rate in y, so that a schedule is part of what is distilled.
        whole_tensors: of as many tensors as ``coordinates`` reaches for, every coordinate, and how rules see
            them, so that a rule that sees tensors can be evaluated on the file (interchange.files.whole).

    The gradient is the one the optimizer is given, so clipped and unscaled as it may be. y is (theta after -
    theta before) / lr: weight decay is in it, and theta's rounding; it is 0 where the optimizer left a
    coordinate alone. theta and lr are recorded beside it. A run ends before its first gradient, feature,
    output or loss that is not finite, and its ``outcome`` says so. A tensor that loses its gradient or its lr
    is dropped from the run. Places count in torch's own layout, a convolution's being [out, in, kh, kw], not
    in the canonical one.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        features: str | Mapping[str, str] = "g",
        coordinates: int = 100,
        steps: int = 300,
        problem: str = "user",
        seed: int = 0,
        include_lr: bool = False,
        whole_tensors: bool = False,
    ) -> None:
        super().__init__(features, coordinates, steps, problem, seed, include_lr, whole_tensors, CREATED_BY)
        self._tape: Tape | None = None
        self._hooks: list[Any] = []
        self.start_run(optimizer)

    def start_run(self, optimizer: torch.optim.Optimizer) -> None:
        """End the run so far and begin another, with the fresh optimizer of a fresh model."""
        self._end_run()
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise L2OError(f"expected a torch.optim.Optimizer to record, got {type(optimizer).__name__}")
        inner = _inner(optimizer)
        if any(float(state.get("step", 1)) for state in inner.state.values() if state):
            _log.warning("the optimizer has taken steps already; features are recorded as starting from zero")
        tape = Tape(
            inner,
            self._coordinates,
            self._steps,
            self._seed,
            len(self._runs),
            self._include_lr,
            self._whole,
        )
        self._tape = tape
        # A compiled step calls them outside of its graphs.
        self._hooks = [
            inner.register_step_pre_hook(torch.compiler.disable(tape.before)),
            inner.register_step_post_hook(torch.compiler.disable(tape.after)),
        ]

    def loss(self, value: float | torch.Tensor) -> None:
        """The loss of the optimizer's next step; one that a closure returns need not be given.

        A step without one takes the last given, the first steps the first. Where none is ever given, zeros
        are written and the run's ``outcome`` says so.
        """
        if self._tape is not None:
            self._tape.loss = one_number(value)

    def _end_run(self) -> None:
        for hook in self._hooks:
            hook.remove()
        tape, self._tape, self._hooks = self._tape, None, []
        if tape is not None and tape.y:
            arrays, losses, given = tape.arrays()
            self._keep(arrays, losses, given, tape.source, tape.places())

    def _inputs(self, g: np.ndarray) -> np.ndarray:
        stream, rows = FeatureStream(self._features), torch.from_numpy(g)
        x, state = [], stream.initial_state(rows[0])
        for t, row in enumerate(rows, 1):
            values, state = stream.step(row, state, t)
            x.append(to_numpy(values.T))
        return np.stack(x)


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer whose steps have hooks, within wrappers whose own have none, as those of accelerate."""
    held: Any = optimizer
    for _ in range(8):
        if hasattr(held, "_optimizer_step_pre_hooks") and getattr(type(held).step, "hooked", False):
            return held
        own = map(vars(held).get, ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer"))
        held = next((one for one in own if isinstance(one, torch.optim.Optimizer)), None)
        if held is None:
            break
    raise L2OError(
        f"{type(optimizer).__name__}: expected an optimizer whose steps have hooks, got a wrapper without; "
        "give the optimizer it steps"
    )
