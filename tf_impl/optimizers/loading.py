"""Optimizers whose state comes back from files as it was: by the paths of variables, never another rule's."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from common.errors import L2OError
from common.run.storage import canonical_json
from interchange.rule.source import refuse_foreign

TALLY = 3  # numbers per tensor; of optimizers that do not look the first counts steps, the others stay 0
_ABOUT = "about"  # beside Keras' numbered arrays: whose state they are, as JSON


class Resumable(keras.optimizers.Optimizer):
    """State per variable: a tally, the arrays of ``_zero_state``, and what Keras keeps (averages, ...)."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        vars(self)["_pending"] = None  # past Keras' tracking

    def _source(self) -> tuple[str, str]:
        """What steps: a text to be compared, and in words."""
        return type(self).__name__, f"the optimizer {type(self).__name__}"

    def _resume(self) -> None:
        """To be called once variables are known: checkpoints of TensorFlow know variables by number only."""
        self._about = _About(self)

    def _resume_pending(self) -> None:
        """The last of ``build``."""
        if self._pending is not None:
            pending, vars(self)["_pending"] = self._pending, None
            with warnings.catch_warnings():  # a copy's variables have other names, and the same order
                warnings.filterwarnings("ignore", ".*: other names than in the file", UserWarning)
                self.load_own_variables(pending)

    def _layout(self) -> dict[str, Any]:
        """Whose state it is, of which variables, and what Keras itself keeps of them."""
        known = {"learning_rate": isinstance(self._learning_rate, keras.Variable)}
        known |= {"average": self.use_ema, "gradient_accumulator": bool(self.gradient_accumulation_steps)}
        return {
            "source": self._source(),
            "paths": list(map(path_of, self._trainable_variables)),
            "kept": [name for name, kept in known.items() if kept],
        }

    def _slots(self) -> list[tuple[int, str]]:
        """Of every array: the number of its variable, -1 for none, and what it is."""
        slots = {"average": getattr(self, "_model_variables_moving_average", ())}
        slots |= {"gradient_accumulator": getattr(self, "_accumulated_gradients", ()), "step": self._tallies}
        found = {id(v): (k, slot) for slot, variables in slots.items() for k, v in enumerate(variables)}
        for k, arrays in enumerate(self._states):
            found |= {id(v): (k, f"s{i}") for i, v in enumerate(arrays)}
        return [found.get(id(v), (-1, v.name)) for v in self.variables]

    def save_own_variables(self, store: Any) -> None:
        """As in Keras, and whose they are."""
        super().save_own_variables(store)
        if self.built:
            text = canonical_json(self._layout() | {"slots": self._slots()})
            store[_ABOUT] = np.frombuffer(text.encode(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """As in Keras, but state follows its variable by path, and of another optimizer is refused.

        What there is no state for keeps what it has, with a warning. Of a rule with other constants state is
        taken; the constants stay those of this optimizer.

        Raises:
            L2OError: state of another rule, teacher or optimizer, or of variables of other shapes.
        """
        arrays = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 - a store of Keras
        about = arrays.pop(_ABOUT, None)
        if not self.built:
            if arrays:
                _warn(
                    f"{self.name}: has no variables yet, so no state is loaded; call build(variables) before"
                )
            return
        if about is None:
            taken = self._numbered(arrays)
        else:
            saved = json.loads(about.tobytes())
            refuse_foreign(self.name, self._source(), saved["source"])
            taken = self._by_path(arrays, saved)
        for k, array in taken.items():
            if array.shape != tuple(self.variables[k].shape):
                raise L2OError(
                    f"{self.name}: expected state of shape {tuple(self.variables[k].shape)}, got "
                    f"{array.shape}; load it into an optimizer of the same parameters"
                )
        for k, array in taken.items():
            self.variables[k].assign(array)

    def _by_path(self, arrays: Mapping[str, np.ndarray], saved: dict[str, Any]) -> dict[int, np.ndarray]:
        """The array of every variable of this optimizer that has one."""
        own, paths = list(map(path_of, self._trainable_variables)), saved["paths"]
        places = matched(paths, own, self.name)
        names = {(k, slot): str(number) for number, (k, slot) in enumerate(saved["slots"])}
        taken, missing = {}, []
        for number, (k, slot) in enumerate(self._slots()):
            place = -1 if k < 0 else places[k]
            if place is None or (place, slot) not in names:
                missing.append(slot if k < 0 else own[k] if place is None else f"{slot} of {own[k]}")
            else:
                taken[number] = arrays[names.pop((place, slot))]
        left = [slot if k < 0 else f"{slot} of {paths[k]}" if k in places else paths[k] for k, slot in names]
        if missing or left:
            told = [(missing, "no state for {}, as it was before"), (left, "state of {} is left out")]
            parts = [words.format(", ".join(dict.fromkeys(some))) for some, words in told if some]
            _warn(f"{self.name}: the variables are not those of the file: {'; '.join(parts)}")
        return taken

    def _numbered(self, arrays: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """State of files that do not say whose it is: from before, or of Keras' own optimizers."""
        mine, got = len(self.variables), len(arrays)
        if mine != got:
            raise L2OError(
                f"{self.name}: expected state of {mine} arrays, got {got}; load it into an optimizer with "
                "the same rule, teacher, settings and variables"
            )
        taken = {k: arrays[str(k)] for k in range(mine)}
        for k, variable in enumerate(self.variables):
            if any(variable is tally for tally in self._tallies):
                tally = taken[k]
                if (tally != np.floor(np.abs(tally))).any():
                    raise L2OError(
                        f"{self.name}: expected state of {self._source()[1]}, got that of an optimizer "
                        "which is none; begin without it"
                    )
                if tally.shape == (2,):  # written when a tensor was skipped as a whole: t, skips in a row
                    taken[k] = np.array([tally[0]] + [0.0] * (TALLY - 1))
        return taken

    def __reduce__(self) -> tuple[Any, ...]:
        arrays: dict[str, np.ndarray] | None = self._pending
        if self.built:
            self.save_own_variables(arrays := {})
        pattern = getattr(self, "_exclude_from_weight_decay_pattern", None)
        if getattr(self, "_exclude_from_weight_decay", None):
            raise L2OError(
                f"{self.name}: expected names in exclude_from_weight_decay, got variables; a pickle "
                "cannot hold those, so use var_names"
            )
        return _unpickled, (type(self), self.get_config(), arrays, pattern and pattern.pattern)


class _About(tf.train.experimental.PythonState):
    """Whose state a checkpoint of TensorFlow holds; looked at before its variables are read."""

    def __init__(self, optimizer: Resumable) -> None:
        self._optimizer = optimizer

    def serialize(self) -> str:
        return canonical_json(self._optimizer._layout())

    def deserialize(self, string_value: str | bytes) -> None:
        saved, own, name = json.loads(string_value), self._optimizer._layout(), self._optimizer.name
        refuse_foreign(name, own["source"], saved["source"])
        places = matched(saved["paths"], own["paths"], name)
        if saved["kept"] != own["kept"] or places != list(range(len(saved["paths"]))):
            told = [", ".join([*layout["kept"], *layout["paths"]]) for layout in (own, saved)]
            raise L2OError(
                f"{name}: expected a checkpoint of {told[0]}, got one of {told[1]}; checkpoints of "
                "TensorFlow know variables by number, so give the optimizer the same ones and settings, or "
                "load a file of model.save"
            )


def _unpickled(
    kind: type[Resumable],
    config: dict[str, Any],
    arrays: Mapping[str, np.ndarray] | None,
    excluded: str | None,
) -> Resumable:
    """An optimizer from its pickle, its state waiting for ``build``."""
    optimizer = kind.from_config(config)
    if excluded:
        optimizer.exclude_from_weight_decay(var_names=[excluded])
    vars(optimizer)["_pending"] = arrays
    return optimizer


def path_of(variable: Any) -> str:
    """Where a variable is in its model; its name where it has no path."""
    return getattr(variable, "path", variable.name).partition(":")[0]


def find(names: Iterable[str], path: str) -> list[str]:
    """Those of ``names`` that mean a variable: its path, or else ends of it, or what it is the end of.

    A loaded model's paths may lack the model's name, with which they began.
    """
    names = list(names)
    if path in names:
        return [path]
    return [name for name in names if path.endswith(f"/{name}") or name.endswith(f"/{path}")]


def matched(saved: Sequence[str], own: Sequence[str], where: str) -> list[int | None]:
    """For every path of ``own`` the number of the same variable in ``saved``, None where it has none.

    Where none is known and there are as many, as in a second model of one process whose layers Keras numbered
    on, they are taken to be the same in order, with a warning.
    """
    if len(saved) == len(own) and all(find([a], b) for a, b in zip(saved, own, strict=True)):
        return list(range(len(own)))
    found = [find(saved, path) for path in own]
    if own and not any(found) and len(saved) == len(own):
        _warn(f"{where}: other names than in the file: state of {saved[0]} is taken for {own[0]}, ...")
        return list(range(len(own)))
    return [saved.index(names[0]) if len(names) == 1 else None for names in found]


def _warn(told: str) -> None:
    warnings.warn(told, UserWarning, stacklevel=3)
