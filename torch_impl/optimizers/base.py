"""What optimizers over single coordinates share: settings, lazy state, the guard, and how a step is taken."""

import abc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch.optim.optimizer import _use_grad_for_differentiable

from torch_impl.optimizers.resuming import FLAGS, Resumable

_LOOK_EVERY = 100  # steps between two looks of the host at what was left alone
_MOST_IN_A_ROW = 10  # looks
_PART = 2**16  # coordinates that are stepped at once, without compiled code
_ADVICE = "lower the learning rate, or look for nan or inf in the gradients"
NonFinite = Literal["skip", "raise", "off"]
Tensor = torch.Tensor


class NonFiniteError(RuntimeError):
    """Updates stayed non-finite."""


class CoordinateOptimizer(Resumable, abc.ABC):
    """theta += lr * u(g), one coordinate like another.

    A coordinate whose update, new state or moved parameter is not finite is left alone, its state and weight
    decay included (FORMATS.md section 3); the host looks every 100 steps at how many were (``check_finite``).
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

    def _step_again(self, group: dict[str, Any]) -> bool:
        """A step by compiled code where nothing but gradients has changed since the last one; else False."""
        return False

    def _step_compiled(self, group: dict[str, Any], tensors: tuple[list[Tensor], ...]) -> Sequence[int]:
        """A step of what compiled code can take, of the lists of ``_init_group``; the numbers not taken."""
        return range(len(tensors[0]))

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss.

        Raises:
            RuntimeError: a gradient is sparse.
            NonFiniteError: as ``check_finite``, every 100th step; with ``nonfinite="raise"`` every step.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse()
        compiling = torch.compiler.is_compiling()
        for group in self.param_groups:
            if not compiling and _by_code(group) and self._step_again(group):
                continue
            params: list[Tensor] = []
            grads: list[Tensor] = []
            steps: list[Tensor] = []
            skipped: list[Tensor] = []
            arrays: list[Tensor] = []
            self._init_group(group, params, grads, steps, skipped, arrays)
            if params:
                self._step_group(group, (params, grads, steps, skipped, arrays), compiling)
        (self._look_between_graphs if compiling else self._look)()
        return loss

    def _refuse_sparse(self) -> None:
        """Before anything is changed."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} does not support sparse gradients; use .to_dense()"
                    )

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
            state = self.state[p]
            if not state:
                zero = self._zero_state(_work(real(p.detach())), group)
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["skipped"] = torch.zeros((), dtype=torch.int64, device=p.device)
                state.update({f"s{i}": array for i, array in enumerate(zero)})
            params.append(p)
            grads.append(g)
            steps.append(state["step"])
            skipped.append(state["skipped"])
            arrays += [state[f"s{i}"] for i in range(len(state) - 2)]

    def _step_group(self, group: dict[str, Any], tensors: tuple[list[Tensor], ...], compiling: bool) -> None:
        params, grads, steps, skipped, arrays = tensors
        numbers: Sequence[int] = range(len(params))
        if not compiling and _by_code(group):
            numbers = self._step_compiled(group, tensors)
        count = len(arrays) // len(params)
        for k in numbers:
            p, g, step = real(params[k]), real(grads[k].resolve_conj()), steps[k]
            waits = compiling or group["capturable"] or step.device.type != "cpu"
            # What is computed from t is not float32 either.
            t = step.to(torch.float64) + 1.0 if waits else int(step) + 1
            values = self.state[params[k]] if group["differentiable"] else None
            state = tuple(arrays[k * count : (k + 1) * count])
            self._step_one(group, p, g, t, step, skipped[k], state, values)

    def _step_one(
        self,
        group: dict[str, Any],
        p: Tensor,
        g: Tensor,
        t: int | Tensor,
        step: Tensor,
        skips: Tensor,
        state: tuple[Tensor, ...],
        values: dict[str, Tensor] | None,
    ) -> None:
        """Step ``t`` of one tensor; ``values`` takes the new state where gradients flow through it."""
        whole = values is not None or isinstance(t, Tensor)
        left: Tensor | int = 0
        for part in [(p, g, state)] if whole else _parts(p, g, state):
            left = left + self._write(group, *part, t, values)
        if group["nonfinite"] == "off":
            step.add_(1.0)
            skips.zero_()
            return
        skips.copy_(left)
        # A tensor of which nothing moved has taken no step.
        step.add_(left < p.numel() if p.numel() else 1.0)

    def _write(
        self,
        group: dict[str, Any],
        p: Tensor,
        g: Tensor,
        state: tuple[Tensor, ...],
        t: int | Tensor,
        values: dict[str, Tensor] | None,
    ) -> Tensor | int:
        """Parameter and state after a step; how many coordinates were left alone."""
        old = p.clone() if values is not None else p
        theta, g = _work(old), -_work(g) if group["maximize"] else _work(g)
        u, new = self._update(theta, g, state, t, group)
        moved, left = _moved(theta, u, group).to(p.dtype), 0
        if group["nonfinite"] != "off":
            ok = _accepted(moved, new)
            moved = torch.where(ok, moved, old)
            new = tuple(torch.where(_as_in(ok, a), a, b) for a, b in zip(new, state, strict=True))
            left = ok.numel() - _total(ok)
        p.copy_(moved)
        if values is not None:
            values.update({f"s{i}": array for i, array in enumerate(new)})
            return left
        # Backwards: a lag takes over the old value of the slot before it.
        for before, array in zip(reversed(state), reversed(new), strict=True):
            before.copy_(array)
        return left

    @torch.compiler.disable
    def _look_between_graphs(self) -> None:
        self._look()

    def _look(self) -> None:
        self._calls += 1
        if self._calls % _LOOK_EVERY == 0 or any(
            group["nonfinite"] == "raise" for group in self.param_groups
        ):
            self._look_at(stepped=True)

    def check_finite(self) -> None:
        """Look at how many coordinates the last step left alone, as every 100th step does.

        Warns:
            RuntimeWarning: some were, once for every tensor.

        Raises:
            NonFiniteError: all of a tensor at ten looks in a row, or any with ``nonfinite="raise"``.
        """
        self._look_at(stepped=False)

    @torch.no_grad()
    def _look_at(self, stepped: bool) -> None:
        """A look at all parameters, or at those only that the step just taken has stepped."""
        warned, looks = self.__dict__.setdefault("_warned", set()), self.__dict__.setdefault("_looks", {})
        for group in self.param_groups:
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
        taken = [
            (p, self.state[p]) for group in self.param_groups for p in group["params"] if self.state.get(p)
        ]
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
            g, theta = _work(real(p.grad.resolve_conj())), _work(real(p.detach()))
            if not _every(torch.isfinite(g)):
                return "the gradient"
            state = tuple(values[f"s{i}"] for i in range(len(values) - 2))
            t = max(1, int(values["step"]))
            u, new = self._update(theta, -g if group["maximize"] else g, state, t, group)
            if not _every(torch.isfinite(u)):
                return "the update"
            if not all(_every(torch.isfinite(a)) for a in new):
                return "the state"
        return "the moved parameter"


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


