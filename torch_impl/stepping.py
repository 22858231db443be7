"""What optimizers over single coordinates share: settings, lazy state, the guard, and how a step is taken."""

import abc
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch.optim.optimizer import _use_grad_for_differentiable

from torch_impl.resuming import FLAGS, Resumable

_LOOK_EVERY = 100  # steps between two looks of the host at the counters of skipped updates
_MOST_IN_A_ROW = 10
NonFinite = Literal["skip", "raise", "off"]
Tensor = torch.Tensor
_ONE = torch.ones(())  # to add it is faster than to add 1.0


class NonFiniteError(RuntimeError):
    """Updates stayed non-finite."""


class CoordinateOptimizer(Resumable, abc.ABC):
    """theta += lr * u(g), one coordinate like another.

    An update with a value that is not finite is skipped for its whole tensor, state and weight decay included
    (FORMATS.md section 3). On the host that is decided at once; on an accelerator, under ``torch.compile``
    and with ``capturable`` by masks, and the host looks at the counters every 100 steps.
    """

    _calls = 0

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        weight_decay: float,
        nonfinite: NonFinite,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "nonfinite": nonfinite, **FLAGS, **options}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; settings that make no sense are ``ValueError``."""
        if isinstance(param_group, dict):
            _check_settings(self.defaults | param_group)
        super().add_param_group(param_group)

    @abc.abstractmethod
    def _zero_state(self, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
        """Zero state for one parameter."""

    @abc.abstractmethod
    def _update(
        self, p: Tensor, g: Tensor, state: tuple[Tensor, ...], t: int | Tensor, group: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Update u in the shape of ``p`` and the new state; ``t`` counts from 1."""

    def _many(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[tuple[Tensor, ...]],
        steps: list[int],
    ) -> list[bool] | None:
        """All tensors of a group at once, on the host; which ones were finite. None: one by one, please."""
        return None

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss.

        Raises:
            RuntimeError: a gradient is sparse.
            NonFiniteError: updates stayed non-finite for 10 steps in a row.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            steps: list[Tensor] = []
            skipped: list[Tensor] = []
            arrays: list[Tensor] = []
            self._init_group(group, params, grads, steps, skipped, arrays)
            if params:
                self._step_group(group, params, grads, steps, skipped, arrays)
        (self._look_between_graphs if torch.compiler.is_compiling() else self._look)()
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        steps: list[Tensor],
        skipped: list[Tensor],
        arrays: list[Tensor],
    ) -> None:
        """Fill the lists; dynamo runs this when it traces a step, so that no state is made in a graph."""
        for p in group["params"]:
            g = p.grad
            if g is None:
                continue
            if g.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients; use .to_dense()"
                )
            state = self.state[p]
            if not state:
                zero = self._zero_state(_work(_real(p.detach())), group)
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["skipped"] = torch.zeros((), dtype=torch.int64, device=p.device)
                state.update({f"s{i}": array for i, array in enumerate(zero)})
            params.append(p)
            grads.append(g)
            steps.append(state["step"])
            skipped.append(state["skipped"])
            arrays += [state[f"s{i}"] for i in range(len(state) - 2)]

    def _step_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        steps: list[Tensor],
        skipped: list[Tensor],
        arrays: list[Tensor],
    ) -> None:
        count = len(arrays) // len(params)
        states = [tuple(arrays[i * count : (i + 1) * count]) for i in range(len(params))]
        compiling = torch.compiler.is_compiling()
        if not compiling and group["foreach"] is not False and not group["differentiable"]:
            plain = not group["capturable"] and all(map(_plain, params)) and all(map(_plain, grads))
            if plain and self._step_many(group, params, grads, states, steps, skipped):
                return
        for p, g, step, skips, state in zip(params, grads, steps, skipped, states, strict=True):
            values = self.state[p] if group["differentiable"] else None
            p, g = _real(p), _real(g)
            if compiling or group["capturable"] or step.device.type != "cpu":
                self._step_masked(group, p, g, step, skips, state)
            else:
                self._step_one(group, p, g, step, skips, state, values)

    def _step_many(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        states: list[tuple[Tensor, ...]],
        steps: list[Tensor],
        skipped: list[Tensor],
    ) -> bool:
        if any(p.is_complex() for p in params):
            params, grads = list(map(_real, params)), list(map(_real, grads))
        times = [int(step.item()) + 1 for step in steps]
        accepted = self._many(group, params, grads, states, times)
        if accepted is None:
            return False
        for step, skips, ok in zip(steps, skipped, accepted, strict=True):
            if ok:
                step.add_(_ONE)
                if skips.item():
                    skips.zero_()
        if not all(accepted):  # after the others have been counted, because this may raise
            for p, skips, ok in zip(params, skipped, accepted, strict=True):
                if not ok:
                    self._skip(p, skips, group)
        return True

    def _step_one(
        self,
        group: dict[str, Any],
        p: Tensor,
        g: Tensor,
        step: Tensor,
        skips: Tensor,
        state: tuple[Tensor, ...],
        values: dict[str, Tensor] | None,
    ) -> None:
        """One tensor on the host; ``values`` takes the new state where gradients have to flow through it."""
        t = int(step) + 1
        theta = _work(p.clone() if values is not None else p)
        u, new = self._update(theta, -_work(g) if group["maximize"] else _work(g), state, t, group)
        if group["nonfinite"] != "off":
            if not _all_finite(u):
                self._skip(p, skips, group)
                return
            skips.zero_()
        p.copy_(_moved(theta, u, group))
        step.fill_(t)
        if values is not None:
            values.update({f"s{i}": array for i, array in enumerate(new)})
            return
        # Backwards: a lag takes over the old value of the slot before it.
        for old, array in zip(reversed(state), reversed(new), strict=True):
            old.copy_(array)

    def _step_masked(
        self,
        group: dict[str, Any],
        p: Tensor,
        g: Tensor,
        step: Tensor,
        skips: Tensor,
        state: tuple[Tensor, ...],
    ) -> None:
        """One tensor without waiting for its device."""
        theta, t = _work(p), step.to(torch.float64) + 1.0  # what is computed from t is not float32 either
        u, new = self._update(theta, -_work(g) if group["maximize"] else _work(g), state, t, group)
        moved = _moved(theta, u, group)
        if group["nonfinite"] != "off":
            ok = (u * 0.0).sum() == 0.0  # all finite; as a sum of floats it is one vectorized reduction
            moved, t = torch.where(ok, moved, theta), torch.where(ok, t, step)
            new = tuple(torch.where(ok, a, b) for a, b in zip(new, state, strict=True))
            skips.copy_(torch.where(ok, 0, skips + 1))
        p.copy_(moved)
        step.copy_(t)
        for old, array in zip(reversed(state), reversed(new), strict=True):
            old.copy_(array)

    def _skip(self, p: Tensor, skips: Tensor, group: dict[str, Any]) -> None:
        skips.add_(1)
        if group["nonfinite"] == "raise" or int(skips) >= _MOST_IN_A_ROW:
            raise self._stuck(p, int(skips))

    def _stuck(self, p: Tensor, in_a_row: int) -> NonFiniteError:
        return NonFiniteError(
            f"{type(self).__name__}: the update of a parameter of shape {tuple(p.shape)} was not finite "
            f"{in_a_row} times in a row; lower lr, or look for nan or inf in the gradients"
        )

    @torch.compiler.disable
    def _look_between_graphs(self) -> None:
        self._look()

    def _look(self) -> None:
        self._calls += 1
        if self._calls % _LOOK_EVERY == 0 or any(
            group["nonfinite"] == "raise" for group in self.param_groups
        ):
            self.check_finite()

    def check_finite(self) -> None:
        """Raise ``NonFiniteError`` where the last updates of a tensor were skipped 10 times in a row."""
        for group in self.param_groups:
            most = 1 if group["nonfinite"] == "raise" else _MOST_IN_A_ROW
            for p in group["params"]:
                if p in self.state and int(self.state[p].get("skipped", 0)) >= most:
                    raise self._stuck(p, int(self.state[p]["skipped"]))


def number(value: float | Tensor) -> float:
    """A setting that may be a tensor, as a float."""
    return value.detach().item() if isinstance(value, Tensor) else float(value)


def _check_settings(group: dict[str, Any]) -> None:
    lr, weight_decay, nonfinite = group["lr"], group["weight_decay"], group["nonfinite"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not number(lr) >= 0.0:
        raise ValueError(f"lr: expected a number >= 0, got {lr}")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay: expected a number >= 0, got {weight_decay}")
    if nonfinite not in ("skip", "raise", "off"):
        raise ValueError(f"nonfinite: expected skip, raise or off, got {nonfinite!r}")


def _plain(x: Tensor) -> bool:
    """A tensor whose memory torch's CPU kernels may be given."""
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def _real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of coordinates."""
    return torch.view_as_real(x) if x.is_complex() else x


def _work(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _moved(theta: Tensor, u: Tensor, group: dict[str, Any]) -> Tensor:
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(())  # one of shape [1] would give a 0-dim parameter a dimension
    return theta * (1.0 - lr * group["weight_decay"]) + lr * u


def _all_finite(u: Tensor) -> bool:
    ok = torch.isfinite(u).all()
    return bool(ok.full_tensor() if hasattr(ok, "full_tensor") else ok)
