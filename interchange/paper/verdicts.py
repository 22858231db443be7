"""The paper's claims, and what the measurements say of each.

A claim about several models holds where it holds of all of them, and in part where it holds of some.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import number, r2
from interchange.evaluation.profiles import ratio
from interchange.paper import published
from interchange.paper.claims import OF_MODELS, Check, Models, having, shown, title

HOLDS, PART, NOT, UNKNOWN = "holds", "holds in part", "does not hold", "not measured"
_SAME_CURVE = 0.9  # R2 of a rule's mapping curves on its teacher's
_DECADE = 10.0
_TEMPLATE = 0.5  # R2 of the template below which its gamma says nothing


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is said of one claim.

    Attributes:
        item: table or figure it belongs to.
        outcome: one of the words above.
        published, ours: the numbers that say so.
    """

    item: str
    claim: str
    outcome: str
    published: str
    ours: str


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
    """A verdict on every claim, in the order of tables and figures."""
    models = found["models"]
    return [
        _judge("table", claim, published_text, list(checks(models)))
        for claim, published_text, checks in OF_MODELS
    ] + [_known(found), _recorded(found), _large(found), *_figures(models), _long(found)]


def _judge(item: str, claim: str, published_text: str, checks: Sequence[Check]) -> Verdict:
    good = sum(check.holds for check in checks)
    outcome = UNKNOWN if not checks else HOLDS if good == len(checks) else PART if good else NOT
    ours = "; ".join(f"{check.name} {check.text}" for check in checks) or "–"
    return Verdict(item, claim, outcome, published_text, ours)


def _known(found: Mapping[str, Any]) -> Verdict:
    rows = found["sanity"]["rows"] if found["sanity"] else []
    checks = [
        Check(row["rule"], (row["r2"] or -math.inf) >= row["paper_r2"], number(row["r2"], ".4f"))
        for row in rows
    ]
    text = ", ".join(f"{row['rule']} {row['paper_r2']:.2f}" for row in rows) or "0.89 to 1.0"
    return _judge("sanity", "Known equations are found again: R² as published or better", text, checks)


def _recorded(found: Mapping[str, Any]) -> Verdict:
    rows = [row for row in (found["sanity"] or {}).get("recorded", []) if row["paper_r2"]]
    checks = [
        Check(row["teacher"], (row["r2_50"] or -math.inf) >= row["paper_r2"][0], number(row["r2_50"], ".4f"))
        for row in rows
    ]
    claim = "So are momentum and Adam from recordings of a training"
    return _judge("sanity", claim, "momentum(0.5) 0.83, Adam(0.9, 0.9) 0.25", checks)


def _large(found: Mapping[str, Any]) -> Verdict:
    theirs = "; ".join(f"{net} {number(a - b, '+.2f')}" for net, (a, b) in published.LARGE.items())
    claim = "On a larger net the equation's test accuracy is that of the best of SGD's kind (points)"
    if not found["large"]:
        return _judge("figure2", claim, theirs, [])
    rows = found["large"]["optimizers"]
    own = rows["equation"]["accuracy"][0]
    rival = max((n for n in ("sgd", "momentum", "nesterov")), key=lambda name: rows[name]["accuracy"][0])
    other = rows[rival]["accuracy"][0]
    text = f"{number(own - other, '+.2f')} ({own:.2f} against {rival} {other:.2f})"
    return _judge("figure2", claim, theirs, [Check(found["large"]["problem"], own >= other, text)])


def curves_agree(row: Mapping[str, Any]) -> float:
    """R2 of a rule's mapping curves on its teacher's, pooled over the inputs both have."""
    pairs = [
        (row["lstm"]["mapping"][name]["middle"], row["fit"]["mapping"][name]["middle"])
        for name in row["lstm"]["mapping"]
        if name in row["fit"]["mapping"]
    ]
    if not pairs:
        return math.nan
    one, other = (np.concatenate([np.array(p[k], float) for p in pairs]) for k in (0, 1))
    return r2(one, other)


def largest_update(row: Mapping[str, Any]) -> tuple[float, float]:
    """Range of a teacher's updates over its inputs' mapping curves within the paper's range of them."""
    values = [
        np.interp(
            np.linspace(-1, 1, 41) * published.MAPPED_WIDTH, curve["x"], np.array(curve["middle"], float)
        )
        for name, curve in row["lstm"]["mapping"].items()
    ]
    return float(np.min(values)), float(np.max(values))


