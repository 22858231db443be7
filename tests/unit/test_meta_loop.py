"""The loop of meta-training without a framework: what it asks of a backend, and in which order."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from common.config import TrainConfig, TuneConfig
from common.errors import L2OError
from interchange.commands.meta import MetaTraining

SHORT = {"epochs": 2, "epoch_length": 8, "unroll": 3, "validate_every": 0, "lr": 0.5}


@dataclasses.dataclass
class Trainer(MetaTraining):
    """Two weights and a loss of 1; every call is noted down."""

    config: object
    rates: dict | None = None
    diverges: bool = False

    def __post_init__(self):
        self.calls = []
        network = SimpleNamespace(weights={"a": np.zeros(()), "b": np.zeros(())})
        super().__init__(network, self.config, self.rates, lambda stream, number: [stream, number], None)

    def start(self, task, network):
        self.calls.append(task)
        return SimpleNamespace(step=0, theta=np.zeros(10))

    def mean_figure(self, tasks, network, steps):
        self.calls.append([*tasks, steps])
        return 1.0 / len(self.calls)

    def random_scaling(self, task, r, seed, number):
        return [*task, "scaled", r, seed, number]

    def convex_term(self, task, seed, number):
        return [*task, "convex", seed, number]

    def evolution(self, task, network, steps, scales, generator, pairs, sigma):
        self.calls += [task(pair) for pair in range(pairs)]
        return {"a": 1.0, "b": 1.0}, np.ones(steps)

    def _weights(self):
        return {name: w.copy() for name, w in self.network.weights.items()}

    def _unroll(self, task, position, steps, coordinates):
        self.calls.append([steps, None if coordinates is None else len(coordinates)])
        grads = None if self.diverges else {"a": 1.0, "b": 1.0}
        return SimpleNamespace(step=position.step + steps, theta=position.theta), [1.0] * steps, grads

    def _descend(self, grads, rates):
        self.calls.append(rates)

    def _moments(self):
        return {}, {}, 0

    def _set(self, weights, first, second, count):
        raise AssertionError("nothing is restored here")

    def _position_arrays(self):
        raise AssertionError("nothing is kept here")

    def _position_from(self, step, t, arrays):
        raise AssertionError("nothing is restored here")


def test_an_epoch_is_unrolled_in_parts_and_the_last_may_be_shorter():
    trainer = Trainer(TrainConfig(**SHORT, coordinates=0.3))
    assert trainer.run(label="", quiet=True)
    parts = [call for call in trainer.calls if not isinstance(call, dict)]
    assert parts[:4] == [["meta_train", 0], [3, 3], [3, 3], [2, 3]]
    assert parts[4] == ["meta_train", 1] and len(parts) == 8
    assert [row["loss"] for row in trainer.history] == [1.0, 1.0]


@pytest.mark.parametrize("lr_decay", [1.0, 0.2])
def test_each_weight_has_its_rate_and_all_follow_a_cosine(lr_decay):
    trainer = Trainer(TrainConfig(**SHORT, lr_decay=lr_decay), {"b": 3.0})
    trainer.run(label="", quiet=True)
    rates = [call for call in trainer.calls if isinstance(call, dict)]
    factors = [lr_decay + (1.0 - lr_decay) * 0.5 * (1.0 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert [rate["a"] for rate in rates] == pytest.approx([0.5 * f for f in factors], rel=1e-15)
    assert [rate["b"] for rate in rates] == pytest.approx([1.5 * f for f in factors], rel=1e-15)


def test_by_evolution_an_epoch_is_one_update_on_as_many_tasks_as_pairs():
    settings = SHORT | {"validate_every": 1, "validation_tasks": 2, "lr_decay": 1.0}
    trainer = Trainer(TuneConfig(**settings, pairs=2))
    trainer.run(label="", quiet=True)
    validation = [["validation", 0], ["validation", 1], 8]
    rates = {"a": 0.5, "b": 0.5}
    tasks = [["meta_train", k] for k in range(4)]
    assert trainer.calls == [validation, *tasks[:2], rates, validation, *tasks[2:], rates, validation]
    assert trainer.first_score == 1.0 and trainer.best_score == trainer.history[-1]["validation"]


def test_tasks_to_train_on_are_varied_and_those_to_validate_on_are_not():
    trainer = Trainer(TrainConfig(**SHORT, random_scaling=2.0, convex=True, seed=4))
    assert trainer.task("meta_train", 7) == ["meta_train", 7, "scaled", 2.0, 4, 7, "convex", 4, 7]
    assert trainer.task("validation", 7) == ["validation", 7]


def test_too_many_epochs_that_diverge_end_it():
    trainer = Trainer(TrainConfig(**SHORT | {"epochs": 30}), diverges=True)
    with pytest.raises(L2OError, match="diverged in 5 of 5 epochs"):
        trainer.run(label="", quiet=True)
    assert [row["diverged"] for row in trainer.history] == [1, 2, 3, 4, 5]
    assert not any(isinstance(call, dict) for call in trainer.calls)
