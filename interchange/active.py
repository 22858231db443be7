"""Active sampling: new gradient sequences at which the rules of a front disagree, answered by their teacher.

A recording shows the teacher only where its own optimization led. It can be asked anywhere (the NumPy LSTM
of common.reference), so the search asks where its candidates differ most (query by committee, Seung et al.
1992) and fits the answers too.
"""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence

import numpy as np

from common import reference
from common.errors import L2OError
from common.rng import rng
from interchange.parse import parse
from interchange.program import compile_program, evaluate
from interchange.refit import predict
from interchange.rule import RAW, Rule
from interchange.samples import Sequences
from interchange.trajectories import Trajectories
from interchange.weights import SHIPPED, Teacher, load_weights

POOL = 8  # candidates per sequence that is asked for
MOST = 4096  # sequences in one call
_BLOCKS = (1, 5)  # pieces a sequence is spliced from, at least and at most
_BOUND = 1.5  # times the largest recorded |y|: beyond it a rule is wrong, how far does not matter

_log = logging.getLogger(__name__)


def find_teacher(trajectories: Trajectories, path: str | os.PathLike[str] = "") -> Teacher:
    """The teacher that was recorded, told by its hash.

    Args:
        path: its weights or run folder; "" looks among the shipped ones.

    Raises:
        L2OError: the recording is not of one teacher, or this is another one.
    """
    sources = {(run.source_kind, run.source_sha256) for run in trajectories.runs.values()}
    if len(sources) != 1 or next(iter(sources))[0] != "teacher":
        kinds = ", ".join(sorted({kind for kind, _ in sources})) or "no runs"
        raise L2OError(f"expected a recording of one teacher, got {kinds}; active sampling needs one to ask")
    sha256 = next(iter(sources))[1]
    if path:
        teacher = load_weights(path)
        if teacher.sha256 != sha256:
            raise L2OError(
                f"{path}: expected the recorded teacher {sha256[:12]}, got {teacher.sha256[:12]}; "
                "name the run that was recorded"
            )
        return teacher
    for name in SHIPPED:
        if Teacher.named(name).sha256 == sha256:
            return Teacher.named(name)
    raise L2OError(
        f"expected the run folder of the recorded teacher {sha256[:12]}, got none; name its folder or weights"
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


def perturbed(g: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """New gradient sequences [T, count] spliced from recorded ones [T, N].

    Each has 1 to 5 pieces, cut anywhere from any coordinate, early or late; each piece is rescaled by
    10^U(-1, 1) and half of them change sign.
    """
    steps, coordinates = g.shape
    result = np.empty((steps, count))
    for k in range(count):
        most = min(_BLOCKS[1], steps)
        cuts = generator.choice(steps - 1, generator.integers(_BLOCKS[0], most + 1) - 1, replace=False) + 1
        edges = [0, *sorted(cuts.tolist()), steps]
        for start, stop in itertools.pairwise(edges):
            begin = generator.integers(steps - (stop - start) + 1)
            piece = g[begin : begin + stop - start, generator.integers(coordinates)]
            factor = 10.0 ** generator.uniform(-1.0, 1.0) * generator.choice((-1.0, 1.0))
            result[start:stop, k] = factor * piece
    return result


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
    data: Sequences,
    features: Mapping[str, str],
    count: int,
    seed: int,
) -> Sequences:
    """``count`` new sequences at which the rules disagree, with the teacher's answers; at most ``MOST``.

    Each is the most disputed of ``POOL`` random ones, so that they stay different from each other.

    Args:
        rules: at least two, over the features and ``g``.
        data: recorded sequences with ``g``, which the new ones are spliced from.
        features: of the recording (``Trajectories.features``).
    """
    if len(rules) < 2 or "g" not in data.features or not 1 <= count <= MOST:
        raise L2OError(
            f"expected two rules or more, recorded gradients and a count of 1 to {MOST}, got {len(rules)} "
            f"rules, {'g' if 'g' in data.features else 'no g'} and {count}; search and record first"
        )
    generator = rng(seed, "active")
    bound = _BOUND * float(np.abs(data.target).max())
    chosen = []
    for _ in range(0, count, 256):  # bounds the memory
        wanted = min(256, count - sum(map(len, chosen)))
        g = perturbed(data.features["g"], POOL * wanted, generator).T
        pool = Sequences(_features(g.T, features), np.zeros(g.T.shape))  # only the chosen ones get answers
        doubt = disagreement(rules, pool, bound).reshape(wanted, POOL)
        chosen.append(g.reshape(wanted, POOL, -1)[np.arange(wanted), doubt.argmax(axis=1)])
    found = answer(teacher, np.concatenate(chosen).T, features)
    _log.info("asked the teacher at %d new sequences where %d rules disagree", count, len(rules))
    return found
