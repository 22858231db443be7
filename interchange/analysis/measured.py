"""Everything that is measured of one optimizer, and of a recording, as plain data."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interchange.analysis.config import AnalysisConfig
from interchange.analysis.measures.attribution import attribution, told
from interchange.analysis.measures.complexity import Searched, complexity, points
from interchange.analysis.measures.fit import fit
from interchange.analysis.measures.mapping import curves
from interchange.analysis.measures.perception import perception
from interchange.analysis.measures.squashing import squashing
from interchange.analysis.measures.terms import terms
from interchange.analysis.recorded import Recorded, noise, recorded
from interchange.analysis.subjects import Subject
from interchange.distill.config import DistillConfig
from interchange.files.trajectories import Trajectories
from interchange.language.expression import to_text
from interchange.rule.nearest import Match
from interchange.rule.rule import Rule


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """On what is measured: ``judged`` is held out, ``fitted`` is for what has to be fitted first."""

    fitted: Recorded
    judged: Recorded

    @classmethod
    def of(cls, trajectories: Trajectories | None, seed: int) -> "Data":
        """Training and test runs of a recording, or two kinds of noise."""
        if trajectories is None:
            return cls(noise(seed + 1), noise(seed))
        return cls(recorded(trajectories, ("train",)), recorded(trajectories, ("test",)))


def quick(subject: Subject, data: Data, seed: int) -> dict[str, Any]:
    """Size, fit and perception field."""
    loaded = subject.loaded
    row: dict[str, Any] = {"name": subject.name, "kind": subject.kind, "sha256": loaded.sha256}
    if isinstance(loaded, Rule):
        row["nodes"], row["state_floats"] = (
            loaded.complexity,
            None if loaded.undefined else loaded.state_floats,
        )
    else:
        row["nodes"], row["state_floats"] = None, loaded.row.state_floats()
    known = data.judged.updates is not None
    row["r2"] = plain(fit(subject, data.judged)) if known else None
    row["perception"] = None
    if data.judged.shape[0] > 1:  # rows of a table have no past
        seen = perception(subject, data.judged, seed)
        row["perception"] = plain(seen)
    return row


def thorough(subject: Subject, data: Data, config: AnalysisConfig) -> dict[str, Any]:
    """What takes longer: mapping curves, terms, squashing, nearest hand-made optimizers, its front."""
    judged = data.judged
    found = squashing(subject, judged)
    mapped = curves(subject, judged, config.range, config.seed)
    return {
        "mapping": plain(mapped),
        "terms": [
            {"term": to_text(term.node), "share": term.share, "phases": term.phases}
            for term in terms(subject, judged)
        ],
        "squashing": None
        if found is None
        else {
            "gamma": found.gamma,
            "r2": found.r2,
            "own": found.own,
            "constants": dict(found.rule.constants),
        },
        "front": plain(points(subject.front, judged, config.seed)),
        **nearest(subject.name, attribution(*(_updates(subject, part) for part in (data.fitted, judged)))),
    }


def of_recording(data: Data) -> list[dict[str, Any]]:
    """The nearest hand-made optimizers of what was recorded; nothing of noise."""
    if data.judged.updates is None:
        return []
    name = f"the recorded {data.judged.source}"
    return [{"name": name, **nearest(name, attribution(data.fitted, data.judged))}]


def nearest(name: str, matches: Sequence[Match]) -> dict[str, Any]:
    """Matches as plain data, with a sentence."""
    rows = [
        {"name": match.name, "r2": match.r2, "constants": dict(match.rule.constants)} for match in matches
    ]
    return {"nearest": rows, "told": told(name, list(matches))}


def searches(
    trajectories: Trajectories, data: Data, config: AnalysisConfig, tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Mapping complexity by as many searches as are asked for, with fit and field along each front."""
    distill = DistillConfig(
        trajectories=config.trajectories,
        engine=config.engine,
        time=config.time,
        evaluations=config.evaluations,
        max_size=config.max_size,
        seed=config.seed,
        threads=config.threads,
        quiet=True,
    )
    return [
        _search(found, data.judged, config.seed)
        for found in complexity(trajectories, distill, config.seeds, tick)
    ]


def _search(found: Searched, judged: Recorded, seed: int) -> dict[str, Any]:
    front = plain(points(found.front, judged, seed))
    return {"seed": found.seed, "nodes": found.nodes, "r2": found.r2, "front": front}


def plain(value: Any) -> Any:
    """Dataclasses as dicts and arrays as lists, however deep."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    return value.tolist() if isinstance(value, np.ndarray) else value


def _updates(subject: Subject, data: Recorded) -> Recorded:
    """The same sequences with the optimizer's own updates."""
    few = data.few(64)
    updates = subject.outputs(subject.features(few.given, few.views), few.views)
    return dataclasses.replace(few, updates=updates)