def _figures(models: Models) -> list[Verdict]:
    rows = having(models, "lstm", "fit")
    own = {name: rows[name] for name in published.MAPPED if name in rows}
    same = {name: curves_agree(row) for name, row in rows.items()}
    checks = [
        Check(title(n), value >= _SAME_CURVE, number(value, ".3f") if value > 0.0 else "none")
        for n, value in same.items()
    ]
    claim = f"Equations have their LSTMs' mapping curves: R² of at least {_SAME_CURVE:g}"
    found = [_judge("figure3", claim, "shown, without a number", checks)]
    ranges = []
    for name, row in own.items():
        low, high = largest_update(row)
        wanted = published.MAPPED[name]
        size, given = max(-low, high), max(-wanted[0], wanted[1])
        near = size > 0.0 and max(size / given, given / size) <= _DECADE
        ranges.append(Check(title(name), near, f"{number(low, '.1e')} to {number(high, '.1e')}"))
    theirs = "; ".join(
        f"{title(n)} {number(a, '.1e')} to {number(b, '.1e')}" for n, (a, b) in published.MAPPED.items()
    )
    claim = f"Updates over inputs of ±{published.MAPPED_WIDTH:g} have the published size, up to ten times"
    found.append(_judge("figure3", claim, theirs, ranges))
    found.append(_courses(rows))
    found.append(_growth(rows))
    squashed = []
    for name in ("rp", "rp_s", "rp_si"):
        if name in rows and rows[name]["lstm"]["squashing"]:
            gamma, fits = (rows[name]["lstm"]["squashing"][key] for key in ("gamma", "r2"))
            finite = gamma is not None and math.isfinite(gamma)
            text = f"gamma {number(gamma, '.2g') if finite else 'none'} at R² {number(fits, '.2f')}"
            squashed.append(Check(title(name), finite and (fits or 0.0) > _TEMPLATE, text))
    found.append(
        _judge(
            "figure6",
            "RNNprop's family squashes its inputs: gamma is finite",
            "gamma tanh(x / gamma)",
            squashed,
        )
    )
    return found


def _courses(rows: Models) -> Verdict:
    checks = []
    for name in published.COURSES:
        if name in rows and rows[name].get("course"):
            lstm, rule = rows[name]["course"]
            limit = published.COURSES[name][1] / published.COURSES[name][0]
            checks.append(Check(title(name), rule / lstm <= limit, f"{rule / lstm:.2f} times"))
    theirs = ", ".join(f"{title(n)} {b / a:.2f} times" for n, (a, b) in published.COURSES.items())
    return _judge("figure4", "From the same start an equation ends as near its LSTM", theirs, checks)


def _growth(rows: Models) -> Verdict:
    checks = []
    for name, row in rows.items():
        points = [point for point in row["fit"]["front"] if point["r2"] is not None]
        if len(points) > 1:
            first, last = points[0], points[-1]
            more = last["r2"] > first["r2"] and (last["field"] or 0.0) >= (first["field"] or 0.0)
            fits, fields = (
                " to ".join(number(point[key], spec) for point in (first, last))
                for key, spec in (("r2", ".2f"), ("field", ".1f"))
            )
            checks.append(Check(title(name), more, f"R² {fits}, TPF {fields}"))
    claim = "The longer an equation, the closer its fit and the further it looks back"
    return _judge("figure5", claim, "shown, without a number", checks)


def _long(found: Mapping[str, Any]) -> Verdict:
    claim = "In long runs the LSTM with curriculum and imitation ends lower"
    checks = []
    if found["long"]:
        plain, trained = (found["long"]["models"][name] for name in ("dm", "dm+cl+il"))
        quotient = dataclasses.astuple(ratio(trained["figures"], plain["figures"]))
        steps = f"after {found['long']['steps']:,} steps {shown(quotient, 1.0)}"
        checks.append(Check("DM+CL+IL over DM", quotient[0] < 1.0, steps))
    return _judge("long", claim, "ln loss −11 against 0 after 10,000 steps (Chen et al. 2020)", checks)
