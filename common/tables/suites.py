"""Fixed sets of problems and horizons on which optimizers are compared, and how a command names them."""

import dataclasses
from collections.abc import Sequence

from common.errors import L2OError
from common.registry import Registry
from common.tables.problems import PROBLEMS

_PREFIX = "suite:"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One problem at one horizon.

    Attributes:
        steps: the horizon.
        trained_on: what is shipped may have been meta-trained or tuned on the problem; no other may.
        optional: left out, and named, where its data are not there.
    """

    problem: str
    steps: int
    trained_on: bool = False
    optional: bool = False


SUITES: Registry[tuple[Entry, ...]] = Registry(
    "suite",
    {
        "core": (
            Entry("mnist-mlp", 200, trained_on=True),
            Entry("mnist-mlp", 1000, trained_on=True),
            Entry("mnist-mlp-deep", 200),
            Entry("mnist-mlp-deep", 1000),
            Entry("mnist-sigmoid", 1000),
            Entry("mnist-tanh-2", 200),
            Entry("mnist-relu", 5000),
            Entry("mnist-wide", 200),
            Entry("mnist-linear", 1000),
            Entry("cifar-mlp", 200),
            Entry("digits-mlp", 200),
            Entry("digits-conv", 200),
            Entry("mnist-conv", 200),
            Entry("cifar-conv", 200),
            Entry("cifar-small-conv", 200, trained_on=True),
            Entry("quadratic-k10", 200),
            Entry("quadratic-k100", 1000, trained_on=True),
            Entry("quadratic-k1000", 5000),
        ),
        # Frozen: nobody tunes, trains or chooses on these.
        "held": (
            Entry("mnist-layer-norm", 200),
            Entry("digits-residual", 200),
            Entry("digits-logistic", 200),
            Entry("digits-autoencoder", 200),
            Entry("recall-recurrent", 200),
            Entry("text-tied", 200),
            Entry("digits-shift", 200),
            Entry("fashion-mlp", 200, optional=True),
        ),
    },
)


def entries(text: str, steps: Sequence[int]) -> tuple[Entry, ...]:
    """What ``--problem`` names: the problems of ``a,b`` at every horizon of ``steps``, or a suite's own.

    Parts of a list may be suites too; what is named twice stands once.
    """
    found: dict[tuple[str, int], Entry] = {}
    for part in text.split(","):
        for entry in _named(text, part.strip(), steps):
            place = (entry.problem, entry.steps)
            if place not in found or entry.trained_on:
                found[place] = entry
    return tuple(found.values())


def _named(text: str, part: str, steps: Sequence[int]) -> tuple[Entry, ...]:
    if part.startswith(_PREFIX):
        return SUITES[part.removeprefix(_PREFIX)]
    if not part:
        names = ", ".join([*(_PREFIX + name for name in SUITES), *PROBLEMS])
        raise L2OError(f"--problem {text!r}: expected names with a comma between them; known: {names}")
    return tuple(Entry(PROBLEMS[part].name, horizon) for horizon in steps)