def _by_code(group: dict[str, Any]) -> bool:
    return not (group["capturable"] or group["differentiable"] or group["foreach"] is False)


def real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of coordinates."""
    return torch.view_as_real(x) if x.is_complex() else x


def _work(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _parts(
    p: Tensor, g: Tensor, state: tuple[Tensor, ...]
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    """Pieces of a large tensor, whose intermediate arrays fit the cache and take no fresh memory."""
    arrays = (p, g, *state)
    alike = all(a.shape == p.shape and a.is_contiguous() and a.device.type == "cpu" for a in arrays)
    if p.numel() <= _PART or not alike or hasattr(p, "full_tensor"):
        yield p, g, state
        return
    for part, slope, *rest in zip(*(a.view(-1).split(_PART) for a in arrays), strict=True):
        yield part, slope, tuple(rest)


def _moved(theta: Tensor, u: Tensor, group: dict[str, Any]) -> Tensor:
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(())  # one of shape [1] would give a 0-dim parameter a dimension
    return theta * (1.0 - lr * group["weight_decay"]) + lr * u


def _accepted(moved: Tensor, new: tuple[Tensor, ...]) -> Tensor:
    """Where moved parameter, which the update is in, and all of the new state are finite."""
    with torch.no_grad():
        ok = _finite(moved)
        for a in new:
            finite = _finite(a)
            if a.shape != ok.shape:  # a value for every hidden unit of a coordinate
                finite = (finite.all(0) if a.dim() > 1 else finite).view(ok.shape)
            ok = ok & finite
        return ok


def _finite(a: Tensor) -> Tensor:
    # Two passes over memory where isfinite takes four; a compiler would say that a * 0 is 0.
    return torch.isfinite(a) if torch.compiler.is_compiling() else a * 0 == 0


def _as_in(ok: Tensor, a: Tensor) -> Tensor:
    """``ok`` in a shape that goes with a state array: its own, or [..., N]."""
    return ok if a.shape == ok.shape else ok.reshape(-1)


def _total(ok: Tensor) -> Tensor:
    total = ok.sum()
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # of all shards


def _every(ok: Tensor) -> bool:
    ok = ok.all()
    return bool(ok.full_tensor() if hasattr(ok, "full_tensor") else ok)
