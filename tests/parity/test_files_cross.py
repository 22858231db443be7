"""A rule on its way through both backends: recorded in one, tuned in the other, evaluated in the first."""

import numpy as np
import pytest

from interchange.commands.optimize import OptimizeConfig
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.evaluation.config import EvaluateConfig
from interchange.language.expression import to_text
from interchange.meta.config import TuneConfig
from tests.parity.backends import tf_impl, torch_impl

both_ways = pytest.mark.parametrize(("first", "second"), [(tf_impl, torch_impl), (torch_impl, tf_impl)])
SHARED = {"problem": "quadratic", "quiet": True, "dtype": "float64"}


@both_ways
@pytest.mark.slow_with(first=(torch_impl,))
def test_a_rule_of_one_recording_is_tuned_by_the_other_and_evaluated_by_both(first, second, tmp_path):
    folder = str(tmp_path / "rules")
    recorded = {"runs": 4, "steps": 40, "samples": 2000, "out": str(tmp_path / "t.h5")}
    file = first.record(RecordConfig(source="momentum:lr=0.01", **recorded, **SHARED))
    settings = {"evaluations": 3_000, "max_size": 9, "threads": 1, "quiet": True}
    distill(DistillConfig(trajectories=str(file), out=folder, **settings))
    ranked = {
        package: package.select(SelectConfig(front=folder, steps=20, tasks=1, **SHARED))
        for package in (second, first)
    }

    def loss(rule):
        return rule.provenance["loss"]["valid"]

    losses = [
        {(to_text(rule.expression), *rule.constants.items()): loss(rule) for rule in rules}
        for rules in ranked.values()
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    # Which of two equally good rules comes first is rounding.
    assert loss(ranked[first][0]) == pytest.approx(loss(ranked[second][0]), rel=1e-9)
    settings = {"epochs": 2, "epoch_length": 20, "pairs": 1, "validate_every": 1}
    out = str(tmp_path / "tuned.json")
    tuned = second.tune(TuneConfig(rule=f"{folder}/best.json", out=out, **settings, **SHARED))
    assert tuned.expression == ranked[first][0].expression
    asked = {"optimizers": (f"rule:{out}", "adam:lr=0.01"), "steps": (20,), "seeds": 2, "trials": 0}
    rows = [
        package.evaluate(EvaluateConfig(out=str(tmp_path / package.__name__), **asked, **SHARED))
        for package in (first, second)
    ]
    for one, other in zip(*rows, strict=True):
        assert (one.optimizer, one.seed, one.floats_per_parameter) == (
            other.optimizer, other.seed, other.floats_per_parameter,
        )  # fmt: skip
        np.testing.assert_allclose(other.losses, one.losses, rtol=1e-8)


@both_ways
def test_what_one_trained_is_where_the_other_starts(first, second, tmp_path):
    settings = {"problem": "mnist-conv", "dataset": "synthetic", "batch_size": 8, "dtype": "float64"}
    out = str(tmp_path / "net")
    done = first.optimize(OptimizeConfig(optimizer="adam:lr=0.01", steps=6, out=out, quiet=True, **settings))
    on = OptimizeConfig(optimizer="sgd:lr=0.01", steps=3, start=out, quiet=True, **settings)
    runs = [
        package.optimize(OptimizeConfig(**{**vars(on), "out": str(tmp_path / package.__name__)})).runs[0]
        for package in (first, second)
    ]
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=1e-9)
    assert runs[0].accuracy == runs[1].accuracy
    for name, array in runs[0].arrays.items():
        np.testing.assert_allclose(runs[1].arrays[name], array, rtol=0, atol=1e-9, err_msg=name)
    assert done.runs[0].losses[0] != runs[0].losses[0]
