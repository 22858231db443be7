"""What the step hooks of a torch optimizer see of one run: gradient and output at chosen coordinates."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import torch

from common.data.coordinates import choose_coordinates, choose_tensors
from common.errors import L2OError
from interchange.language.view import View, chosen, outputs_first
from torch_impl.tensors import to_numpy

_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class _Part:
    """The coordinates of one parameter tensor: its number among all, and places i8 [n] in it."""

    number: int
    parameter: torch.Tensor
    places: torch.Tensor
    live: bool = True


class Tape:
    """One run as it goes on; only the chosen coordinates are kept, on their device until the end.

    Args:
        count, seed, index: as for ``choose_coordinates``; drawn at the first step that can be seen.
        steps: after which nothing more is recorded.
        include_lr: y is the whole move, the learning rate in it.
        whole: whole tensors are chosen, by ``choose_tensors``.

    Attributes:
        loss: the last one given, which is the next step's.
        y: outputs [n] so far, one per step.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        count: int,
        steps: int,
        seed: int,
        index: int,
        include_lr: bool,
        whole: bool = False,
    ) -> None:
        self._count, self._steps, self._address = count, steps, (seed, index)
        self._include_lr, self._whole = include_lr, whole
        self.source = _source(optimizer)
        self.loss: float | torch.Tensor | None = None
        self.y: list[torch.Tensor] = []
        self._g: list[torch.Tensor] = []
        self._theta: list[torch.Tensor] = []
        self._lr: list[np.ndarray] = []
        self._losses: list[float | torch.Tensor | None] = []
        self._parts: list[_Part] = []
        self._names: tuple[str, ...] = ()
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._views: tuple[View, ...] = ()
        self._seen: tuple[torch.Tensor, torch.Tensor, np.ndarray] | None = None
        self._like: dict[str, Any] = {}
        self._ended = False

    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """The hook before a step; a closure makes the gradient, so it is looked at once that has run."""
        self._seen = None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if self._ended or closure is None:
            return None if self._ended else self._look(optimizer)
        evaluations = 0

        def watched() -> Any:
            nonlocal evaluations
            evaluations += 1
            if evaluations > 1:
                raise L2OError(
                    f"{type(optimizer).__name__} evaluated its closure twice in a step; expected one "
                    "gradient per step: set max_iter=1, or record another optimizer"
                )
            loss = closure()
            if loss is not None:
                self.loss = one_number(loss)
            self._look(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, kwargs | {"closure": watched}

    @torch.no_grad()
    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradient, theta and lr at the coordinates, before the update."""
        rates = {}
        for group in optimizer.param_groups:
            rates |= dict.fromkeys(map(id, group["params"]), float(group["lr"]))
        if not self._parts:
            self._draw(optimizer, rates)
        pushed = [part for part in self._parts if part.live and part.parameter.grad is not None]
        moving = {id(part): part for part in pushed if rates.get(id(part.parameter))}
        if not moving:  # without a gradient an optimizer rests; at lr 0 what it does cannot be seen
            self._ended = bool(pushed)
            return
        for part in self._parts:
            if part.live and id(part) not in moving:
                part.live = False
                name = self._names[part.number]
                _log.warning("%s is dropped from step %d on: no gradient, or lr 0", name, len(self.y) + 1)
        for part in moving.values():
            _check(part.parameter, self._names[part.number])
        # What is dropped keeps its columns until the end, filled with anything.
        g = self._pick([part.parameter.grad if part.live else part.parameter for part in self._parts])
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers unscale within their step
        if scale is not None:
            g = g / scale.to(g)
        sizes = [len(part.places) for part in self._parts]
        lr = np.repeat([rates[id(part.parameter)] if part.live else 1.0 for part in self._parts], sizes)
        self._seen = g, self._pick([part.parameter for part in self._parts]), lr

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The hook after a step."""
        del args, kwargs
        if self._seen is None:
            return
        (g, theta, lr), self._seen = self._seen, None
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and float(overflow):
            return  # a fused optimizer skipped the step
        move = self._pick([part.parameter for part in self._parts]) - theta
        self.y.append(move if self._include_lr else move / torch.from_numpy(lr).to(g))
        self._g.append(g)
        self._theta.append(theta)
        self._lr.append(lr)
        self._losses.append(self.loss)
        self._ended = len(self.y) == self._steps

    def _draw(self, optimizer: torch.optim.Optimizer, rates: dict[int, float]) -> None:
        """Choose coordinates from the tensors that have a gradient and an lr."""
        named: list[tuple[str, torch.Tensor]] = []
        views: list[View] = []
        for group in optimizer.param_groups:
            numbers = range(len(named), len(named) + len(group["params"]))
            names = group.get("param_names") or [f"param_{k}" for k in numbers]
            named += zip(names, group["params"], strict=True)
            shapes = [tuple(p.shape) for p in group["params"]]
            views += [chosen(shape, group.get("matrix"), outputs_first(shape)) for shape in shapes]
        ready = [k for k, (_, p) in enumerate(named) if p.grad is not None and rates[id(p)] and p.numel()]
        if not ready:
            return
        self._names = tuple(name for name, _ in named)
        self._shapes, self._views = tuple(tuple(p.shape) for _, p in named), tuple(views)
        sizes = [named[k][1].numel() for k in ready]
        choose = choose_tensors if self._whole else choose_coordinates
        drawn = choose(sizes, self._count, *self._address)
        starts = np.cumsum([0, *sizes])
        for k, start, end in zip(ready, starts[:-1], starts[1:], strict=True):
            places = drawn[(drawn >= start) & (drawn < end)] - start
            if len(places):
                parameter = named[k][1]
                self._parts.append(_Part(k, parameter, torch.from_numpy(places).to(parameter.device)))
        wide = any(part.parameter.dtype == torch.float64 for part in self._parts)
        self._like = {
            "dtype": torch.float64 if wide else torch.float32,
            "device": self._parts[0].parameter.device,
        }

    def _pick(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The coordinates [n] of one tensor per part, without a copy of the tensors."""
        pairs = zip(tensors, self._parts, strict=True)
        return torch.cat([torch.take(t, part.places).to(**self._like) for t, part in pairs])

    def arrays(self) -> tuple[dict[str, np.ndarray], np.ndarray, bool]:
        """g, y, theta and lr [step, n], losses f8 [step], and whether a loss was ever given."""
        kept = self._per_coordinate([part.live for part in self._parts])
        seen = {"g": self._g, "y": self.y, "theta": self._theta}
        arrays = {name: to_numpy(torch.stack(rows))[:, kept] for name, rows in seen.items()}
        arrays["lr"] = np.stack(self._lr)[:, kept]
        given = [loss for loss in self._losses if loss is not None]
        before = [*given, 0.0][0]
        losses = [float(before if loss is None else loss) for loss in self._losses]
        return arrays, np.asarray(losses), bool(given)

    def places(self) -> dict[str, Any]:
        """Where the coordinates are, by the names of a run's fields."""
        parts = [part for part in self._parts if part.live]
        return {
            "param_index": np.repeat([part.number for part in parts], [len(part.places) for part in parts]),
            "flat_index": np.concatenate([to_numpy(part.places) for part in parts]),
            "params_names": self._names,
            "params_shapes": self._shapes,
            "params_views": self._views if self._whole else None,
        }

    def _per_coordinate(self, values: list[Any]) -> np.ndarray:
        return np.repeat(values, [len(part.places) for part in self._parts])


def one_number(value: Any) -> float | torch.Tensor:
    """A loss as a number or, not to wait for the device, a 0-dim tensor."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if value.numel() != 1:
        raise L2OError(f"loss: expected one number, got shape {tuple(value.shape)}; take its mean")
    return value.detach().reshape(())


def _check(parameter: torch.Tensor, name: str) -> None:
    if parameter.grad.layout != torch.strided:
        raise L2OError(f"{name}: expected a dense gradient, got a sparse one; set sparse=False")
    if not parameter.is_floating_point():
        raise L2OError(f"{name}: expected real floating point, got {parameter.dtype}; leave it out")


def _source(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's class and settings, JSON-ready; what is neither number, flag nor text is left out."""

    def plain(value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(plain, value))
        return isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))

    lr = {"lr": float(optimizer.param_groups[0]["lr"])}
    settings = {k: v for k, v in optimizer.defaults.items() if plain(v)}
    return {"name": type(optimizer).__name__} | settings | lr
