"""The table of hand-made optimizers, and the SPEC notation that names any optimizer.

Formulas and defaults are torch.optim 2.13's in both backends (MATH.md section 6): Adam with
m_hat / (sqrt(v_hat) + eps), RMSprop with eps outside the root, momentum without dampening, weight
decay decoupled where there is one. Lion and Schedule-Free AdamW are not among torch.optim's; the rows with a
package are that package's.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from common.errors import L2OError
from common.registry import Registry
from common.tables.schedules import SCHEDULES

_SCHEDULE = "schedule="
# What every SPEC takes beside its own options: theta *= 1 - lr * weight_decay, and g += l2 * theta.
DECAYS = ("weight_decay", "l2")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One row.

    Attributes:
        lr: middle of the grid of learning rates.
        options: hyper-parameters a SPEC may set, with their defaults.
        knob: the option that ``evaluate --knob`` tunes beside the learning rate, a decay in (0, 1); "" for
            none.
        backends: those that have it.
        coordinatewise: every coordinate is updated by its own gradients alone.
        package: what must be importable for it; "" for what every installation has.
    """

    name: str
    lr: float
    options: dict[str, float]
    source: str
    knob: str = ""
    backends: tuple[str, ...] = ("torch", "tf")
    coordinatewise: bool = True
    package: str = ""


def _packaged(
    name: str, lr: float, options: dict[str, float], source: str, knob: str, coordinatewise: bool = False
) -> Baseline:
    return Baseline(name, lr, options, source, knob, ("torch",), coordinatewise, "pytorch_optimizer")


