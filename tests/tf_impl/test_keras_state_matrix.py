"""Every kind of state that may be at hand, by every way of Keras to load it: goes on right, or is refused.

``tests/torch_impl/test_torch_state_matrix.py`` asks the same of torch.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interchange.rule.rule import Rule

tf = pytest.importorskip("tensorflow")

import keras  # noqa: E402

from tests.helpers.samples import enlarged  # noqa: E402
from tests.helpers.tf_side import tallies  # noqa: E402
from tf_impl.optimizers.optimizers import LearnedOptimizer, SymbolicOptimizer  # noqa: E402

ADAM = Rule.named("adam")
LIKE_ADAM = Rule.from_text(
    "-ema_hat(g, beta1) * (sqrt(ema_hat(square(g), beta2)) + eps)", dict(ADAM.constants)
)
Make = Callable[..., keras.optimizers.Optimizer]


def network(
    optimizer: keras.optimizers.Optimizer, width: int = 3, dtype: str = "float32", frozen: int = -1
) -> keras.Model:
    """Of two layers, one of which may be frozen."""
    keras.utils.set_random_seed(0)
    sizes = enumerate((width, 1))
    layers = [keras.layers.Dense(size, dtype=dtype, name=f"layer_{k}") for k, size in sizes]
    model = keras.Sequential([keras.Input((4,)), *layers], name="net")
    if frozen >= 0:
        layers[frozen].trainable = False
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model


def adam(**options: Any) -> SymbolicOptimizer:
    return SymbolicOptimizer(ADAM, **({"learning_rate": 0.01} | options))


def steps(model: keras.Model, seeds: range) -> None:
    for seed in seeds:
        draw = np.random.default_rng(seed)
        variables = model.trainable_variables
        model.optimizer.apply(
            [tf.constant(draw.normal(size=tuple(v.shape)), v.dtype) for v in variables], variables
        )


def by_weights(saved: keras.Model, loading: keras.Model, folder: Path) -> None:
    saved.save_weights(folder / "m.weights.h5")
    loading.load_weights(folder / "m.weights.h5")


def by_checkpoint(saved: keras.Model, loading: keras.Model, folder: Path) -> None:
    path = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer).save(folder / "checkpoint")
    tf.train.Checkpoint(model=loading, optimizer=loading.optimizer).restore(path).expect_partial()


@contextlib.contextmanager
def told_by(pattern: str) -> Iterator[None]:
    """One warning that is like this, none if ""."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told = [str(w.message) for w in caught if "__array__" not in str(w.message)]  # Keras' own, of NumPy 2
    assert len(told) == bool(pattern) and all(re.search(pattern, words) for words in told), told


