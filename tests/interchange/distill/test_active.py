"""Active sampling: whom it asks, where, and that the answers are the oracle's."""

import dataclasses

import numpy as np
import pytest

from common import reference
from common.errors import L2OError
from interchange.distill import active
from interchange.files.trajectories import Trajectories
from interchange.files.weights import Teacher, save_weights
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences
from tests.helpers.recordings import make_run

STEPS, COORDINATES = 60, 12


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.named("rp_s")


def gradients() -> np.ndarray:
    """[T, N]: correlated in time, of scales from 0.01 to 1, falling."""
    generator = np.random.default_rng(0)
    g = generator.normal(size=(STEPS, COORDINATES))
    for t in range(1, STEPS):
        g[t] = 0.7 * g[t - 1] + 0.5 * g[t]
    return g * 10.0 ** generator.uniform(-2.0, 0.0, COORDINATES) * np.exp(-np.arange(STEPS) / 60.0)[:, None]


@pytest.fixture(scope="module")
def data(teacher: Teacher) -> Sequences:
    return active.answer(teacher, gradients(), teacher.row.expressions())


def front(teacher: Teacher, *texts: str) -> list[Rule]:
    features = teacher.row.expressions()
    return [Rule.from_text(text, {}, features, scale=0.01) for text in texts]


RULES = ("-0.3 * m_tilde", "-0.3 * tanh(m_tilde) - 0.04 * g_tilde", "-0.3 * ema(g_tilde, 0.8)")


def test_answers_are_the_oracles(teacher, data):
    """Step by step as ``reference.unroll`` walks, against ``replay``, which walks by itself."""
    g = gradients()

    def recorded(theta: np.ndarray, step: int) -> tuple[float, np.ndarray]:
        return 0.0, g[min(step, STEPS - 1)]

    start = np.zeros(COORDINATES)
    _, thetas = reference.unroll(teacher.row, teacher.weights, start, recorded, STEPS)
    updates = np.diff(thetas, axis=0)
    np.testing.assert_allclose(updates / teacher.row.scale, data.target, rtol=1e-9, atol=1e-12)
    x, y = reference.replay(teacher.row, teacher.weights, g)
    assert x.shape == (STEPS, COORDINATES, 2) and y.shape == (STEPS, COORDINATES)
    for k, name in enumerate(teacher.row.inputs):
        np.testing.assert_allclose(data.features[name], x[:, :, k], rtol=1e-9)


def test_the_most_disputed_of_every_few_sequences_are_chosen_and_answered(teacher, data):
    rules = front(teacher, *RULES)
    features = teacher.row.expressions()
    factors = 10.0 ** np.random.default_rng(1).uniform(-2.0, 2.0, 40)
    g = np.concatenate([gradients() * factor for factor in factors], axis=1)
    found = active.disputed(rules, teacher, g, features, 1.0, 40, seed=0)
    everywhere = active.answer(teacher, g, features)
    chosen, all_of_them = (active.disagreement(rules, part, 1.5) for part in (found, everywhere))
    assert np.median(chosen) > np.quantile(all_of_them, 0.85)  # one in 12: the 94th of 100 in the median
    assert found.target.shape == (STEPS, 40) and set(found.features) == {"g", "m_tilde", "g_tilde"}
    assert all((column == g.T).all(axis=1).any() for column in found.features["g"].T)
    _, y = reference.replay(teacher.row, teacher.weights, found.features["g"])
    np.testing.assert_array_equal(found.target, y)
    assert data.joined(found).target.shape == (STEPS, COORDINATES + 40)
    assert len(np.unique(found.features["g"][0])) == 40
    few = active.disputed(rules, teacher, g[:, :3], features, 1.0, 40, seed=0)
    assert few.target.shape == (STEPS, 3)  # as many as there are


def test_disagreement_is_the_spread_over_the_rules_and_a_wild_rule_counts_as_the_bound(teacher, data):
    one, two = front(teacher, "1.0 * sign(g)", "0.5 * sign(g)")
    got = active.disagreement([one, two], data, 1.5)
    np.testing.assert_allclose(got, np.sqrt(np.mean((0.25 * np.sign(data.features["g"])) ** 2, axis=0)))
    assert not active.disagreement([one, one], data, 1.5).any()
    wild = front(teacher, "exp(1e6 * g) * sign(g)", "sqrt(g) / (g - g)")
    assert active.disagreement([one, *wild], data, 1.5).max() <= 1.5


def make(teacher_sha256: str, kind: str = "teacher") -> Trajectories:
    run = make_run(
        steps=1, coordinates=1, x=np.zeros((1, 1, 1)), source_kind=kind, source_sha256=teacher_sha256
    )
    return Trajectories({"a": "g"}, {"000000": run}, {"train": ("000000",)})


def test_the_teacher_is_found_by_its_hash(teacher, tmp_path):
    assert active.find_teacher(make(teacher.sha256)).sha256 == teacher.sha256
    weights = {name: 2.0 * array for name, array in teacher.weights.items()}
    mine = save_weights(tmp_path / "teacher.h5", teacher.row, weights, "test")
    assert active.find_teacher(make(mine), tmp_path).sha256 == mine
    assert active.find_teacher(make(mine), beside=tmp_path).sha256 == mine
    assert active.find_teacher(make(teacher.sha256), beside=tmp_path).sha256 == teacher.sha256
    assert active.find_teacher(make(teacher.sha256), beside=tmp_path / "none").sha256 == teacher.sha256
    with pytest.raises(L2OError, match="name the run that was recorded"):
        active.find_teacher(make(teacher.sha256), tmp_path)
    with pytest.raises(L2OError, match="expected the run folder of the recorded teacher"):
        active.find_teacher(make(mine))


def test_a_recording_without_one_teacher_and_bad_questions_are_refused(teacher):
    two = make(teacher.sha256)
    other = dataclasses.replace(two.runs["000000"], name="000001", source_sha256="0" * 64)
    two = dataclasses.replace(two, runs={**two.runs, "000001": other})
    for trajectories in (make("", "baseline"), two, Trajectories({"a": ""}, {})):
        with pytest.raises(L2OError, match="expected a recording of one teacher, got"):
            active.find_teacher(trajectories)
    rules, features, g = front(teacher, *RULES), teacher.row.expressions(), gradients()
    for some, given, count in ((rules[:1], g, 5), (rules, g[:, :0], 5), (rules, g, 0), (rules, g, 5000)):
        with pytest.raises(L2OError, match="expected two rules or more, gradients and a count of 1 to 4096"):
            active.disputed(some, teacher, given, features, 1.0, count, seed=0)
    with pytest.raises(L2OError, match="expected features with an expression over g, got none for 'm_tilde'"):
        active.disputed(rules, teacher, g, features | {"m_tilde": ""}, 1.0, 5, seed=0)
