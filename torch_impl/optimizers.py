"""Teachers and rules as ordinary ``torch.optim.Optimizer``: drop them into any training loop."""

import abc
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from common.errors import L2OError
from interchange.rule import Rule
from interchange.weights import Teacher, load_weights
from torch_impl.symbolic import lower
from torch_impl.teachers import TeacherNetwork

_LOOK_EVERY = 100  # steps between two looks of the host at the counters of skipped updates
_MOST_IN_A_ROW = 10
NonFinite = Literal["skip", "raise", "off"]


class NonFiniteError(RuntimeError):
    """Updates stayed non-finite."""


class _CoordinateOptimizer(torch.optim.Optimizer, abc.ABC):
    """theta += lr * u(g), one coordinate like another; what both optimizers below share.

    An update with a value that is not finite is skipped for its whole tensor, state included
    (FORMATS.md section 3, Non-finite updates).
    """

    _calls = 0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor,
        weight_decay: float,
        maximize: bool,
        nonfinite: NonFinite,
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not float(lr) >= 0.0:
            raise ValueError(f"lr: expected a number >= 0, got {lr}")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay: expected a number >= 0, got {weight_decay}")
        if nonfinite not in ("skip", "raise", "off"):
            raise ValueError(f"nonfinite: expected skip, raise or off, got {nonfinite!r}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "nonfinite": nonfinite,
            "differentiable": False,
        }
        super().__init__(params, defaults)

    @abc.abstractmethod
    def _zero_state(self, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Zero state for one parameter."""

    @abc.abstractmethod
    def _update(
        self, p: torch.Tensor, g: torch.Tensor, state: tuple[torch.Tensor, ...], t: int | torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Update u in the shape of ``p`` and the new state; ``t`` counts from 1."""

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss.

        Raises:
            RuntimeError: a gradient is sparse.
            NonFiniteError: updates stayed non-finite for 10 steps in a row.
        """
        self._calls += 1
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, group)
        return loss

    def _step_one(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        if p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients; use .to_dense()")
        state = self.state[p]
        work = torch.promote_types(p.dtype, torch.float32)
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["skipped"] = torch.zeros((), dtype=torch.int64, device=p.device)
            for i, array in enumerate(self._zero_state(p.to(work))):
                state[f"s{i}"] = array
        old = tuple(state[f"s{i}"] for i in range(len(state) - 2))
        theta, g = p.to(work), p.grad.to(work)
        t = state["step"] + 1 if p.is_cuda else int(state["step"]) + 1  # no synchronisation
        u, new = self._update(theta, -g if group["maximize"] else g, old, t)
        lr = group["lr"]
        if isinstance(lr, torch.Tensor):
            lr = lr.reshape(())  # one of shape [1] would give a 0-dim parameter a dimension
        if group["nonfinite"] != "off":
            ok = torch.isfinite(u).all()
            state["skipped"].copy_(torch.where(ok, 0, state["skipped"] + 1))
            look = group["nonfinite"] == "raise" or self._calls % _LOOK_EVERY == 0 or not p.is_cuda
            if look and not bool(ok):
                self._refuse(p, int(state["skipped"]), group["nonfinite"])
                return
            if not look:
                u = torch.where(ok, u, torch.zeros_like(u))
                new = tuple(torch.where(ok, a, b) for a, b in zip(new, old, strict=True))
                t = torch.where(ok, t, t - 1)
        p.copy_(theta * (1.0 - lr * group["weight_decay"]) + lr * u)
        state["step"].copy_(torch.as_tensor(t))
        for i, array in enumerate(new):
            state[f"s{i}"] = array

    def _refuse(self, p: torch.Tensor, in_a_row: int, mode: NonFinite) -> None:
        if mode == "raise" or in_a_row >= _MOST_IN_A_ROW:
            raise NonFiniteError(
                f"{type(self).__name__}: the update of a parameter of shape {tuple(p.shape)} was not finite "
                f"{in_a_row} times in a row; lower lr, or look for nan or inf in the gradients"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps the dtype it was saved in (torch casts it, pytorch#43706).

        State is copied: steps are counted in place, and two optimizers must not count together.
        """
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                self.state[p][key] = value.to(device=p.device, copy=True)


class SymbolicOptimizer(_CoordinateOptimizer):
    """A rule as an optimizer: theta += lr * scale * expression(g).

    Args:
        params: as for any torch optimizer.
        rule: a ``Rule`` or the path of a rule file.
        lr: multiplier on the rule's update; 1 is the rule as distilled or tuned.
        weight_decay: decoupled, theta *= 1 - lr * weight_decay.
        nonfinite: ``skip`` keeps a tensor whose update is not finite as it is, ``raise`` raises at once,
            ``off`` does not look.

    State per parameter: ``rule.state_floats`` arrays in its shape, float32 at least, and a step count.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule | str | os.PathLike[str],
        lr: float | torch.Tensor = 1.0,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        nonfinite: NonFinite = "skip",
    ) -> None:
        self.rule = rule if isinstance(rule, Rule) else Rule.load(rule)
        self._bind()
        super().__init__(params, lr, weight_decay, maximize, nonfinite)

    def _bind(self) -> None:
        missing = [name for name, node in self.rule.features.items() if node is None]
        if missing:
            raise L2OError(
                f"rule {self.rule.name!r}: feature {missing[0]!r} has no definition over g, so it can be "
                "evaluated on arrays only; add its expression under 'features'"
            )
        self._lowered = lower(self.rule)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule_json": self.rule.to_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "rule_json" in state:
            self.rule = Rule.from_json(state.pop("rule_json"))
            self._bind()
        super().__setstate__(state)

    def _zero_state(self, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._lowered.initial_state(p)

    def _update(
        self, p: torch.Tensor, g: torch.Tensor, state: tuple[torch.Tensor, ...], t: int | torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        (out,), state = self._lowered.step({"g": g, "theta": p, **self.rule.constants}, state, t)
        return self.rule.scale * torch.as_tensor(out, dtype=p.dtype, device=p.device).expand_as(p), state


class LearnedOptimizer(_CoordinateOptimizer):
    """A meta-trained teacher as an optimizer: theta += lr * scale * output(LSTM(features(g))).

    Args:
        params: as for any torch optimizer.
        teacher: a run folder, a ``teacher.h5`` file, or ``Teacher``.
        lr: multiplier on the teacher's update.
        weight_decay, maximize, nonfinite: as for ``SymbolicOptimizer``.

    State per parameter tensor of n elements: h and c of every cell, [hidden, n], and the features'.
    """

    def __init__(
        self,
        params: Iterable[Any],
        teacher: Teacher | str | os.PathLike[str],
        lr: float | torch.Tensor = 1.0,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        nonfinite: NonFinite = "skip",
    ) -> None:
        self._given = teacher if isinstance(teacher, Teacher) else load_weights(teacher)
        self._networks: dict[tuple[torch.dtype, torch.device], TeacherNetwork] = {}
        super().__init__(params, lr, weight_decay, maximize, nonfinite)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"teacher": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "teacher" in state:
            self._given, self._networks = state.pop("teacher"), {}
        super().__setstate__(state)

    def _network(self, p: torch.Tensor) -> TeacherNetwork:
        key = (p.dtype, p.device)
        if key not in self._networks:
            self._networks[key] = TeacherNetwork(self._given.row, self._given.weights, *key)
        return self._networks[key]

    def _zero_state(self, p: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zero = self._network(p).initial_state(p.reshape(-1))
        return zero.features + zero.network

    def _update(
        self, p: torch.Tensor, g: torch.Tensor, state: tuple[torch.Tensor, ...], t: int | torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        network = self._network(p)
        count = len(state) - 2 * len(network.teacher.lstm)
        x, features = network.features.step(g.reshape(-1), state[:count], t)
        out, hidden = network.step(network.weights, x, state[count:], t)
        return network.scale * out.view(p.shape), features + hidden
