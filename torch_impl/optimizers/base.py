"""What the optimizers of this backend share: settings, lazy state, and how a step is taken."""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from interchange.language.view import View
from torch_impl.optimizers.groups import by_step_size, listed
from torch_impl.optimizers.resuming import FLAGS, Resumable, at_least_float32, number, plain, real, slots
from torch_impl.optimizers.ways import Way, shard, state_view_of, states_of, view_of, whole

_PART = 2**16  # coordinates that are stepped at once, without compiled code


class CoordinateOptimizer(Resumable, abc.ABC):
    """theta += lr * u(g), one coordinate like another but where a ``Way`` has a view."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        weight_decay: float,
        nonfinite: str,
        **options: Any,
    ) -> None:
        defaults = {"lr": plain(lr), "weight_decay": plain(weight_decay), "nonfinite": nonfinite}
        defaults |= FLAGS | options
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; settings that make no sense are ``ValueError``."""
        if isinstance(param_group, dict):
            param_group |= {
                key: plain(param_group[key]) for key in ("lr", "weight_decay") if key in param_group
            }
            group = self.defaults | param_group
            _check_settings(group)
            for p in listed(param_group):  # before the group is there
                if not (p.is_floating_point() or p.is_complex()):
                    raise ValueError(f"params: expected floating point or complex numbers, got {p.dtype}")
                self._way(p, group)
            for part in by_step_size(param_group, self._step_sizes(group), group["lr"]):
                super().add_param_group(part)
        else:
            super().add_param_group(param_group)

    def _step_sizes(self, group: dict[str, Any]) -> Mapping[str, float]:
        """Of the tensors of a new group by their names; empty where they have none of their own."""
        return {}

    def _way(self, p: Tensor, group: dict[str, Any]) -> Way | None:
        """Of a parameter of a group; None where the optimizer has no choice."""
        return None

    @abc.abstractmethod
    def _zero_state(self, p: Tensor, group: dict[str, Any], way: Way | None) -> tuple[Tensor, ...]:
        """Zero state for one parameter."""

    @abc.abstractmethod
    def _update(
        self,
        p: Tensor,
        g: Tensor,
        state: tuple[Tensor, ...],
        t: int | Tensor,
        group: dict[str, Any],
        way: Way | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Update u in the shape of ``p`` and the new state; ``t`` counts from 1."""

    def _step_again(self, group: dict[str, Any]) -> bool:
        """A step by compiled code where nothing but gradients has changed since the last one; else False."""
        return False

    def _step_compiled(self, group: dict[str, Any], tensors: tuple[list[Any], ...]) -> Sequence[int]:
        """A step of what compiled code can take, of the lists of ``_init_group``; the numbers not taken."""
        return range(len(tensors[0]))

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient; returns the closure's loss.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return self._step(closure)

    def _step(self, closure: Callable[[], Tensor] | None) -> Tensor | None:
        self._accelerator_graph_capture_health_check()
        loss = loss_of(closure)
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
            counts: list[int] = []
            self._init_group(group, params, grads, steps, skipped, arrays, counts)
            if params:
                self._step_group(group, (params, grads, steps, skipped, arrays, counts), compiling)
        self._stepped(compiling)
        return loss

    def _stepped(self, compiling: bool) -> None:
        """Called after every step."""

    def _accepted(
        self,
        old: Tensor,
        moved: Tensor,
        state: tuple[Tensor, ...],
        new: tuple[Tensor, ...],
        view: View | None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | int]:
        """Parameter and state as they are to be after a step, and how many coordinates were left alone."""
        return moved, new, 0

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
        counts: list[int],
    ) -> None:
        """Fill the lists, the last with how many arrays are each parameter's.

        Dynamo runs this when it traces a step, so that no state is made in a graph.
        """
        for p in group["params"]:
            g = p.grad
            if g is None:
                continue
            state = self.state[p]
            if "step" not in state:
                beside = dict(state)  # a wrapper's; ours come first
                state.clear()
                zero = self._zero_state(work(real(p.detach())), group, self._way(p, group))
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["skipped"] = torch.zeros((), dtype=torch.int64, device=p.device)
                state.update({f"s{i}": array for i, array in enumerate(zero)} | beside)
            params.append(p)
            grads.append(g)
            steps.append(state["step"])
            skipped.append(state["skipped"])
            names = slots(state)
            counts.append(len(names))
            arrays += [state[name] for name in names]

    def _step_group(self, group: dict[str, Any], tensors: tuple[list[Any], ...], compiling: bool) -> None:
        params, grads, steps, skipped, arrays, counts = tensors
        numbers: Sequence[int] = range(len(params))
        if not compiling and _by_code(group):
            numbers = self._step_compiled(group, tensors)
        states = states_of(arrays, counts)
        for k in numbers:
            p, g, step = real(params[k]), real(grads[k].resolve_conj()), steps[k]
            waits = compiling or group["capturable"] or step.device.type != "cpu"
            # What is computed from t is not float32 either.
            t = step.to(torch.float64) + 1.0 if waits else int(step) + 1
            values = self.state[params[k]] if group["differentiable"] else None
            way = self._way(params[k], group)
            self._step_one(group, p, g, t, step, skipped[k], states[k], values, way)

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
        way: Way | None,
    ) -> None:
        """Step ``t`` of one tensor; ``values`` takes the new state where gradients flow through it."""
        uncut = values is not None or isinstance(t, Tensor) or view_of(way) is not None
        left: Tensor | int = 0
        for part in [(p, g, state)] if uncut else _parts(p, g, state):
            left = left + self._write(group, *part, t, values, way)
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
        way: Way | None,
    ) -> Tensor | int:
        """Parameter and state after a step; how many coordinates were left alone."""
        old, before, view = p.clone() if values is not None else p, state, view_of(way)
        in_shards, seen = view is not None and hasattr(p, "full_tensor") and not way.needs_all, state
        if view is not None:
            g, *seen = map(whole, (g, *state))
            if not in_shards:
                old, before = whole(old), seen
        theta, g = work(old), -work(g) if group["maximize"] else work(g)
        # Of a parameter that is not read only the shape counts, which is the gradient's.
        u, new = self._update(g if in_shards else theta, g, tuple(seen), t, group, way)
        if in_shards:
            u, *new = (shard(a, old) for a in (u, *new))
        moved, left = _moved(theta, u, group).to(p.dtype), 0
        if group["nonfinite"] != "off":
            kept_by = None if in_shards else state_view_of(way)
            moved, new, left = self._accepted(old, moved, tuple(before), tuple(new), kept_by)
        if values is not None:
            values.update({f"s{i}": array for i, array in enumerate(new)})
        else:
            # Backwards: a lag takes over the old value of the slot before it.
            for kept, array in zip(reversed(state), reversed(new), strict=True):
                kept.copy_(shard(array, kept))
        p.copy_(shard(moved, p))  # the last, because new state may be the old parameter itself
        return left


def loss_of(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """The loss of a step's closure, which computes the gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def work(x: Tensor) -> Tensor:
    """In the dtype updates are computed in."""
    return x.to(at_least_float32(x.dtype))


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
