"""Rollouts in TensorFlow: one graph for all of a kind, which leaves nothing of one to the next."""

from collections.abc import Iterator

import numpy as np
import pytest

from common.metrics import DIVERGED
from common.tables.baselines import parse_spec
from common.tables.problems import Instance, problem_row
from common.tables.schedules import SCHEDULES
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

from tf_impl import loops  # noqa: E402
from tf_impl.problems.direct import Direct  # noqa: E402
from tf_impl.problems.tasks import ProblemTask  # noqa: E402
from tf_impl.rollout import INTERRUPTED, descend, leaves, rollout  # noqa: E402
from tf_impl.sources import Source  # noqa: E402

STEPS = 12
RULE = Rule.from_text("c0 * m / (abs(g) + 0.1)", {"c0": -1.0}, {"m": "ema(g, 0.5)"}, scale=0.02)
BREAKS = Rule.from_text("g * c0 * c0", {"c0": 1e200})  # infinite, and so skipped, at every step
SOURCES = {
    "adam": Source(parse_spec("adam"), None),
    "nesterov": Source(parse_spec("nesterov"), None),
    "nadamw": Source(parse_spec("nadamw"), None),
    "rule": Source(parse_spec("rule:a.json"), RULE),
    "teacher": Source(parse_spec("teacher:rp_s"), Teacher.named("rp_s")),
}
# A network, a function with noise, batch norm.
PAIRS = [(n, "digits-mlp") for n in SOURCES] + [("adam", "quadratic-k10"), ("adam", "mnist-conv")]


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    loops._kept.clear()
    yield
    loops._kept.clear()


def task_of(name: str, seed: int = 0) -> ProblemTask:
    row = problem_row(name, "synthetic" if name.startswith("mnist") else "")
    return ProblemTask(Instance(row, seed, batch_size=8), tf.float64)


def rate(name: str) -> float:
    return 1.0 if name in ("rule", "teacher") else 0.01


def plainly(source: Source, lr: float, task: ProblemTask, cosine: bool = False) -> np.ndarray:
    """Losses of the loop as it is written in books: nothing is compiled but the loss."""
    parameters, losses = leaves(task), []
    optimizer = source.optimizer(parameters, lr)
    for step in range(STEPS):
        with tf.GradientTape() as tape:
            values = [tf.identity(p) for p in parameters]
            tape.watch(values)
            loss = task.loss(values, step)
        losses.append(float(loss))
        optimizer.learning_rate = lr * (SCHEDULES["cosine"].factor(step, STEPS) if cosine else 1.0)
        optimizer.apply(tape.gradient(loss, values), parameters)
    return np.array(losses)


@pytest.mark.slow_with(name=("teacher", "nadamw"))
@pytest.mark.parametrize(("name", "problem"), PAIRS)
def test_a_graph_is_made_once_and_every_rollout_is_as_if_it_were_alone(name, problem):
    """And its losses are those of the plain loop."""
    source, lr = SOURCES[name], rate(name)
    kinds = [(0, lr), (1, lr), (0, 3.0 * lr), (0, lr)]
    together = [rollout(source, rate, task_of(problem, seed), STEPS, score=False) for seed, rate in kinds]
    (loop,) = loops._kept.values()
    assert loop.graph.traces == 1
    for (seed, rate_), found in zip(kinds[1:3], together[1:3], strict=True):
        loops._kept.clear()
        alone = rollout(source, rate_, task_of(problem, seed), STEPS, score=False)
        assert found.outcome == alone.outcome == "ok" and len(found.losses) == STEPS and found.seconds > 0.0
        np.testing.assert_array_equal(found.losses, alone.losses)
    first, other, faster, last = (found.losses for found in together)
    np.testing.assert_array_equal(first, last)
    assert not np.array_equal(first, other) and not np.array_equal(first, faster)
    np.testing.assert_allclose(first, plainly(source, lr, task_of(problem)), rtol=1e-9)


def test_running_values_of_batch_norm_are_the_tasks_own():
    found = []
    for kept in (False, True):
        task = task_of("mnist-conv", 1)
        if kept:
            rollout(SOURCES["adam"], 0.01, task_of("mnist-conv", 2), STEPS, score=False)
        rollout(SOURCES["adam"], 0.01, task, STEPS, score=False)
        found.append({name: value.numpy() for name, value in task.buffers.items()})
    assert found[0] and all((found[0][name] == found[1][name]).all() for name in found[0])
    assert any(np.abs(value - 1.0).max() > 0.1 for name, value in found[0].items() if name.endswith("var"))


def test_a_rollout_that_diverged_leaves_nothing():
    source = SOURCES["adam"]
    before = rollout(source, 0.01, task_of("quadratic"), STEPS, score=False)
    ruined = rollout(source, 1e200, task_of("quadratic"), STEPS, score=False)
    assert ruined.outcome == DIVERGED and len(ruined.losses) < STEPS and np.isfinite(ruined.losses).all()
    after = rollout(source, 0.01, task_of("quadratic"), STEPS, score=False)
    np.testing.assert_array_equal(after.losses, before.losses)
    (loop,) = loops._kept.values()
    assert loop.graph.traces == 1


