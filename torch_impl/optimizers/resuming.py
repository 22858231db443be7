"""Optimizers whose state comes back from files as it was: dtypes kept, older files read."""

from typing import Any

import torch

from common.errors import L2OError

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
                if values := self.state.get(p):
                    values["step"] = torch.as_tensor(values["step"], dtype=torch.float32)
                    values.setdefault("skipped", torch.zeros((), dtype=torch.int64, device=p.device))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps the dtype it was saved in (torch casts it, pytorch#43706).

        State is copied: steps are counted in place, and two optimizers must not count together.

        Raises:
            L2OError: state of another rule, teacher or model; nothing is changed.
        """
        given: list[dict[str, Any]] = []

        def take(_: torch.optim.Optimizer, seen: dict[str, Any]) -> None:
            self._check_state(seen)
            given.append(seen)

        def restore(optimizer: torch.optim.Optimizer) -> None:
            numbers = [number for group in given[0]["param_groups"] for number in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for number, p in zip(numbers, params, strict=True):
                for key, value in given[0]["state"].get(number, {}).items():
                    value = torch.as_tensor(value, dtype=torch.float32 if key == "step" else None)
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

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        """Compiled code believes what it is told of arrays: those of other shapes are refused here."""
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for number, p in zip(saved["params"], group["params"], strict=False):
                if number not in state_dict["state"] or hasattr(p, "full_tensor"):
                    continue
                values = state_dict["state"][number]
                like = torch.view_as_real(p) if p.is_complex() else p
                settings = {**group, **saved}
                empty = torch.empty_like(like, device="meta")
                zero = self._zero_state(empty, settings, self._way(p, settings))
                names = [name for name in values if name not in ("step", "skipped")]
                expected, got = [tuple(a.shape) for a in zero], [tuple(values[n].shape) for n in names]
                if got != expected:
                    raise L2OError(
                        f"state_dict: expected arrays of state of shapes {expected} for a parameter of shape "
                        f"{tuple(p.shape)}, got {got}; load that of the same rule or teacher and model"
                    )
