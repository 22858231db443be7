"""Teachers and rules as ordinary ``torch.optim.Optimizer``: drop them into any training loop."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from interchange.files.weights import Teacher, load_weights
from interchange.language.expression import to_text
from interchange.rule.rule import Rule
from torch_impl.networks.compiled import Steps
from torch_impl.networks.matrix import TENSOR
from torch_impl.networks.teacher import TeacherNetwork
from torch_impl.optimizers.base import real
from torch_impl.optimizers.guard import GuardedOptimizer, NonFinite, NonFiniteError
from torch_impl.optimizers.resuming import differ, named, number, warn_of_bias, with_constants, zero_dim
from torch_impl.optimizers.ways import Way, Ways, seen, states_of

__all__ = ["LearnedOptimizer", "NonFinite", "NonFiniteError", "SymbolicOptimizer"]

AnyRule = Rule | str | os.PathLike[str]


class SymbolicOptimizer(GuardedOptimizer):
    """A rule as an optimizer: theta += lr * scale * expression(g).

    Args:
        params: as for any torch optimizer; a group may have its own ``rule``, ``constants``, ``center`` and
            ``matrix``. ``param_groups(model)`` gives groups in which every layer is seen as what it is.
        rule: a ``Rule`` or the path of a rule file.
        lr: multiplier on the rule's update; 1 is the rule as distilled or tuned.
        constants: in place of some of the rule's own; 0-dim tensors may be changed, or differentiated by.
        center: subtract what the rule does at zero gradient.
        matrix: how rules that see tensors see them: True, rows are axis 0; False, no matrix; ((1,), (0, 2)),
            axes of rows and of columns. None is True for two axes or more. Complex tensors are no matrices.
        weight_decay: decoupled, theta *= 1 - lr * weight_decay.
        nonfinite: ``skip`` leaves coordinates alone whose update, state or moved parameter is not finite,
            ``raise`` raises besides at once, ``off`` does not look.
        maximize: ascend.
        foreach: False for the plain step, tensor by tensor; otherwise, on the CPU, all in one call of
            compiled code where there is a compiler.
        capturable: wait for no number of the device, so that a CUDA graph can hold the step.
        differentiable: let gradients flow through the step: to lr, constants, gradients, parameters, state.

    State per parameter: ``rule.state_floats`` arrays in its shape, float32 at least, and a step count; what a
    rule keeps for a row, a column or the tensor is as small as that.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: AnyRule,
        lr: float | torch.Tensor = 1.0,
        *,
        constants: Mapping[str, float | torch.Tensor] | None = None,
        center: bool = False,
        matrix: Any = None,
        weight_decay: float = 0.0,
        nonfinite: NonFinite = "skip",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._bound: dict[tuple[str, bool], _Bound] = {}
        options = {"maximize": maximize, "foreach": foreach, "capturable": capturable}
        options |= {"differentiable": differentiable, "center": center, "matrix": matrix}
        options |= named(rule, constants or {})
        super().__init__(params, lr, weight_decay, nonfinite, **options)

    @property
    def rule(self) -> Rule:
        """The rule of the first parameter group, with the constants it was given."""
        group = self.param_groups[0]
        return with_constants(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; what the group says of ``rule``, ``matrix``, ... counts before the optimizer's own."""
        if isinstance(param_group, dict):
            group = self.defaults | param_group
            own = param_group.get("constants", {} if "rule" in param_group else self.defaults["constants"])
            param_group.update(named(group["rule"], own))
            if not group["center"] and all(differ(param_group, other) for other in self.param_groups):
                warn_of_bias(with_constants(param_group))
        super().add_param_group(param_group)

    def _step_sizes(self, group: dict[str, Any]) -> Mapping[str, float]:
        return Rule.from_json(group["rule"]).step_sizes

    def __setstate__(self, state: dict[str, Any]) -> None:
        old = state.pop("rule_json", None)  # of pickles from before rules were in the groups
        self.__dict__.setdefault("_bound", {})
        super().__setstate__(state)
        for bound in self._bound.values():
            bound.steps.clear()  # loaded state may lie where other state lay
        if old is not None:
            self.defaults |= {"center": False, **named(old, {})}
        self.defaults = {"matrix": None} | self.defaults
        for group in self.param_groups:
            for key in ("rule", "constants", "center", "matrix"):
                group.setdefault(key, self.defaults[key])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            shown = {**group, "rule": to_text(self._of(group).rule.expression)}
            lines += [f"    {key}: {shown[key]}" for key in sorted(shown) if key != "params"]
        return "\n".join([*lines, ")"])

    def _of(self, group: dict[str, Any]) -> "_Bound":
        key = group["rule"], group["center"]
        if key not in self._bound:
            self._bound[key] = _Bound(*key)
        return self._bound[key]

    def _own(self, saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        return {**saved, "rule": group["rule"], "constants": group["constants"]}

    def _way(self, p: torch.Tensor, group: dict[str, Any]) -> Way:
        return self._of(group).ways(p, group["matrix"])

    def _zero_state(self, p: torch.Tensor, group: dict[str, Any], way: Way) -> tuple[torch.Tensor, ...]:
        return way.lowered.initial_state(p, way.view)

    def _update(
        self,
        p: torch.Tensor,
        g: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        t: int | torch.Tensor,
        group: dict[str, Any],
        way: Way,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        constants = {name: zero_dim(value) for name, value in group["constants"].items()}
        (out,), state = way.lowered.step({"g": g, "theta": p, **constants}, state, t, way.view)
        out = torch.as_tensor(out, dtype=p.dtype, device=p.device)
        if way.view is not None and out.shape != p.shape:  # the same for a row, a column or the tensor
            out = out.expand(way.view.split).reshape(p.shape)
        scale = self._of(group).scale
        return out.expand_as(p) if scale == 1.0 else scale * out.expand_as(p), state

    def _step_group(self, group: dict[str, Any], tensors: tuple[list[Any], ...], compiling: bool) -> None:
        params, *_, arrays, counts = tensors
        self._of(group).ways.check(params, group["matrix"], arrays, counts)
        super()._step_group(group, tensors, compiling)

    def _step_again(self, group: dict[str, Any]) -> bool:
        steps = self._of(group).steps.get(id(group["params"]))
        return steps is not None and steps.again(group["params"], self.state, **self._how(group))

    def _step_compiled(self, group: dict[str, Any], tensors: tuple[list[Any], ...]) -> Sequence[int]:
        bound, (params, grads, steps, skipped, arrays, counts) = self._of(group), tensors
        if any(p.is_complex() for p in params):
            params, grads = list(map(real, params)), [real(g.resolve_conj()) for g in grads]
        if not bound.ways.sees_tensors:
            program = self._way(params[0], group).lowered.program
            code = bound.steps.setdefault(id(group["params"]), Steps(program))
            return code.step((params, grads, steps, skipped, arrays), **self._how(group))
        ways, states = [self._way(p, group) for p in tensors[0]], states_of(arrays, counts)
        left = [k for k, way in enumerate(ways) if way.view is not None]
        for lowered in {way.lowered: None for way in ways if way.view is None}:
            own = [k for k, way in enumerate(ways) if way.lowered is lowered]
            lists = [[column[k] for k in own] for column in (params, grads, steps, skipped)]
            lists.append([array for k in own for array in states[k]])
            left += [own[k] for k in Steps(lowered.program).step(lists, **self._how(group))]
        return sorted(left)

    def _how(self, group: dict[str, Any]) -> dict[str, Any]:
        lr = number(group["lr"])
        return {
            "constants": {name: number(value) for name, value in group["constants"].items()},
            "scale": self._of(group).scale,
            "rate": lr,
            "keep": 1.0 - lr * group["weight_decay"],
            "maximize": group["maximize"],
            "guard": group["nonfinite"] != "off",
        }


class _Bound:
    """A group's rule, ready to run."""

    def __init__(self, text: str, center: bool) -> None:
        rule = Rule.from_json(text)
        self.rule = rule.centered() if center else rule
        self.scale, self.ways = self.rule.scale, Ways(self.rule)
        self.steps: dict[int, Steps] = {}  # by the list of parameters


class LearnedOptimizer(GuardedOptimizer):
    """A meta-trained teacher as an optimizer: theta += lr * scale * output(LSTM(features(g))).

    Of a teacher with a structure matrices get structure(output(...)).

    Args:
        params: as for any torch optimizer.
        teacher: a run folder, a ``teacher.h5`` file, or ``Teacher``.
        lr: multiplier on the teacher's update.
        matrix: how a teacher that sees tensors, by its structure or features, does: as ``SymbolicOptimizer``.
        weight_decay, nonfinite, maximize, capturable, differentiable: as for ``SymbolicOptimizer``.

    State per parameter tensor of n elements: h and c of every cell, [hidden, n], and the features'.
    """

    def __init__(
        self,
        params: Iterable[Any],
        teacher: Teacher | str | os.PathLike[str],
        lr: float | torch.Tensor = 1.0,
        *,
        matrix: Any = None,
        weight_decay: float = 0.0,
        nonfinite: NonFinite = "skip",
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._given = teacher if isinstance(teacher, Teacher) else load_weights(teacher)
        self._networks: dict[tuple[torch.dtype, torch.device], TeacherNetwork] = {}
        options = {"maximize": maximize, "capturable": capturable, "differentiable": differentiable}
        options |= {"teacher": self._given.sha256, "matrix": matrix}
        super().__init__(params, lr, weight_decay, nonfinite, **options)

    def _step_sizes(self, group: dict[str, Any]) -> Mapping[str, float]:
        return self._given.step_sizes

    def _source(self, group: dict[str, Any]) -> tuple[str, str] | None:
        found = super()._source(group)
        own = found is not None and found[0] == self._given.sha256
        return (self._given.sha256, f"the teacher {self._given.row.name!r}") if own else found

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"teacher": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "teacher" in state:
            self._given, self._networks = state.pop("teacher"), {}
        super().__setstate__(state)
        for settings in (self.defaults, *self.param_groups):
            settings.update({"teacher": self._given.sha256, "matrix": None} | settings)

    def _way(self, p: torch.Tensor, group: dict[str, Any]) -> Way | None:
        given = self._given
        view = seen(tuple(p.shape), p.is_complex(), group["matrix"]) if given.sees_tensors else None
        return Way(None, view) if view and (view.matrix or given.row.features_see_tensors) else None

    def _network(self, p: torch.Tensor) -> TeacherNetwork:
        key = (p.dtype, torch.device("cpu") if p.is_meta else p.device)
        if key not in self._networks:
            self._networks[key] = TeacherNetwork(self._given.row, self._given.weights, *key)
        return self._networks[key]

    def _zero_state(
        self, p: torch.Tensor, group: dict[str, Any], way: Way | None
    ) -> tuple[torch.Tensor, ...]:
        zero = self._network(p).initial_state(p.reshape(-1))
        return zero.features + zero.network

    def _update(
        self,
        p: torch.Tensor,
        g: torch.Tensor,
        state: tuple[torch.Tensor, ...],
        t: int | torch.Tensor,
        group: dict[str, Any],
        way: Way | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        network = self._network(p)
        count = len(state) - 2 * len(network.teacher.lstm)
        views = (way.view,) if way else ()
        x, features = network.features.step(g.reshape(-1), state[:count], t, views)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            out, hidden = network.step(network.weights, x, state[count:], t)
        else:
            out, hidden = network.roll(x, state[count:], t)
        if way is not None and network.structure:
            out = TENSOR[network.structure](out.view(way.view.split), way.view.axes)
        return network.scale * out.reshape(p.shape), features + hidden
