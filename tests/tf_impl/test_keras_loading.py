"""A saved model in a fresh process: importing tf_impl is enough, in any order."""

import pytest

from tests.helpers.processes import said

pytest.importorskip("torch")  # first, where both are there
pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import keras
import numpy as np

from tf_impl import SymbolicOptimizer

LOAD = "; import sys, keras; print(keras.models.load_model(sys.argv[1]).optimizer.rule.name)"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(SymbolicOptimizer("adam", 0.01), "mse")
    model.fit(np.ones((8, 4)), np.ones(8), verbose=0)
    model.save(path)
    return str(path)


OTHERS = ("import keras, tf_impl", "import tf_impl, tensorflow")


@pytest.mark.parametrize(
    "first", ["import tf_impl", *(pytest.param(x, marks=pytest.mark.slow) for x in OTHERS)]
)
def test_a_saved_model_is_loaded_after_importing_tf_impl(first, saved):
    assert said(first + LOAD, saved) == "adam"
