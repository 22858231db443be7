"""Optimizers that leave coordinates alone whose step is not finite (FORMATS.md section 3)."""

import abc
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from interchange.language.view import View
from torch_impl.optimizers.base import CoordinateOptimizer, real, work
from torch_impl.optimizers.resuming import slots
from torch_impl.optimizers.ways import view_of, whole

_LOOK_EVERY = 100  # steps
_MOST_IN_A_ROW = 10  # looks at which a tensor is left alone as a whole
_ADVICE = "lower the learning rate, or look for nan or inf in the gradients"
NonFinite = Literal["skip", "raise", "off"]


class NonFiniteError(RuntimeError):
    """Steps stayed non-finite."""


class GuardedOptimizer(CoordinateOptimizer, abc.ABC):
    """A coordinate whose new value or state would not be finite is left alone, the others go on.

    A tensor's t advances unless all of it was left alone. At every 100th step (in mode ``raise`` at every
    one) the host looks: where coordinates were left alone a warning says so, once for every tensor;
    ``NonFiniteError`` says that a whole tensor was at ten looks in a row, or in mode ``raise`` any
    coordinate.
    """

    _calls = 0

    def _accepted(
        self,
        old: Tensor,
        moved: Tensor,
        state: tuple[Tensor, ...],
        new: tuple[Tensor, ...],
        view: View | None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | int]:
        if view is not None and _plainly_finite((moved, *new)):
            return moved, new, 0
        ok = _all_finite(moved, new, view)
        kept = tuple(torch.where(_as_in(ok, a, view), a, b) for a, b in zip(new, state, strict=True))
        return torch.where(ok, moved, old), kept, ok.numel() - _total(ok)

    def _stepped(self, compiling: bool) -> None:
        (self._look_between_graphs if compiling else self._look)()

    @torch.compiler.disable
    def _look_between_graphs(self) -> None:
        self._look()

    def _look(self) -> None:
        self._calls += 1
        due = self._calls % _LOOK_EVERY == 0
        groups = [group for group in self.param_groups if due or group["nonfinite"] == "raise"]
        if groups:
            self._look_at(groups, stepped=True)

    def check_finite(self) -> None:
        """Look now at how many coordinates the last step of every tensor left alone.

        Warns:
            RuntimeWarning: some were, once for every tensor.

        Raises:
            NonFiniteError: all of a tensor at ten looks in a row, or any with ``nonfinite="raise"``.
        """
        self._look_at(self.param_groups, stepped=False)

    @torch.no_grad()
    def _look_at(self, groups: Sequence[dict[str, Any]], stepped: bool) -> None:
        """A look at the parameters of groups, or at those only that the step just taken has stepped."""
        warned, looks = self.__dict__.setdefault("_warned", set()), self.__dict__.setdefault("_looks", {})
        for group in groups:
            for p in group["params"]:
                if group["nonfinite"] == "off" or (stepped and p.grad is None):
                    continue
                left = int(self.state[p].get("skipped", 0)) if p in self.state else 0
                size = (real(p)).numel()
                looks[p] = looks.get(p, 0) + 1 if left == size and size else 0
                if left and group["nonfinite"] == "raise":
                    raise NonFiniteError(f"{self._told(p, group, left, size)}; {_ADVICE}")
                if looks[p] >= _MOST_IN_A_ROW:
                    again = f", at {looks[p]} looks in a row"
                    raise NonFiniteError(f"{self._told(p, group, left, size)}{again}; {_ADVICE}")
                if left and p not in warned:
                    warned.add(p)
                    told = f"{self._told(p, group, left, size)}; {_ADVICE}"
                    warnings.warn(told, RuntimeWarning, stacklevel=2)

    def stuck(self) -> bool:
        """Whether the last step left every coordinate of every parameter alone."""
        params = [p for group in self.param_groups for p in group["params"]]
        taken = [(p, self.state[p]) for p in params if "step" in self.state.get(p, {})]
        return bool(taken) and all(int(s["skipped"]) == real(p).numel() > 0 for p, s in taken)

    def _told(self, p: Tensor, group: dict[str, Any], left: int, size: int) -> str:
        return (
            f"{type(self).__name__}: {left} of {size} coordinates of a parameter of shape {tuple(p.shape)} "
            f"were left alone, because {self._reason(p, group)} was not finite"
        )

    def _reason(self, p: Tensor, group: dict[str, Any]) -> str:
        """What was not finite: coordinates left alone have what they had, so it can be computed again."""
        values = self.state[p]
        if p.grad is not None:
            way = self._way(p, group)
            state = tuple(values[name] for name in slots(values))
            g, theta = real(p.grad.resolve_conj()), real(p.detach())
            if view_of(way) is not None:
                g, theta, *state = map(whole, (g, theta, *state))
            g, theta = work(g), work(theta)
            if not _every(torch.isfinite(g)):
                return "the gradient"
            t = max(1, int(values["step"]))
            u, new = self._update(theta, -g if group["maximize"] else g, tuple(state), t, group, way)
            if not _every(torch.isfinite(u)):
                return "the update"
            if not all(_every(torch.isfinite(a)) for a in new):
                return "the state"
        return "the moved parameter"


def _all_finite(moved: Tensor, new: tuple[Tensor, ...], view: View | None) -> Tensor:
    """Where moved parameter, which the update is in, and all of the new state are finite.

    A value kept for a row, a column or the tensor counts for all of its coordinates.
    """
    with torch.no_grad():
        ok = _finite(moved)
        for a in new:
            finite = _finite(a)
            if a.shape != ok.shape and view is not None:
                finite = finite.expand(view.split).reshape(ok.shape)
            elif a.shape != ok.shape:  # a value for every hidden unit of a coordinate
                finite = (finite.all(0) if a.dim() > 1 else finite).view(ok.shape)
            ok = ok & finite
        return ok


def _plainly_finite(arrays: Sequence[Tensor]) -> bool:
    """Whether sums alone, which take a pass over memory each, say that all is finite; on the host only."""
    if torch.compiler.is_compiling() or any(not a.is_cpu or a.requires_grad for a in arrays):
        return False
    return all(math.isfinite(a.sum()) for a in arrays)


def _finite(a: Tensor) -> Tensor:
    # Two passes over memory where isfinite takes four; a compiler would say that a * 0 is 0.
    return torch.isfinite(a) if torch.compiler.is_compiling() else a * 0 == 0


def _as_in(ok: Tensor, a: Tensor, view: View | None) -> Tensor:
    """``ok`` in a shape that goes with a state array: its own, [..., N], or that of a reduced one.

    What is kept for a row, a column or the tensor goes on where any of its coordinates does.
    """
    if a.shape == ok.shape:
        return ok
    if view is None:
        return ok.reshape(-1)
    over = tuple(k for k, n in enumerate(view.split) if n != a.shape[k])
    ok = ok.reshape(view.split)
    return ok.any(over, keepdim=True) if over else ok


def _total(ok: Tensor) -> Tensor:
    total = ok.sum()
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # of all shards


def _every(ok: Tensor) -> bool:
    ok = ok.all()
    return bool(ok.full_tensor() if hasattr(ok, "full_tensor") else ok)