BASELINES: Registry[Baseline] = Registry(
    "optimizer",
    {
        row.name: row
        for row in (
            Baseline("sgd", 0.32, {"momentum": 0.0, "nesterov": 0.0}, "Robbins and Monro 1951"),
            Baseline("momentum", 0.04, {"momentum": 0.9}, "Polyak 1964", "momentum"),
            Baseline("nesterov", 0.04, {"momentum": 0.9}, "Nesterov 1983; Sutskever et al. 2013", "momentum"),
            Baseline("rmsprop", 0.004, {"alpha": 0.99, "eps": 1e-8}, "Tieleman and Hinton 2012", "alpha"),
            Baseline("adagrad", 0.02, {"eps": 1e-10}, "Duchi et al. 2011"),
            Baseline(
                "adam", 0.008, {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, "Kingma and Ba 2015", "beta1"
            ),
            Baseline(
                "adamw",
                0.008,
                {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
                "Loshchilov and Hutter 2019",
                "beta1",
            ),
            Baseline(
                "nadamw",
                0.004,
                {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "momentum_decay": 0.004},
                "Dozat 2016, with decoupled weight decay",
                "beta1",
            ),
            Baseline(
                "lion",
                0.001,
                {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
                "Chen et al. 2023",
                "beta1",
            ),
            Baseline(
                "schedule-free",
                0.005,
                {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
                "AdamW of Defazio et al. 2024",
                "beta1",
            ),
            Baseline(
                "muon",
                0.008,
                {"momentum": 0.95, "weight_decay": 0.0},
                "Jordan et al. 2024; AdamW on vectors",
                "momentum",
                coordinatewise=False,
            ),
            _packaged(
                "normuon",
                0.008,
                {"momentum": 0.95, "beta2": 0.95, "weight_decay": 0.0},
                "Li et al. 2025; AdamW on vectors",
                "momentum",
            ),
            _packaged(
                "soap",
                0.008,
                {"beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "max_dim": 1024},
                "Vyas et al. 2024; wider sides as they are",
                "beta1",
            ),
            _packaged(
                "ademamix",
                0.008,
                {
                    "beta1": 0.9,
                    "beta2": 0.999,
                    "beta3": 0.9999,
                    "alpha": 5.0,
                    "eps": 1e-8,
                    "weight_decay": 0.0,
                },
                "Pagliardini et al. 2024",
                "beta1",
                coordinatewise=True,
            ),
            _packaged(
                "mars",
                0.008,
                {"beta1": 0.95, "beta2": 0.99, "gamma": 0.025, "eps": 1e-8, "weight_decay": 0.0},
                "Yuan et al. 2024, AdamW's form; AdamW on vectors",
                "beta1",
            ),
            _packaged(
                "psgd",
                0.008,
                {"momentum": 0.9, "weight_decay": 0.0, "max_dim": 1024},
                "Li 2018, Kronecker factors, diagonal ones for wider sides",
                "momentum",
            ),
        )
    },
)


def baseline_names(backend: str) -> tuple[str, ...]:
    """The baselines that every installation of ``backend`` (``torch`` or ``tf``) has."""
    return tuple(name for name, row in BASELINES.items() if backend in row.backends and not row.package)


def packaged_names(backend: str) -> dict[str, str]:
    """The baselines of optional packages -> why they cannot run here, with the remedy; "" where they can."""
    return {name: missing(name) for name, row in BASELINES.items() if row.package and backend in row.backends}


def on(value: float) -> bool:
    """An option that is on or off; anything but 0 and 1 is a ``ValueError``."""
    if value not in (0.0, 1.0):
        raise ValueError(f"expected 0 (off) or 1 (on), got {value:g}")
    return bool(value)


def missing(name: str) -> str:
    """Why the baseline ``name`` cannot run here, with the remedy; "" where it can."""
    package = BASELINES[name].package
    if not package or importlib.util.find_spec(package):
        return ""
    return f'needs {package}: python -m pip install -e ".[optimizers]" in the checkout'


def absent(texts: Sequence[str], backend: str) -> dict[str, str]:
    """What ``all`` among ``texts`` does not reach here -> why not, with the remedy."""
    wanted = packaged_names(backend) if "all" in texts else {}
    return {name: reason for name, reason in wanted.items() if reason}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A named optimizer: ``adam:lr=0.01``, ``teacher:RUN`` or ``rule:FILE``.

    Attributes:
        kind: ``baseline``, ``teacher`` or ``rule``.
        target: the baseline's name, the run or the file.
        lr: learning rate if the SPEC fixes it, else None; for teachers and rules a multiplier.
        options: further hyper-parameters, ``DECAYS`` among them where they are given.
        schedule: row of ``common.tables.schedules`` if the SPEC fixes it, else "".
        knob: the baseline's knob where the SPEC leaves it open, else "".
        open_decay: the SPEC says nothing of weight_decay.
    """

    text: str
    kind: Literal["baseline", "teacher", "rule"]
    target: str
    lr: float | None
    options: dict[str, float]
    schedule: str = ""
    knob: str = ""
    open_decay: bool = True

    @property
    def middle(self) -> float:
        """Middle of the learning-rate grid: the baseline's own, 1 for teachers and rules."""
        return BASELINES[self.target].lr if self.kind == "baseline" else 1.0


def parse_spec(text: str) -> Spec:
    """Read ``name[:key=value,...]``, ``teacher:RUN[,lr=X]`` or ``rule:FILE[,lr=X]``; schedule=NAME too.

    All of them take weight_decay and l2; a rule's own options come first in ``rule:lamb:weight_decay=0.1``.
    """
    head, _, rest = text.partition(":")
    if head in ("teacher", "rule"):
        target, *pairs = rest.split(",")
        if not target:
            raise L2OError(f"optimizer {text!r}: expected {head}:PATH")
        if head == "rule" and re.match(r"\w+:\w+=", target):  # a rule's own options, as psi:lags=5,gamma=2
            own = [pair for pair in pairs if not pair.startswith(("lr=", "l2=", _SCHEDULE))]
            target, pairs = ",".join([target, *own]), [pair for pair in pairs if pair not in own]
        schedule, pairs = _schedule(pairs)
        options = _pairs(text, pairs, ())
        lr, open_decay = options.pop("lr", None), DECAYS[0] not in options
        return Spec(text, head, target, lr, options, schedule, open_decay=open_decay)
    row = BASELINES[head]
    schedule, pairs = _schedule(rest.split(",") if rest else [])
    options = _pairs(text, pairs, row.options)
    lr, knob = options.pop("lr", None), "" if row.knob in options else row.knob
    given = row.options | options
    return Spec(text, "baseline", head, lr, given, schedule, knob, DECAYS[0] not in options)


def _schedule(pairs: Sequence[str]) -> tuple[str, list[str]]:
    """The schedule that the pairs fix, "" for none, and the other pairs."""
    named = [pair.removeprefix(_SCHEDULE) for pair in pairs if pair.startswith(_SCHEDULE)]
    for name in named:
        SCHEDULES[name]  # an unknown one is an error that names the known
    return (named or [""])[-1], [pair for pair in pairs if not pair.startswith(_SCHEDULE)]


def _pairs(text: str, pairs: Sequence[str], own: Iterable[str]) -> dict[str, float]:
    values, known = {}, tuple(dict.fromkeys(["lr", *own, *DECAYS]))
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in known:
            names = ", ".join([*known, "schedule"])
            raise L2OError(f"optimizer {text!r}: unknown option {key!r}; known: {names}")
        try:
            values[key] = float(value)
        except ValueError:
            equals = ""
        if not equals or not 0.0 <= values[key] < float("inf") or (key == "lr" and not values[key]):
            bound = "above 0" if key == "lr" else "not negative"
            raise L2OError(f"optimizer {text!r}: expected {key}=NUMBER, {bound}, got {pair!r}")
    return values


def parse_specs(texts: Sequence[str], backend: str = "torch") -> list[Spec]:
    """All of ``texts``; ``all`` is every baseline of ``backend`` that runs here, ``front:FOLDER`` a front."""
    names = [name for text in texts for name in _expanded(text, backend)]
    return [parse_spec(name) for name in dict.fromkeys(names)]


def _expanded(text: str, backend: str) -> Sequence[str]:
    if text == "all":
        return (*baseline_names(backend), *(n for n, reason in packaged_names(backend).items() if not reason))
    if not text.startswith("front:"):
        return [text]
    given = Path(text.removeprefix("front:"))
    for folder in (given, given / "rules"):  # a run folder stands for the front in it
        if (folder / "front.csv").is_file():
            return [f"rule:{file}" for file in sorted(folder.glob("rule_*.json"))]
    raise L2OError(f"optimizer {text!r}: expected a folder with front.csv, as distill writes it")
