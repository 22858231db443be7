"""Verdicts follow from numbers: what holds of all models, of some, of none, and what was not measured."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from interchange.evaluation.profiles import ratio
from interchange.paper.claims import AS_GOOD, shown
from interchange.paper.verdicts import (
    HOLDS,
    NOT,
    PART,
    UNKNOWN,
    Verdict,
    curves_agree,
    largest_update,
    verdicts,
)


def model(title: str, lstm: list[float], rule: list[float], nodes: float, r2: float) -> dict[str, Any]:
    """What the verdicts read of a model."""
    own = dataclasses.astuple(ratio(rule, lstm))
    return {
        "title": title,
        "loss": {"lstm_each": lstm, "rule_each": rule, "ratio": own},
        "complexity": {"mean": nodes, "r2": r2},
        "rule": {"r2": r2},
        "published": {"r2": (0.93, 0.94)},
        "lstm": None,
        "fit": None,
    }


def verdict_of(found: dict[str, Any], start: str) -> Verdict:
    return next(v for v in verdicts(found) if v.claim.startswith(start))


def test_a_claim_holds_of_all_in_part_of_some_and_is_unknown_without_any():
    empty = {"models": {}, "sanity": None, "large": None, "long": None}
    assert {verdict.outcome for verdict in verdicts(empty)} == {UNKNOWN}
    lstm = [0.2, 0.2, 0.2]
    good, bad = [AS_GOOD * 0.2 * 0.99] * 3, [AS_GOOD * 0.2 * 1.01] * 3
    for rules, outcome in (((good, good), HOLDS), ((good, bad), PART), ((bad, bad), NOT)):
        models = {
            name: model(name, lstm, rule, 20.0, 0.95) for name, rule in zip(("rp", "dm"), rules, strict=True)
        }
        assert verdict_of(empty | {"models": models}, "Equations do as well").outcome == outcome
    worse = {"dm": model("DM", [0.3] * 3, good, 60.0, 0.9), "rp": model("RP", lstm, good, 30.0, 0.9)}
    judged = empty | {"models": worse}
    assert verdict_of(judged, "The loss falls").outcome == HOLDS
    assert "0.667" in verdict_of(judged, "The loss falls").ours
    assert verdict_of(judged, "Mapping complexity falls").outcome == HOLDS
    # A third of 182.9 nodes is more than 60, at an R2 above DM's 0.46; RP's 0.93 is missed.
    assert verdict_of(judged, "Ours, not the paper's").outcome == PART


def test_a_sanity_check_is_judged_by_the_published_r2():
    rows = [{"rule": "sgd", "r2": 1.0, "paper_r2": 1.0}, {"rule": "lags", "r2": 0.93, "paper_r2": 0.94}]
    found = {"models": {}, "sanity": {"rows": rows, "recorded": []}, "large": None, "long": None}
    assert verdict_of(found, "Known equations").outcome == PART
    rows[1]["r2"] = None  # nothing finite was found
    assert verdict_of(found, "Known equations").outcome == PART
    rows[1]["r2"] = 0.95
    assert verdict_of(found, "Known equations").outcome == HOLDS


def test_seeds_that_may_decide_otherwise_are_said_to():
    assert shown((1.0, 0.9, 1.2), 1.05) == "1 (0.9 to 1.2), seeds leave it open"
    assert shown((1.0, 0.9, 1.04), 1.05) == "1 (0.9 to 1.04)"
    assert shown((1.0, None, None), 1.05) == "1"  # one seed


def curve(*middle: float, width: float = 0.04) -> dict[str, list[float]]:
    return {"x": np.linspace(-width, width, len(middle)).tolist(), "middle": list(middle)}


def test_mapping_curves_are_compared_with_each_other_and_over_the_papers_range():
    row = {
        "lstm": {"mapping": {"g": curve(-4e-4, 0.0, 4e-4), "m_tilde": curve(0.0, 0.0, 0.0)}},
        "fit": {"mapping": {"g": curve(-4e-4, 0.0, 4e-4)}},
    }
    assert curves_agree(row) == 1.0
    assert largest_update(row) == pytest.approx((-2e-4, 2e-4))  # half way to the curve's ends
    row["fit"]["mapping"]["g"] = curve(4e-4, 0.0, -4e-4)
    assert curves_agree(row) == pytest.approx(-3.0)
    row["fit"]["mapping"] = {}
    assert math.isnan(curves_agree(row))
