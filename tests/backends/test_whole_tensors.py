"""Recordings of whole tensors in either framework: what rules that see tensors make of them."""

import dataclasses

import numpy as np
import pytest

from common.errors import L2OError
from interchange.commands.record import RecordConfig
from interchange.files.trajectories import load_trajectories, save_trajectories
from interchange.files.whole import evaluated, views_of
from interchange.rule.rule import Rule
from tests.helpers.tensor_rules import ADAFACTOR_LIKE, FEATURES, MUON_LIKE

SHAPES = ((4, 6), (6,), (3, 3, 2, 5), (5,), (5, 2), (2,))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
MATRICES = [True, False, True, False, True, False]


def recorded(impl, tmp_path, rule: Rule, count: int = 3, **settings):
    """Of ``count`` runs of a rule on gradients drawn anew, from a file."""
    recorder = None
    for run in range(count):
        rng = np.random.default_rng(run)
        params = impl.parameters([rng.normal(size=shape) for shape in SHAPES])
        optimizer = impl.rule(params, rule, 0.5)
        if recorder is None:
            recorder = impl.Recorder(optimizer, whole_tensors=True, **settings)
        else:
            recorder.start_run(optimizer)
        for _ in range(6):
            recorder.loss(1.0)
            impl.feed(optimizer, params, [rng.normal(size=shape) for shape in SHAPES])
    return load_trajectories(recorder.save(tmp_path / "whole.h5"))


@pytest.mark.parametrize("rule", [ADAFACTOR_LIKE, MUON_LIKE, FEATURES], ids=lambda rule: rule.name)
def test_a_rule_evaluated_on_its_recording_is_what_was_recorded(impl, rule, tmp_path):
    for run in recorded(impl, tmp_path, rule, coordinates=10**6).runs.values():
        assert run.y.shape == (6, sum(SIZES)) and [view.matrix for view in views_of(run)] == MATRICES
        np.testing.assert_allclose(evaluated(rule, run), run.y, rtol=1e-8, atol=1e-12)


def test_only_whole_tensors_are_recorded_and_no_more_of_them_than_asked_for(impl, tmp_path):
    seen = set()
    for run in recorded(impl, tmp_path, ADAFACTOR_LIKE, coordinates=30).runs.values():
        assert 0 < run.y.shape[1] <= 30
        numbers, counts = np.unique(run.param_index, return_counts=True)
        assert counts.tolist() == [SIZES[k] for k in numbers]
        np.testing.assert_allclose(evaluated(ADAFACTOR_LIKE, run), run.y, rtol=1e-8, atol=1e-12)
        seen.add(tuple(numbers))
    assert len(seen) > 1


def test_tensors_of_one_run_are_dealt_out_whole(impl, tmp_path):
    found = recorded(impl, tmp_path, ADAFACTOR_LIKE, 1, coordinates=10**6)
    assert found.config["held_out"] == "tensors"
    assert sum(run.y.shape[1] for run in found.runs.values()) == sum(SIZES)
    for run in found.runs.values():
        np.testing.assert_allclose(evaluated(ADAFACTOR_LIKE, run), run.y, rtol=1e-8, atol=1e-12)
    with pytest.raises(L2OError, match="expected at least 5 tensors to deal out"):
        recorded(impl, tmp_path / "few", ADAFACTOR_LIKE, 1, coordinates=1)


def test_the_command_records_whole_tensors(impl, tmp_path):
    rule, out = tmp_path / "rule.json", str(tmp_path / "whole.h5")
    ADAFACTOR_LIKE.save(rule)
    config = RecordConfig(
        source=f"rule:{rule}", problem="digits-mlp", runs=3, steps=4, samples=3 * 4 * 700, dtype="float64",
        batch_size=8, out=out, whole_tensors=True, quiet=True,
    )  # fmt: skip
    found = load_trajectories(impl.module("record").record(config))
    assert found.config["whole_tensors"] is True
    for run in found.runs.values():
        assert any(view.matrix for view in views_of(run)) and run.y.shape[1] <= 700
        expected = evaluated(ADAFACTOR_LIKE, run) / run.scale
        np.testing.assert_allclose(run.y, expected, rtol=1e-9, atol=1e-12)


def test_without_whole_tensors_a_rule_that_sees_them_is_refused(impl, tmp_path):
    found = recorded(impl, tmp_path, ADAFACTOR_LIKE, coordinates=10**6)
    run = next(iter(found.runs.values()))
    assert evaluated(Rule.from_text("-0.1 * ema(g, 0.9)"), run).shape == run.y.shape
    with pytest.raises(L2OError, match="expected whole tensors; record with --whole-tensors"):
        evaluated(ADAFACTOR_LIKE, dataclasses.replace(run, params_views=None))
    cut = {name: getattr(run, name)[..., 1:] for name in ("g", "theta", "param_index", "flat_index")}
    with pytest.raises(L2OError, match="expected each of its tensors whole and in order"):
        evaluated(ADAFACTOR_LIKE, dataclasses.replace(run, **cut))
    plain = {name: dataclasses.replace(r, params_views=None) for name, r in found.runs.items()}
    save_trajectories(tmp_path / "plain.h5", dataclasses.replace(found, runs=plain))
    assert load_trajectories(tmp_path / "plain.h5").runs[run.name].params_views is None
