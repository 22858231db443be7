"""Optimizers named by a SPEC: teachers, rules and baselines, for recording and evaluation."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from common.errors import L2OError
from common.registry import Registry
from common.run.kinds import HDF5, kind
from common.run.places import inside
from common.tables.baselines import BASELINES, DECAYS, Spec, parse_spec, parse_specs
from interchange.files.weights import FILE_NAME, SHIPPED, Teacher, load_weights
from interchange.rule.gallery import NAMED, options_of
from interchange.rule.rule import FILES, Rule


@dataclasses.dataclass(frozen=True)
class Source:
    """A SPEC with its file read; a backend adds ``optimizer(params, lr)``."""

    spec: Spec
    loaded: Teacher | Rule | None

    @property
    def sha256(self) -> str:
        """Hash of the file behind it, "" for a baseline."""
        return self.loaded.sha256 if self.loaded is not None else ""

    @property
    def packaged(self) -> bool:
        """Whether it is another package's optimizer, which hides some of its state."""
        return self.loaded is None and bool(BASELINES[self.spec.target].package)

    @property
    def sees_tensors(self) -> bool:
        """Whether coordinates of a tensor are not independent, so that it has to be told how one is seen."""
        if self.loaded is not None:
            return self.loaded.sees_tensors
        return self.spec.kind == "baseline" and not BASELINES[self.spec.target].coordinatewise

    @property
    def step_sizes(self) -> dict[str, float]:
        """Factors on lr by parameter name, of a rule or teacher; a baseline has none."""
        return {} if self.loaded is None else self.loaded.step_sizes

    @property
    def knob(self) -> str:
        """What ``evaluate --knob`` tunes: the baseline's knob, a rule's first decay constant; "" for none."""
        if isinstance(self.loaded, Rule):
            return next(iter(self.loaded.decay_constants), "")
        return self.spec.knob

    @property
    def knob_value(self) -> float:
        """The knob as it is; only where there is one."""
        known = self.loaded.constants if isinstance(self.loaded, Rule) else self.spec.options
        return known[self.knob]

    def turned(self, value: float | None) -> Self:
        """The same with another value of the knob; None leaves it as it is."""
        if value is None:
            return self
        change = {self.knob: value}
        if isinstance(self.loaded, Rule):
            constants = {**self.loaded.constants, **change}
            return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, constants=constants))
        return dataclasses.replace(
            self, spec=dataclasses.replace(self.spec, options=self.spec.options | change)
        )

    def decayed(self, value: float | None) -> Self:
        """The same with another weight decay; None leaves it as it is."""
        if value is None:
            return self
        options = self.spec.options | {DECAYS[0]: value}
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, options=options))

    def row(self) -> dict[str, Any]:
        """What it is, JSON-ready: the teacher's row, the rule, or the baseline's options; with its ``lr``, of
        teachers and rules where the SPEC has one."""
        rate = {} if self.spec.lr is None else {"lr": self.spec.lr}
        if sizes := self.step_sizes:
            rate["step_sizes"] = sizes
        if isinstance(self.loaded, Rule):
            return {"rule": self.loaded.name, "constants": self.loaded.constants, **rate}
        if isinstance(self.loaded, Teacher):
            return self.loaded.row.to_dict() | rate
        return {"name": self.spec.target, "lr": self.spec.lr or self.spec.middle, **self.spec.options}


def read(spec: Spec) -> Teacher | Rule | None:
    """The file a SPEC names; None for a baseline."""
    if spec.kind == "teacher":
        return load_weights(spec.target)
    return Rule.load(spec.target) if spec.kind == "rule" else None


def rule_or_teacher(text: str) -> Rule | Teacher:
    """What ``text`` names: ``rule:FILE``, ``teacher:RUN``, or either without the word.

    Without it a run folder, an HDF5 file and a shipped teacher's name are a teacher, anything else a rule.
    """
    kind, colon, rest = text.partition(":")
    if not (colon and kind in ("rule", "teacher")):
        if text in NAMED and not Path(text).exists():  # adam is a baseline elsewhere, and has an equation
            return Rule.named(text)
        kind, colon, rest = spelled_out(text).partition(":")
        if not colon:
            raise L2OError(f"{text}: expected a rule or a teacher, got an optimizer that is no equation here")
    return Rule.load(rest) if kind == "rule" else load_weights(rest)


def named_spec(text: str) -> Spec:
    """``parse_spec`` of a SPEC, or of the plain name of a shipped teacher, a rule, a run or a file."""
    return parse_spec(spelled_out(text))


def named_specs(texts: Sequence[str], backend: str) -> list[Spec]:
    """``parse_specs`` of SPECs and plain names."""
    return parse_specs([spelled_out(text) for text in texts], backend)


def spelled_out(text: str) -> str:
    """The SPEC of a plain name: ``teacher:rp_s`` of ``rp_s``, ``rule:runs/tuned.json`` of its file.

    What follows a comma or the first colon stays. A run folder is its teacher, a folder of rules its best
    rule, a file what it holds.

    Raises:
        L2OError: nothing has that name; the message lists what has one.
    """
    name = re.split("[:,]", text, maxsplit=1)[0]
    if name in ("all", *BASELINES) or text.startswith(("front:", "rule:", "teacher:")):
        return text
    rest = text[len(name) + 1 :]
    place = Path(name)
    if place.is_dir():
        word = (
            "teacher" if inside(place, "a rule or a teacher", FILE_NAME, *FILES).name == FILE_NAME else "rule"
        )
    elif place.exists():
        word = "teacher" if kind(place) == HDF5 or place.suffix in (".h5", ".hdf5") else "rule"
    elif name in SHIPPED or name in NAMED:
        word = "teacher" if name in SHIPPED else "rule"
    else:
        try:
            Registry("optimizer", {**BASELINES, **SHIPPED, **NAMED})[name]
        except L2OError as error:
            raise L2OError(f"{error}; or name a run's folder or a rule's file that is there") from None
    # A rule's own options stay with its name, what any optimizer takes stands behind a comma.
    given = {pair.partition("=")[0] for pair in rest.split(",")}
    shared = {"lr", "schedule", *DECAYS} - (options_of(name) if name in NAMED else set())
    own = word == "rule" and text[len(name) : len(name) + 1] == ":" and not given <= shared
    return f"{word}:{name}" + f"{':' if own else ','}{rest}" * bool(rest)


def refuse_foreign(where: str, own: Sequence[str], other: Sequence[str]) -> None:
    """Another rule's state may fit by its shapes and mean something else: one line.

    Args:
        own, other: what steps and what the state is of: a text to be compared, and words.
    """
    if own[0] != other[0]:
        raise L2OError(
            f"{where}: expected state of {own[1]}, got that of {other[1]}; load that of the same rule or "
            "teacher, or begin without it"
        )
