"""Temporal perception field: how far back in time an optimizer looks (MATH.md section 5).

    TPF_k = sum_lag (lag + 1) S_{k, lag} / sum_lag S_{k, lag},
    S_{k, lag} = std(x_k) mean |d u_t / d x_{k, t - lag}|

One input is changed at a few steps in the middle of the sequences, and the derivatives of the updates from
there on are followed, by the LSTM's derivatives or the operator table. Of what sees tensors the change is of
all coordinates at once, each up or down at random, which for all others gives the same.
"""

import dataclasses
import math

import numpy as np

from common.errors import L2OError
from common.rng import rng
from interchange.analysis.measures.tangents import pulse_responses
from interchange.analysis.recorded import Recorded
from interchange.analysis.subjects import Subject
from interchange.files.weights import Teacher
from interchange.language import expression as ex
from interchange.rule.rule import Rule

LAGS = 200  # at most
_MEMORIES = 10.0  # lags by which the slowest average has decayed to exp(-10)
_COORDINATES, _STARTS = 48, 8
_SHORTEST = 12  # steps


@dataclasses.dataclass(frozen=True, eq=False)
class Perception:
    """How much the updates depend on each input at each lag.

    Attributes:
        sensitivity: input -> S [lags]; all of one optimizer in one unit.
        fields: input -> TPF in steps, 1 for the present alone; nan where nothing depends on it.
        total: the TPF of all inputs together.
        beyond: share of the sensitivity that was seen at longer lags, and is not in the fields.
    """

    sensitivity: dict[str, np.ndarray]
    fields: dict[str, float]
    total: float
    beyond: float


def perception(subject: Subject, data: Recorded, seed: int = 0) -> Perception:
    """The temporal perception field over the sequences.

    Raises:
        L2OError: the sequences are too short, or an input was not recorded.
    """
    steps = data.shape[0]
    if steps < _SHORTEST:
        raise L2OError(f"expected sequences of {_SHORTEST} steps or more, got {steps}; record more steps")
    few = data.few(_COORDINATES)
    features = subject.features(few.given, few.views)
    seen = steps - steps // 2
    lags = min(_horizon(subject), LAGS, steps // 3)
    starts = np.unique(np.linspace(steps // 3, steps // 2, _STARTS).astype(int)).tolist()
    if isinstance(subject.loaded, Teacher):
        x = np.stack([features[name] for name in subject.loaded.row.inputs], axis=-1)
        derivatives = pulse_responses(subject.loaded.row, subject.loaded.weights, x, starts, seen)
    else:
        derivatives = _rule_responses(subject, features, few, starts, seen, seed)
    with np.errstate(all="ignore"):
        sizes = np.abs(subject.scale * derivatives).mean(axis=(1, 3), where=np.isfinite(derivatives))
    spread = [float(np.std(features[name])) for name in subject.inputs]
    sensitivity = sizes * np.array(spread)[:, None]
    inside, everything = sensitivity[:, :lags], float(np.nansum(sensitivity))
    return Perception(
        dict(zip(subject.inputs, inside, strict=True)),
        {name: _field(row) for name, row in zip(subject.inputs, inside, strict=True)},
        _field(inside.sum(axis=0)),
        float(np.nansum(sensitivity[:, lags:])) / everything if everything else math.nan,
    )


def _field(sensitivity: np.ndarray) -> float:
    total = float(sensitivity.sum())
    return float(np.arange(1, len(sensitivity) + 1) @ sensitivity) / total if total else math.nan


def _horizon(subject: Subject) -> int:
    """Lags to look at: ten memories of the rule's slowest average; all there are of a teacher."""
    if not isinstance(subject.loaded, Rule):
        return LAGS
    horizon = 1
    for node in ex.walk(subject.body):
        if node.op == "lag":
            horizon = max(horizon, int(node.args[1].value) + 1)
        if node.op in ("cumsum", "cummax"):
            return LAGS
        if node.op in ("ema", "ema_hat"):
            decay = node.args[1]
            value = subject.loaded.constants.get(decay.name, decay.value) if not decay.args else 1.0
            horizon = LAGS if value >= 1.0 else max(horizon, math.ceil(_MEMORIES / (1.0 - value)))
    # A sum of both, as the lag of an average, needs a little more.
    return horizon + 1


def _rule_responses(
    subject: Subject,
    features: dict[str, np.ndarray],
    data: Recorded,
    starts: list[int],
    lags: int,
    seed: int,
) -> np.ndarray:
    """[inputs, starts, lags, N] before ``scale``: every start in columns, or tensors, of its own."""
    steps, count = data.shape
    signs = rng(seed, "perception").choice((-1.0, 1.0), count)
    pulse = np.zeros((steps, len(starts), count))
    for k, start in enumerate(starts):
        pulse[start, k] = signs
    many = {name: np.tile(x, len(starts)) for name, x in features.items()}
    directions = dict.fromkeys(subject.inputs, pulse.reshape(steps, -1))
    views = None if data.views is None else data.views * len(starts)
    tangents = subject.rule_tangents(many, directions, views) / subject.scale
    tangents = tangents.reshape(len(directions), steps, len(starts), count)
    return np.stack([tangents[:, s : s + lags, k] for k, s in enumerate(starts)], axis=1)
