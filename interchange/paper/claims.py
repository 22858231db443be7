"""The claims of the numerical table: what each says of which models, and by which numbers."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.metrics import number
from interchange.evaluation.profiles import ratio
from interchange.paper import published

AS_GOOD = 1.05  # loss of an equation over its LSTM's, at most
THIRD = 1.0 / 3.0  # of the published mapping complexity, at most
_LADDER = ("dm", "rp", "rp_s", "rp_si")  # from the least to the most advanced
_PAIRS = (("dm", "dm+cl+il"), ("rp", "rp+cl+il"))  # without and with curriculum and imitation

Models = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """One part of a claim: of whom, whether it holds, and the number."""

    name: str
    holds: bool
    text: str


def having(models: Models, *keys: str) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in models.items() if all(row.get(key) is not None for key in keys)}


def title(name: str) -> str:
    return published.MODELS[name].title


def shown(values: Sequence[float], limit: float | None = None) -> str:
    """A number with its interval, for people.

    Args:
        limit: what it is compared with; where the interval holds it, other seeds might decide otherwise.
    """
    mean, low, high = (math.nan if value is None else value for value in values)
    spread = "" if math.isnan(low) else f" ({number(low, '.3g')} to {number(high, '.3g')})"
    undecided = ", seeds leave it open" if limit is not None and low <= limit <= high else ""
    return number(mean, ".3g") + spread + undecided


def _as_good(models: Models) -> list[Check]:
    """Loss of each equation over that of its LSTM."""
    rows = having(models, "loss")
    return [
        Check(title(name), row["loss"]["ratio"][0] <= AS_GOOD, shown(row["loss"]["ratio"], AS_GOOD))
        for name, row in rows.items()
    ]


def _adjacent(models: Models, key: str) -> list[tuple[str, str]]:
    known = [name for name in _LADDER if name in having(models, key)]
    return list(itertools.pairwise(known))


def _losses_fall(models: Models) -> list[Check]:
    checks = []
    for worse, better in _adjacent(models, "loss"):
        these, those = (models[name]["loss"]["lstm_each"] for name in (better, worse))
        quotient = dataclasses.astuple(ratio(these, those))
        checks.append(Check(f"{title(better)} over {title(worse)}", quotient[0] < 1.0, shown(quotient, 1.0)))
    return checks


def _complexities_fall(models: Models) -> list[Check]:
    checks = []
    for worse, better in _adjacent(models, "complexity"):
        one, other = (models[name]["complexity"]["mean"] for name in (better, worse))
        text = f"{number(one, '.3g')} against {number(other, '.3g')}"
        checks.append(Check(f"{title(better)} against {title(worse)}:", one < other, text))
    return checks


def _short(models: Models) -> list[Check]:
    checks = []
    for name, row in having(models, "complexity").items():
        model, mine = published.MODELS[name], row["complexity"]
        if model.mc is None:
            continue
        fits = model.r2 is None or mine["r2"] >= model.r2[0]
        text = f"{number(mine['mean'], '.3g')} at R² {number(mine['r2'], '.3f')}"
        checks.append(Check(model.title, mine["mean"] <= THIRD * model.mc and fits, text))
    return checks


def _fits(models: Models) -> list[Check]:
    rows = {name: row for name, row in having(models, "complexity").items() if published.MODELS[name].r2}
    return [
        Check(title(name), fit >= row["published"]["r2"][0], number(fit, ".3f"))
        for name, row in rows.items()
        for fit in [row["complexity"]["r2"]]
    ]


def _better_trained(models: Models) -> list[Check]:
    checks = []
    for plain, trained in _PAIRS:
        if {plain, trained} <= set(having(models, "loss")):
            these, those = (models[name]["loss"]["lstm_each"] for name in (trained, plain))
            quotient = dataclasses.astuple(ratio(these, those))
            checks.append(Check(title(trained), quotient[0] < 1.0, shown(quotient, 1.0)))
    return checks


def _field(row: Mapping[str, Any]) -> float:
    return row["lstm"]["perception"]["total"] or math.nan


def _looks_back(models: Models) -> list[Check]:
    rows = having(models, "lstm")
    others = [name for name in ("rp", "rp_s", "rp_si") if name in rows]
    if "dm" not in rows:
        return []
    fields = {name: _field(rows[name]) for name in ("dm", *others)}
    return [
        Check(
            f"DM over {title(name)}",
            fields["dm"] > fields[name],
            f"{number(fields['dm'], '.1f')} / {number(fields[name], '.1f')}",
        )
        for name in others
    ]


def _longer_memory(models: Models) -> list[Check]:
    rows = having(models, "lstm")
    return [
        Check(
            title(trained),
            _field(rows[trained]) > _field(rows[plain]),
            f"{number(_field(rows[trained]), '.1f')} against {number(_field(rows[plain]), '.1f')}",
        )
        for plain, trained in _PAIRS
        if {plain, trained} <= set(rows)
    ]


OF_MODELS: tuple[tuple[str, str, Callable[[Models], list[Check]]], ...] = (
    (
        f"Equations do as well as their LSTMs: at most {AS_GOOD:g} times the loss",
        "1.09 to 1.74 times",
        _as_good,
    ),
    ("The loss falls from DM over RP and RP_s to RP_si", "0.23, 0.12, 0.09, 0.08", _losses_fall),
    (
        "Mapping complexity falls the same way: what optimizes better is simpler",
        "182.9, 104.7, 80.3, 67.0",
        _complexities_fall,
    ),
    (
        "Ours, not the paper's: a third of its nodes is enough for its R²",
        "67 to 220.6 nodes",
        _short,
    ),
    ("Equations fit what their LSTMs do: R² as published or better", "DM 0.46, RP 0.93, RP_si 0.94", _fits),
    (
        "Curriculum and imitation lower the loss",
        "DM 0.83 times, RP 0.92 times",
        _better_trained,
    ),
    ("DM looks further back than RNNprop's family (TPF in steps)", "25.2 against 5.3, 5.5, 4.6", _looks_back),
    (
        "Curriculum and imitation lengthen the memory (TPF)",
        "DM 27.4 against 25.2, RP 5.7 against 5.3",
        _longer_memory,
    ),
)
