"""The same tasks and networks in torch and in TensorFlow; without both whoever imports it is skipped."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from common.tables.problems import PROBLEMS, Instance, Problem
from common.tables.teachers import TEACHERS, initial_weights
from interchange.files.trajectories import Trajectories
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")  # before TensorFlow, as everywhere
tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")

import tf_impl  # noqa: E402
import torch_impl  # noqa: E402

BACKENDS = ((torch_impl, torch.float64), (tf_impl, tf.float64))
# Features of theirs are the others' with other settings: with plain code they are in the slow tests only.
SELDOM = ("dm_p5", "dm_raw", "rnnprop_lv", "rp_si_n", "rp_s_m", "rnnprop_m")
for backend, _ in BACKENDS:
    for module in (
        "meta.forward", "meta.learner", "meta.second_order", "meta.unroll", "networks.features",
        "networks.lowering", "networks.rule", "networks.teacher", "optimizers.baselines",
        "optimizers.optimizers", "problems.augment", "problems.layers", "problems.tasks",
        "recording.recorder", "sources",
    ):  # fmt: skip
        import_module(f"{backend.__name__}.{module}")


def tasks(problem: str | Problem, seed: int = 1, batch_size: int = 32) -> list[Any]:
    row = PROBLEMS[problem] if isinstance(problem, str) else problem
    given = Instance(row, seed, batch_size=batch_size)
    return [backend.problems.tasks.ProblemTask(given, dtype) for backend, dtype in BACKENDS]


def networks(given: str | Rule, seed: int = 1, **options: Any) -> list[Any]:
    """Of a teacher's name with fresh weights, or of a rule or its name."""
    if isinstance(given, str) and given in TEACHERS:
        row, weights = TEACHERS[given], initial_weights(TEACHERS[given], seed)
        return [backend.networks.teacher.TeacherNetwork(row, weights, dtype) for backend, dtype in BACKENDS]
    rule = Rule.named(given) if isinstance(given, str) else given
    return [backend.networks.rule.RuleNetwork(rule, **options) for backend, _ in BACKENDS]


def close(got: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Relative to the largest entry."""
    got, expected = np.asarray(got), np.asarray(expected)
    atol = tolerance * max(np.abs(expected).max(initial=0.0), 1e-300)
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=what)


def all_close(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        close(got[name], value, tolerance, name)


def assert_same_recordings(
    one: Trajectories, other: Trajectories, atol: float, but: tuple[str, ...] = ()
) -> None:
    """But for who made them, and fields of the runs named in ``but``."""
    for field in ("features", "split", "config", "seed"):
        assert getattr(one, field) == getattr(other, field)
    assert one.runs.keys() == other.runs.keys()
    for name, run in one.runs.items():
        for field, value in vars(run).items():
            its = getattr(other.runs[name], field)
            if isinstance(value, np.ndarray):
                assert (value.dtype, value.shape) == (its.dtype, its.shape), field
                np.testing.assert_allclose(its, value, rtol=1e-9, atol=atol, err_msg=field)
            else:
                assert value == its or field in but, field
