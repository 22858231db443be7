"""Active sampling: gradient sequences along the rules' own rollouts, answered by their teacher.

A recording shows the teacher only where its own optimization led. A rule errs a little, is led elsewhere, and
does there what nothing has fitted. The teacher can be asked anywhere (the NumPy LSTM of common.reference), so
it is asked what it would have done there (DAgger, Ross et al. 2011), where the candidates differ most (query
by committee, Seung et al. 1992), and the answers are fitted too.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common import reference
from common.errors import L2OError
from common.rng import rng
from interchange.distill.refit import predict
from interchange.files.trajectories import Trajectories
from interchange.files.weights import SHIPPED, Teacher, load_weights
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import sees_tensors
from interchange.language.parse import parse
from interchange.rule.rule import RAW, Rule
from interchange.search.samples import Sequences

POOL = 4  # candidates per sequence that is asked for
MOST = 4096  # sequences in one call
_BOUND = 1.5  # times the largest recorded |y|: beyond it a rule is wrong, how far does not matter

_log = logging.getLogger(__name__)


def find_teacher(
    trajectories: Trajectories, path: str | os.PathLike[str] = "", beside: str | os.PathLike[str] = ""
) -> Teacher:
    """The teacher that was recorded, told by its hash.

    Args:
        path: its weights or run folder; "" looks in the folder ``beside`` and among the shipped ones.

    Raises:
        L2OError: the recording is not of one teacher, or this is another one.
    """
    sources = {(run.source_kind, run.source_sha256) for run in trajectories.runs.values()}
    if len(sources) != 1 or next(iter(sources))[0] != "teacher":
        kinds = ", ".join(sorted({kind for kind, _ in sources})) or "no runs"
        raise L2OError(f"expected a recording of one teacher, got {kinds}; active sampling needs one to ask")
    sha256 = next(iter(sources))[1]
    if seeing := [name for name, text in trajectories.features.items() if text and sees_tensors(parse(text))]:
        raise L2OError(
            f"expected features of single coordinates, got {seeing[0]!r}, which sees the whole tensor: a "
            "teacher cannot be asked at coordinates alone; leave --active out"
        )
    if path:
        teacher = load_weights(path)
        if teacher.sha256 != sha256:
            raise L2OError(
                f"{path}: expected the recorded teacher {sha256[:12]}, got {teacher.sha256[:12]}; "
                "name the run that was recorded"
            )
        return teacher
    if beside and Path(beside, "teacher.h5").is_file():
        teacher = load_weights(beside)
        if teacher.sha256 == sha256:
            return teacher
    for name in SHIPPED:
        if Teacher.named(name).sha256 == sha256:
            return Teacher.named(name)
    raise L2OError(
        f"expected the run folder of the recorded teacher {sha256[:12]}, got none; "
        "name its folder or weights (--teacher)"
    )


def answer(teacher: Teacher, g: np.ndarray, features: Mapping[str, str]) -> Sequences:
    """What the teacher does with gradients ``g`` [T, N] from zero state, as sequences.

    Args:
        features: name -> expression over ``g``, as a recording has them; "" where there is none.
    """
    _, target = reference.replay(teacher.row, teacher.weights, g)
    return Sequences(_features(g, features), target, np.zeros(g.shape[1], int))


def _features(g: np.ndarray, features: Mapping[str, str]) -> dict[str, np.ndarray]:
    unknown = [name for name, text in features.items() if not text]
    if unknown:
        raise L2OError(
            f"expected features with an expression over g, got none for {unknown[0]!r}; "
            "active sampling needs recorded runs, not a table"
        )
    program = compile_program([parse(text, RAW) for text in features.values()])
    return {"g": g} | dict(zip(features, evaluate(program, {"g": g}), strict=True))


def disagreement(rules: Sequence[Rule], data: Sequences, bound: float) -> np.ndarray:
    """[N]: root mean square over steps of the standard deviation across rules, outputs cut at ``bound``."""
    total, squares = np.zeros_like(data.target), np.zeros_like(data.target)
    for rule in rules:
        out = np.clip(np.nan_to_num(predict(rule, data), nan=bound), -bound, bound)
        total += out
        squares += out * out
    variance = np.maximum(squares / len(rules) - (total / len(rules)) ** 2, 0.0)
    return np.sqrt(variance.mean(axis=0))


def disputed(
    rules: Sequence[Rule],
    teacher: Teacher,
    g: np.ndarray,
    features: Mapping[str, str],
    bound: float,
    count: int,
    seed: int,
) -> Sequences:
    """At most ``count`` sequences of ``g`` at which the rules disagree, with the teacher's answers.

    Each is the most disputed of ``POOL`` random ones, so that they stay different from each other.

    Args:
        rules: at least two, over the features and ``g``.
        g: gradients [T, N] along rollouts.
        features: of the recording (``Trajectories.features``).
        bound: largest |y| of the recording; a rule far beyond is wrong, how far does not matter.
    """
    if len(rules) < 2 or not 1 <= count <= MOST or not g.size:
        raise L2OError(
            f"expected two rules or more, gradients and a count of 1 to {MOST}, got {len(rules)} rules, "
            f"gradients {g.shape} and {count}; search and roll out first"
        )
    doubt = disagreement(rules, Sequences(_features(g, features), np.zeros(g.shape)), _BOUND * bound)
    groups = np.array_split(rng(seed, "active").permutation(g.shape[1]), min(count, g.shape[1]))
    chosen = [group[doubt[group].argmax()] for group in groups]
    found = answer(teacher, g[:, chosen], features)
    _log.info("asked the teacher at %d sequences where %d rules disagree", len(chosen), len(rules))
    return found