@pytest.mark.filterwarnings("ignore:.*were left alone:RuntimeWarning")
def test_updates_that_stay_non_finite_are_a_divergence_and_every_loss_is_kept(monkeypatch):
    monkeypatch.setattr("tf_impl.optimizers.guard._LOOK_EVERY", 1)  # so that ten steps are ten looks
    source = Source(parse_spec("rule:breaks.json"), BREAKS)
    for _ in range(2):
        found = rollout(source, 1.0, task_of("quadratic-k10"), STEPS, score=False)
        assert found.outcome == DIVERGED and len(found.losses) == 10
        expected = plainly(SOURCES["adam"], 0.0, task_of("quadratic-k10"))  # nothing has moved
        np.testing.assert_allclose(found.losses, expected[:10], rtol=1e-12)


def test_other_errors_of_a_graph_are_no_divergence(monkeypatch):
    task = task_of("digits-mlp")
    images, labels = task._data
    monkeypatch.setattr(task, "_data", (images, labels + 100))
    with pytest.raises(tf.errors.InvalidArgumentError, match="label"):
        rollout(SOURCES["adam"], 0.01, task, STEPS, score=False)
    assert not loops._kept


def test_the_rate_falls_as_a_cosine_and_is_whole_again_in_the_next_rollout():
    whole = rollout(SOURCES["adam"], 0.01, task_of("quadratic"), STEPS, score=False)
    falls = SOURCES["adam"]
    found = rollout(falls, 0.01, task_of("quadratic"), STEPS, "cosine", score=False)
    np.testing.assert_allclose(
        found.losses, plainly(falls, 0.01, task_of("quadratic"), cosine=True), rtol=1e-9
    )
    again = rollout(SOURCES["adam"], 0.01, task_of("quadratic"), STEPS, score=False)
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_a_loop_can_be_stopped_after_any_step():
    task, seen = task_of("digits-mlp"), []
    with loops.borrowed(SOURCES["adam"], task, 0.01) as loop:
        losses, outcome = descend(task, loop, STEPS, lambda loss: len(seen) == 4 or bool(seen.append(loss)))
    assert outcome == INTERRUPTED and len(losses) == 5 and seen == losses[:4].tolist()
    whole = rollout(SOURCES["adam"], 0.01, task_of("digits-mlp"), STEPS, score=False)
    np.testing.assert_array_equal(whole.losses[:5], losses)


def test_a_loop_in_use_is_nobody_elses_and_few_numbers_are_kept(monkeypatch):
    task = task_of("quadratic")
    given = SOURCES["adam"], task, 0.01
    with loops.borrowed(*given) as one, loops.borrowed(*given) as two:
        assert one is not two and not loops._kept
    monkeypatch.setattr(loops, "_MOST", 2)
    for name in ("nesterov", "adam", "rule"):
        rollout(SOURCES[name], 0.01, task, 2, score=False)
    assert len(loops._kept) == 2
    monkeypatch.setattr(loops, "_NUMBERS", 100)
    rollout(SOURCES["adam"], 0.01, task, 2, score=False)
    assert not loops._kept


def test_other_weights_and_other_constants_are_other_optimizers():
    given = Teacher.named("rp_s")
    changed = {name: w if name != "out/b" else w + 1 for name, w in given.weights.items()}
    pairs = [
        (RULE, RULE.with_constants({"c0": -2.0}), "rule:a.json"),
        (given, Teacher(given.row, changed, given.sha256, given.created_by), "teacher:rp_s"),
    ]
    for one, other, text in pairs:
        first, second = (
            rollout(Source(parse_spec(text), loaded), 1.0, task_of("digits-mlp"), 3, score=False)
            for loaded in (one, other)
        )
        assert first.losses[0] == second.losses[0] and first.losses[2] != second.losses[2]


def test_a_direct_call_is_that_of_the_function():
    def function(x, named, factor):
        return {"sum": factor * x + named["b"], "rest": (named["a"], tf.reduce_sum(x))}

    direct, generator = Direct(function), np.random.default_rng(0)
    for size, factor in ((3, 2.0), (4, 2.0), (3, 2.0), (3, 1.5), (4, 2.0)):
        x, a, b = (tf.constant(generator.normal(size=size)) for _ in range(3))
        found, expected = direct(x, {"b": b, "a": a}, factor), function(x, {"a": a, "b": b}, factor)
        tf.nest.map_structure(np.testing.assert_array_equal, found, expected)
    assert direct.traces == 3

    @tf.function
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = direct(x, {"a": x, "b": x * x}, 3.0)["sum"]
        return tape.gradient(y, x)

    np.testing.assert_allclose(slope(tf.constant([2.0, 3.0])), [7.0, 9.0])
