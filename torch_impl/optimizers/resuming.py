"""Optimizers whose state comes back from files as it was: dtypes kept, older files read."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from common.errors import L2OError
from interchange.rule.rule import Rule, zero_update
from interchange.rule.source import refuse_foreign

# Keys of a parameter group, with the values they have where a file was written before they were there.
FLAGS = {"foreach": None, "capturable": False, "differentiable": False, "maximize": False}


class Resumable(torch.optim.Optimizer):
    """State per parameter is a dict of tensors: "step", "skipped", and those of ``_zero_state``."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in FLAGS.items():
                group.setdefault(key, value)
            for p in group["params"]:
                if "step" in (values := self.state.get(p, {})):
                    values["step"] = torch.as_tensor(values["step"], dtype=torch.float32)
                    values.setdefault("skipped", torch.zeros((), dtype=torch.int64, device=p.device))

    def state_dict(self) -> dict[str, Any]:
        """As in torch, with constants of its own: distributed checkpoints are read into it, key by key."""
        found = super().state_dict()
        for group in found["param_groups"]:
            if "constants" in group:
                group["constants"] = {
                    name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                    for name, value in group["constants"].items()
                }
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state is in the dtype of updates, not in the parameter's (pytorch#43706).

        State is copied: steps are counted in place, and two optimizers must not count together. A rule keeps
        the constants this optimizer was given; lr and the other settings are the file's, as in torch.

        Raises:
            L2OError: state of another rule, teacher or model; nothing is changed.
        """
        given: list[dict[str, Any]] = []

        def take(_: torch.optim.Optimizer, seen: dict[str, Any]) -> None:
            self._check_sources(seen)
            self._check_state(seen)
            seen["param_groups"] = list(map(self._own, seen["param_groups"], self.param_groups))
            given.append(seen)

        def restore(optimizer: torch.optim.Optimizer) -> None:
            numbers = [number for group in given[0]["param_groups"] for number in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for number, p in zip(numbers, params, strict=True):
                values = given[0]["state"].get(number, {})
                dtypes = dict.fromkeys(slots(values), at_least_float32(real(p.detach()).dtype))
                dtypes["step"] = torch.float32
                for key, value in values.items():
                    if key == "step" or isinstance(value, torch.Tensor):
                        value = torch.as_tensor(value, dtype=dtypes.get(key))
                        self.state[p][key] = value.to(device=p.device, copy=True)

        # Last of the one, so that it sees what hooks made of the dict, and first of the other.
        hooks = [
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _source(self, group: dict[str, Any]) -> tuple[str, str] | None:
        """What steps a group, own or saved: to be compared, and in words; None in older files."""
        return owner(group)

    def _own(self, saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        """A saved group with what is asked of this optimizer rather than of the file."""
        return saved

    def _check_sources(self, state_dict: dict[str, Any]) -> None:
        """Another rule's state may fit by its shapes and mean something else."""
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            own, other = self._source(group), self._source(saved)
            if own and other:
                refuse_foreign("state_dict", own, other)

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        """Compiled code believes what it is told of arrays: those of other shapes are refused here."""
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for number, p in zip(saved["params"], group["params"], strict=False):
                if number not in state_dict["state"] or hasattr(p, "full_tensor"):
                    continue
                values = state_dict["state"][number]
                settings = {**group, **saved}
                empty = torch.empty_like(real(p.detach()), device="meta")
                zero = self._zero_state(empty, settings, self._way(p, settings))
                expected = [tuple(a.shape) for a in zero]
                got = [tuple(values[name].shape) for name in slots(values)]
                if got != expected:
                    raise L2OError(
                        f"state_dict: expected arrays of state of shapes {expected} for a parameter of shape "
                        f"{tuple(p.shape)}, got {got}; load that of the same rule or teacher and model"
                    )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What updates and state are in, of parameters of this dtype."""
    return torch.promote_types(dtype, torch.float32)


def real(x: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs of coordinates."""
    return torch.view_as_real(x) if x.is_complex() else x


def slots(values: Mapping[str, Any]) -> list[str]:
    """The names of a parameter's arrays of state; wrappers keep theirs beside them, as timm's Lookahead."""
    count = 0
    while f"s{count}" in values:
        count += 1
    return [f"s{i}" for i in range(count)]


def owner(group: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a group is of: to be compared, and in words; None where ours did not say so yet."""
    if "rule" in group:
        return Rule.from_json(group["rule"]).source()
    if "teacher" in group:
        return group["teacher"], f"the teacher whose hash begins with {group['teacher'][:8]}"
    return None if "nonfinite" in group else ("", "an optimizer that is neither a rule nor a teacher")


def zero_dim(value: float | torch.Tensor) -> float | torch.Tensor:
    """A constant; a tensor as 0-dim float64, in which 1 - b is formed."""
    return value.reshape(()).to(torch.float64) if isinstance(value, torch.Tensor) else value


def number(value: float | torch.Tensor) -> float:
    """A setting that may be a tensor, as a float."""
    return value.detach().item() if isinstance(value, torch.Tensor) else float(value)


def plain(value: Any) -> Any:
    """A setting without NumPy's types, which torch.load refuses by default."""
    return value if isinstance(value, torch.Tensor) or type(value) in (int, float) else float(value)


def named(
    given: Rule | str | os.PathLike[str], constants: Mapping[str, float | torch.Tensor]
) -> dict[str, Any]:
    """A group's ``rule`` and ``constants``: plain text and numbers, which every way of saving keeps."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        rule = Rule.from_json(given)
    else:
        rule = given if isinstance(given, Rule) else Rule.load(given)
    missing = [name for name, node in rule.features.items() if node is None]
    if missing:
        raise L2OError(
            f"rule {rule.name!r}: feature {missing[0]!r} has no definition over g, so it can be "
            "evaluated on arrays only; add its expression under 'features'"
        )
    for name, value in constants.items():
        if isinstance(value, torch.Tensor) and value.numel() != 1:
            raise L2OError(f"constant {name!r}: expected one number, got a tensor of {value.numel()}")
    rule.with_constants({name: number(value) for name, value in constants.items()})
    given_plain = {name: plain(value) for name, value in constants.items()}
    return {"rule": rule.to_json(), "constants": {**rule.constants, **given_plain}}


def with_constants(group: Mapping[str, Any]) -> Rule:
    """A group's rule with the constants it has now."""
    values = {name: number(value) for name, value in group["constants"].items()}
    return Rule.from_json(group["rule"]).with_constants(values)


def differ(group: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two groups have rules or constants of their own."""
    return group["rule"] != other["rule"] or group["constants"] != other["constants"]


def warn_of_bias(rule: Rule) -> None:
    """Tell who makes an optimizer that its rule moves weights without a gradient."""
    if (moves := zero_update(rule)) > 0.0:
        warnings.warn(
            f"rule {rule.name!r} moves weights at zero gradient, by up to {moves:.3g} * lr a step; "
            "center=True subtracts that",
            RuntimeWarning,
            stacklevel=6,
        )