WAYS = {"load_weights": by_weights, "checkpoint": by_checkpoint}
OTHERS = "the variables are not those of the file"
BY_NUMBER = "expected a checkpoint of learning_rate, .*, got one of"
# Who saves, how its network differs, who loads (and how its network differs), and how load_weights and
# checkpoints are refused ("" is: goes on; what begins with "warns" is a warning).
SOURCES: dict[str, tuple[Make, dict[str, Any], Make, dict[str, Any], str, str]] = {
    "Keras' own": (
        keras.optimizers.Adam,
        {},
        adam,
        {},
        "expected state of 14 arrays, got 10",
        "expected dtype double",
    ),
    "Keras' own with as many arrays": (
        lambda: keras.optimizers.Adam(amsgrad=True),
        {},
        adam,
        {},
        "expected state of the rule 'adam', .* got that of an optimizer",
        "expected dtype double",
    ),
    "ours": (adam, {}, adam, {}, "", ""),
    "a teacher's": (lambda: LearnedOptimizer("rp_s"), {}, lambda: LearnedOptimizer("rp_s"), {}, "", ""),
    "other constants": (lambda: adam(constants={"beta1": 0.5}), {}, adam, {}, "", ""),
    "another rule": (
        lambda: SymbolicOptimizer(Rule.named("momentum")),
        {},
        adam,
        {},
        "expected state of the rule 'adam', .* of the rule 'momentum'",
        "expected state of the rule 'adam', .* of the rule 'momentum'",
    ),
    "another rule with the same arrays": (
        lambda: SymbolicOptimizer(LIKE_ADAM),
        {},
        adam,
        {},
        "expected state of the rule 'adam', u = .*, got that of the rule",
        "expected state of the rule 'adam', u = .*, got that of the rule",
    ),
    "another teacher": (
        lambda: LearnedOptimizer("rp_s"),
        {},
        lambda: LearnedOptimizer(enlarged()),
        {},
        "expected state of the teacher 'rp_s' .* got that of the teacher 'rp_s'",
        "expected state of the teacher 'rp_s' .* got that of the teacher 'rp_s'",
    ),
    "fewer variables": (adam, {"frozen": 0}, adam, {}, f"warns {OTHERS}: no state for .*layer_0", BY_NUMBER),
    "more variables": (adam, {}, adam, {"frozen": 0}, f"warns {OTHERS}: state of .*layer_0", BY_NUMBER),
    "a schedule": (
        adam,
        {},
        lambda: adam(learning_rate=keras.optimizers.schedules.ExponentialDecay(0.01, 10, 1.0)),
        {},
        "warns state of learning_rate is left out",
        "expected a checkpoint of net/layer_0/kernel, .*, got one of learning_rate",
    ),
    "averages": (
        adam,
        {},
        lambda: adam(use_ema=True),
        {},
        "warns no state for average of .*layer_0/kernel",
        BY_NUMBER,
    ),
    "NumPy constants": (
        lambda: adam(constants={"beta1": np.float32(0.5)}, learning_rate=np.float32(0.125)),
        {},
        lambda: adam(constants={"beta1": 0.5}),
        {},
        "",
        "",
    ),
    "another dtype": (
        adam,
        {"dtype": "float64"},
        adam,
        {},
        "",
        "expected dtype float does not equal original dtype double",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_state_of_every_kind_goes_on_right_or_is_refused(source, way, tmp_path):
    make, differs, load_into, its, refused, by_number = source
    saved = network(make(), **differs)
    steps(saved, range(3))
    loading = network(load_into(), **its)
    refused = refused if way == "load_weights" else by_number
    if refused and not refused.startswith("warns "):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=refused):
            WAYS[way](saved, loading, tmp_path)
        return
    with told_by(refused.removeprefix("warns ")):
        WAYS[way](saved, loading, tmp_path)
    one, two = saved.optimizer, loading.optimizer
    known = [v.path for v in saved.trainable_variables]
    for v, (count, *_) in zip(loading.trainable_variables, tallies(two), strict=True):
        assert count == 3 * (v.path in known)
    if isinstance(two, SymbolicOptimizer) and one.rule.constants != two.rule.constants:
        assert two.rule.constants == ADAM.constants
        return
    if "frozen" in differs | its:
        return
    steps(saved, range(3, 6))
    steps(loading, range(3, 6))
    tolerance = 1e-5 if differs.get("dtype") else 0.0
    for a, b in zip(saved.get_weights(), loading.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance)


KEPT = {
    "ours": (adam, {}),
    "a teacher's": (lambda: LearnedOptimizer("rp_s"), {}),
    "other constants": (lambda: adam(constants={"beta1": np.float32(0.5)}), {}),
    "another dtype": (adam, {"dtype": "float64"}),
}


@pytest.mark.parametrize(("make", "differs"), KEPT.values(), ids=KEPT)
def test_a_saved_model_brings_its_own_optimizer(make, differs, tmp_path):
    saved = network(make(), **differs)
    steps(saved, range(3))
    with told_by(""):
        saved.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.get_config() == saved.optimizer.get_config()
    for model in (saved, loaded):
        steps(model, range(3, 6))
    for a, b in zip(saved.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_model_that_was_frozen_or_thawed_after_training_is_loaded_with_the_state_it_has(
    trainable, tmp_path
):
    """Of three layers like one another, so that by number state would fit the wrong one."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, name=name) for name in "abc"]
    model = keras.Sequential([keras.Input((4,)), *layers])
    layers[0].trainable = not trainable
    model.compile(adam(), loss="mse")
    model.optimizer.build(model.trainable_variables)
    steps(model, range(3))
    layers[0].trainable = trainable
    with told_by("no state for .*a/kernel" if trainable else "state of .*a/kernel, .*a/bias is left out"):
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
    saved = {
        v.path.rpartition("/")[0][-1] + v.name: k for k, v in enumerate(model.optimizer._trainable_variables)
    }
    for k, v in enumerate(loaded.trainable_variables):
        name = v.path.rpartition("/")[0][-1] + v.name
        if name[0] == "a":
            assert not loaded.optimizer._states[k][0].numpy().any()
        else:
            expected, found = model.optimizer._states[saved[name]], loaded.optimizer._states[k]
            for one, two in zip(expected, found, strict=True):
                np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_of_a_second_model_of_one_process_state_is_taken_in_order_and_said(tmp_path):
    """Keras numbers layers without names on."""
    models = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(adam(), loss="mse")
        model.optimizer.build(model.trainable_variables)
        models.append(model)
    steps(models[0], range(3))
    with told_by(f"state of {models[0].variables[0].path} is taken for {models[1].variables[0].path}"):
        by_weights(*models, tmp_path)
    for model in models:
        steps(model, range(3, 6))
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_optimizer_that_has_no_variables_yet_takes_no_state_and_says_so(tmp_path):
    saved, loading = network(adam()), network(adam())
    steps(saved, range(3))
    loading.compile(adam(), loss="mse")
    with told_by("has no variables yet, so no state is loaded"):
        by_weights(saved, loading, tmp_path)
    assert int(loading.optimizer.iterations) == 0
