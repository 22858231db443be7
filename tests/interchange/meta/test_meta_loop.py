"""The loop of meta-training without a framework: what it asks of a backend, and in which order."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import L2OError
from common.metrics import LOSS_FLOOR
from interchange.meta import gradient
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.meta.schedule import EXPERTS
from interchange.meta.trainer import Trainer, make_trainer

GRADS = {"a": 1.0, "b": 1.0}
SHORT = {"epochs": 2, "epoch_length": 8, "unroll": 3, "validate_every": 0, "lr": 0.5}


class Optimizee(list):
    names, shapes, initial, loss = ("x",), ((10,),), None, None


class Fake:
    """A learner of two weights and a loss of 1; every call is noted down.

    Attributes:
        scores: of the validations, one after the other; falling ones if None.
        diverges: numbers of the optimizees that do; all with ``all``.
    """

    def __init__(self, config, diverges=(), scores=None):
        self.config, self.diverges, self.scores, self.calls = config, diverges, scores, []
        weights = {"a": np.zeros(()), "b": np.zeros(())}
        self.network = SimpleNamespace(weights=weights, sees_tensors=False, bind=lambda task: None)

    def table_task(self, config, stream, number, problem=""):
        return Optimizee([stream, number, problem])

    def start(self, task):
        self.calls.append(task)
        return SimpleNamespace(step=0, theta=np.zeros(10))

    def mean_loss_at(self, tasks, steps):
        self.calls.append([*tasks, steps])
        return 1.0 / len(self.calls) if self.scores is None else self.scores.pop(0)

    def start_imitation(self, task, expert, lr):
        self.calls.append([*task, expert, lr])
        return SimpleNamespace(step=0, theta=np.zeros(10))

    def random_scaling(self, task, r, seed, number):
        return [*task, "scaled", r, seed, number]

    def convex_term(self, task, seed, number):
        return [*task, "convex", seed, number]

    def first_order_batch(self, *args):
        return None

    def first_order(self, task, position, steps, coordinates):
        self.calls.append([steps, None if coordinates is None else len(coordinates)])
        grads = None if self.diverges == "all" or task[1] in self.diverges else {"a": 1.0 + task[1], "b": 1.0}
        return (
            SimpleNamespace(step=position.step + steps, theta=position.theta),
            [1.0 + task[1]] * steps,
            grads,
        )

    imitation = first_order

    def descend(self, grads, rates):
        self.calls.append(rates)
        self.network.weights["a"] -= grads["a"]

    def weights(self):
        return {name: w.copy() for name, w in self.network.weights.items()}

    def put(self, weights):
        self.network.weights = {name: w.copy() for name, w in weights.items()}

    def tensors(self, arrays):
        return arrays

    def moments(self):
        return {}, {}, 0

    def set_moments(self, first, second, count):
        assert (first, second, count) == ({}, {}, 0)


@pytest.fixture(autouse=True)
def evolving(monkeypatch):
    """Evolution strategies whose gradients are 1, and what they were asked for."""
    asked = []

    def evolution(segments, weights, steps, scales, generator, pairs, sigma, log):
        learner, task = segments
        learner.calls += [task(pair) for pair in range(pairs)]
        asked.append(log)
        return GRADS, np.ones(steps)

    class Persistent:
        def __init__(self, segments, scales, sigma, pairs, generator, horizon, relative):
            self.learner, task = segments
            self.learner.calls.append([[task(pair) for pair in range(pairs)], horizon])

        def gradient(self, weights, steps):
            self.learner.calls.append([steps])
            return GRADS, np.ones(steps)

    for value in (evolution, Persistent):
        monkeypatch.setattr(gradient, value.__name__, value)
    monkeypatch.setattr(gradient, "segments_here", lambda learner, task: (learner, task))
    return asked


def make(config, rates=None, table=False, **given):
    own = None if table else lambda stream, number: Optimizee([stream, number])
    return make_trainer(Fake(config, **given), rates=rates, tasks=own)


def test_an_epoch_is_unrolled_in_parts_and_the_last_may_be_shorter():
    trainer = make(TrainConfig(**SHORT, coordinates=0.3))
    assert trainer.run(label="", quiet=True)
    parts = [call for call in trainer.learner.calls if not isinstance(call, dict)]
    assert parts[:4] == [["meta_train", 0], [3, 3], [3, 3], [2, 3]]
    assert parts[4] == ["meta_train", 1] and len(parts) == 8
    assert [row["loss"] for row in trainer.state.history] == [1.0, 2.0]


@pytest.mark.parametrize("lr_decay", [1.0, 0.2])
def test_each_weight_has_its_rate_and_all_follow_a_cosine(lr_decay):
    trainer = make(TrainConfig(**SHORT, lr_decay=lr_decay), {"b": 3.0})
    trainer.run(label="", quiet=True)
    rates = [call for call in trainer.learner.calls if isinstance(call, dict)]
    factors = [lr_decay + (1.0 - lr_decay) * 0.5 * (1.0 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert [rate["a"] for rate in rates] == pytest.approx([0.5 * f for f in factors], rel=1e-15)
    assert [rate["b"] for rate in rates] == pytest.approx([1.5 * f for f in factors], rel=1e-15)


@pytest.mark.parametrize(("problem", "mixed"), [("quadratic", False), ("quadratic,lasso", True)])
def test_mixed_problems_are_told_to_evolution(problem, mixed, evolving):
    make(TrainConfig(**SHORT, estimator="es", problem=problem), table=True).run(label="", quiet=True)
    assert evolving == [mixed] * SHORT["epochs"]


def test_by_evolution_an_epoch_is_one_update_on_as_many_tasks_as_pairs():
    settings = SHORT | {"validate_every": 1, "validation_tasks": 2, "lr_decay": 1.0}
    trainer = make(TuneConfig(**settings, pairs=2))
    trainer.run(label="", quiet=True)
    validation = [["validation", 0], ["validation", 1], 8]
    rates = {"a": 0.5, "b": 0.5}
    tasks = [["meta_train", k] for k in range(4)]
    assert trainer.learner.calls == [validation, *tasks[:2], rates, validation, *tasks[2:], rates, validation]
    assert trainer.state.first_score == 1.0
    assert trainer.state.best_score == trainer.state.history[-1]["validation"]


def test_tasks_to_train_on_are_varied_and_those_to_validate_on_are_not():
    trainer = make(TrainConfig(**SHORT, random_scaling=2.0, convex=True, seed=4))
    assert trainer.tasks("meta_train", 7) == ["meta_train", 7, "scaled", 2.0, 4, 7, "convex", 4, 7]
    assert trainer.tasks("validation", 7) == ["validation", 7]


def calls_but_updates(trainer: Trainer) -> list:
    return [call for call in trainer.learner.calls if not isinstance(call, dict)]


@pytest.mark.parametrize(
    ("tasks", "diverges", "told", "counts"),
    [
        (1, "all", "5 of 5 epochs", [1, 2, 3, 4, 5]),
        (2, range(0, 60, 2), "5 of 10 optimizees", [1, 2, 3, 4, 5]),
    ],
)
def test_too_many_that_diverge_end_it(tasks, diverges, told, counts):
    trainer = make(TrainConfig(**SHORT | {"epochs": 30}, tasks=tasks), diverges=diverges)
    with pytest.raises(L2OError, match=f"diverged in {told}"):
        trainer.run(label="", quiet=True)
    assert [row["diverged"] for row in trainer.state.history] == counts
    assert (diverges == "all") != any(isinstance(call, dict) for call in trainer.learner.calls)


def test_optimizees_side_by_side_make_one_update_of_their_mean():
    trainer = make(TrainConfig(**SHORT | {"epochs": 1}, tasks=3))
    trainer.run(label="", quiet=True)
    starts = [["meta_train", k] for k in range(3)]
    assert calls_but_updates(trainer) == [*starts, *[[3, None]] * 6, *[[2, None]] * 3]
    assert [isinstance(call, dict) for call in trainer.learner.calls[3:]] == [False, False, False, True] * 3
    assert trainer.learner.network.weights["a"] == -3 * np.mean([1.0, 2.0, 3.0])
    assert trainer.state.history[0]["loss"] == 2.0 and trainer.state.updates == trainer.schedule.planned


def test_an_optimizee_that_diverges_leaves_the_others_to_go_on():
    trainer = make(TrainConfig(**SHORT | {"epochs": 1}, tasks=3), diverges=(1,))
    trainer.run(label="", quiet=True)
    assert calls_but_updates(trainer)[3:] == [[3, None]] * 5 + [[2, None]] * 2
    assert trainer.learner.network.weights["a"] == -3 * np.mean([1.0, 3.0]) and trainer.state.skipped == 1


def test_problems_in_turn_count_by_the_gradient_of_their_logarithm():
    trainer = make(TrainConfig(**SHORT | {"epochs": 2}, problem="quadratic,lasso", tasks=3), table=True)
    trainer.run(label="", quiet=True)
    names = ["quadratic", "lasso"] * 3
    starts = [call for call in trainer.learner.calls if "meta_train" in call]
    assert starts == [["meta_train", k, names[k]] for k in range(6)]
    # Each loss is as large as its gradient.
    assert trainer.learner.network.weights["a"] == pytest.approx(-6.0)
    # Gradients of logarithms are not divided again: three unrolls of 1 + k, mean over three optimizees k.
    settings = SHORT | {"epochs": 2, "loss": "log"}
    logs = make(TrainConfig(**settings, problem="quadratic,lasso", tasks=3), table=True)
    logs.run(label="", quiet=True)
    assert logs.learner.network.weights["a"] == pytest.approx(-3.0 * (2.0 + 5.0))


def test_validation_by_logarithms_is_the_geometric_mean_over_optimizees_too():
    scores = [1.0, 16.0, 4.0, 0.25, 0.0, math.inf]
    settings = {"loss": "log", "validation_tasks": 2, "validate_every": 1}
    trainer = make(TrainConfig(**SHORT | settings | {"epochs": 2}), scores=scores)
    trainer.run(label="", quiet=True)
    assert trainer.state.first_score == pytest.approx(4.0, rel=1e-14)
    assert [row["validation"] for row in trainer.state.history] == [pytest.approx(1.0), math.inf]


def test_validation_is_the_geometric_mean_over_problems_and_horizons():
    settings = {"problem": "quadratic,lasso", "horizon": "3..48", "unroll": 3, "validation_tasks": 2}
    scores = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[1e9] * 6]
    trainer = make(TrainConfig(epochs=1, validate_every=1, **settings), table=True, scores=scores)
    trainer.run(label="", quiet=True)
    assert trainer.state.first_score == pytest.approx(math.prod([1, 2, 4, 8, 16, 32]) ** (1 / 6), rel=1e-14)
    assert trainer.state.best_score == trainer.state.first_score
    tasks = {name: [["validation", 0, name], ["validation", 1, name]] for name in ("quadratic", "lasso")}
    assert trainer.learner.calls[:6] == [[*tasks[name], steps] for name in tasks for steps in (3, 12, 48)]
    assert trainer.state.history[0]["steps"] == trainer.schedule.length(0)
    # One divergence is infinite.
    config = TrainConfig(**SHORT | {"validate_every": 2}, problem="quadratic,lasso")
    trainer = make(config, table=True, scores=[1.0, math.inf, 2.0, 0.0])
    trainer.run(label="", quiet=True)
    assert trainer.state.first_score == math.inf
    assert trainer.state.best_score == pytest.approx(math.sqrt(2.0 * LOSS_FLOOR), rel=1e-9, abs=0.0)


def test_averaged_weights_are_validated_too_and_the_better_kept():
    settings = SHORT | {"epochs": 4, "validate_every": 2, "unroll": 8}
    for scores, best, which in (
        ([9.0, 5.0, 4.0, 3.0], 3.0, "averaged"),
        ([9.0, 5.0, 3.0, 4.0], 3.0, "newest"),
        ([9.0, 2.0, 3.0, 4.0], 2.0, "middle"),
        ([9.0, 3.0, 3.0, 3.0], 3.0, "middle"),  # no better than before
    ):
        trainer = make(TrainConfig(**settings, average=0.5), scores=list(scores))
        trainer.run(label="", quiet=True)
        # After the epochs 2 and 3 (a's gradients are 1, 2, 3, 4) a is -6 and -10.
        expected = {"averaged": -8.0, "newest": -10.0, "middle": -3.0}[which]
        assert trainer.state.best["a"] == expected and trainer.state.best_score == best
        assert trainer.learner.network.weights["a"] == -10.0
        rows = trainer.state.history
        assert [rows[3]["validation"], rows[3]["averaged"]] == scores[2:] and "averaged" not in rows[1]
    unseen = make(TrainConfig(**settings | {"validate_every": 0}, average=0.5))
    unseen.run(label="", quiet=True)
    assert unseen.state.best["a"] == -8.0


def test_a_curriculum_lengthens_epochs_and_restores_the_best():
    config = TrainConfig(epochs=50, unroll=100, validate_every=1, curriculum=True, validation_tasks=1)
    # The start, stage 100: two gains and a loss; the restored at 500, stage 200: no gain in three.
    trainer = make(config, scores=[9.0, 8.0, 7.0, 7.5, 6.0, 6.1, 6.2, 6.3])
    assert trainer.run(label="", quiet=True)
    assert [row["steps"] for row in trainer.state.history] == [100] * 3 + [200] * 3
    judged = [call[-1] for call in calls_but_updates(trainer) if call[0] == ["validation", 0]]
    assert judged == [200, 200, 200, 200, 500, 500, 500, 500]
    # a's gradient is 1, 2, 3 an update: the best is after two epochs, and what came after is undone.
    assert trainer.state.best["a"] == trainer.learner.network.weights["a"] == -3.0
    assert trainer.state.best_score == 6.0 and trainer.state.stage.ended and trainer.state.epoch == 6


def test_epochs_imitate_where_the_schedule_says_so():
    trainer = make(TrainConfig(**SHORT, imitation=1.0, tasks=2))
    trainer.run(label="", quiet=True)
    expert = trainer.schedule.expert(0)
    assert trainer.learner.calls[:2] == [["meta_train", k, expert, EXPERTS[expert]] for k in range(2)]
    experts = [trainer.schedule.expert(k) for k in range(2)]
    assert [row["imitates"] for row in trainer.state.history] == experts


def test_persistent_epochs_are_updated_after_every_unroll():
    trainer = make(TrainConfig(**SHORT, estimator="pes", pairs=2))
    trainer.run(label="", quiet=True)
    tasks = [["meta_train", k] for k in range(4)]
    parts = calls_but_updates(trainer)
    assert parts == [[tasks[:2], 8], [3], [3], [2], [tasks[2:], 8], [3], [3], [2]]
    assert trainer.state.updates == trainer.schedule.planned == 6


@pytest.mark.parametrize("estimator", ["es", "pes"])
@pytest.mark.parametrize("imitation", [0.0, 1.0])
def test_an_interrupted_epoch_that_restarts_leaves_no_trace(estimator, imitation):
    settings = SHORT | {"estimator": estimator, "pairs": 1, "imitation": imitation}
    trainer = make(TrainConfig(**settings))
    interrupt = SimpleNamespace(requested=False)
    update = trainer._update

    def signalled(grads):
        update(grads)
        interrupt.requested = trainer.state.epoch == 1

    trainer._update = signalled
    ended = trainer.run(label="", quiet=True, interrupt=interrupt)
    after = {"es": 1, "pes": 3}[estimator] if not imitation else 3
    if estimator == "es" and not imitation:  # its one update ends the epoch
        assert ended and trainer.state.updates == 2
    else:
        assert not ended and (trainer.state.epoch, trainer.state.updates) == (1, after)
        first = make(TrainConfig(**settings | {"epochs": 1}))
        first.run(label="", quiet=True)
        assert trainer.learner.network.weights["a"] == first.learner.network.weights["a"]
        assert not trainer.state.positions
