"""Step sizes by tensor that one backend found run in both, and both find the same ones in float64."""

import dataclasses

import numpy as np
import pytest

from common.errors import L2OError
from interchange import Rule, load_weights
from interchange.commands.optimize import OptimizeConfig
from interchange.meta.config import TuneConfig
from tests.helpers.commands import saved_rule
from tests.parity.backends import tf_impl, torch_impl

SHARED = {"problem": "digits-mlp", "batch_size": 16, "quiet": True, "dtype": "float64"}
QUICK = {"epochs": 2, "epoch_length": 12, "unroll": 6, "validation_tasks": 1, "validate_every": 1, "lr": 0.3}
SGD = {"rule": "sgd", "step_size": 0.01}
TEACHER = {"rule": "rp_s", "step_size": 0.5}


def tuned(package, out, **fields):
    given = {"per_tensor": True, "out": str(out)} | QUICK | SHARED
    return package.tune(TuneConfig(**given | fields))


def sizes(package, tmp_path, **fields) -> dict[str, float]:
    return tuned(package, tmp_path / package.__name__, **fields).step_sizes


@pytest.mark.parametrize(
    "fields",
    [
        SGD | {"estimator": "second"},
        SGD | {"pairs": 2},
        TEACHER | {"estimator": "first"},
        pytest.param(TEACHER | {"estimator": "second"}, marks=pytest.mark.slow),
        pytest.param(SGD | {"estimator": "forward"}, marks=pytest.mark.slow),
        pytest.param(TEACHER | {"estimator": "pes", "pairs": 2}, marks=pytest.mark.slow),
    ],
)
def test_both_backends_find_the_same_step_sizes(fields, tmp_path):
    one, other = (sizes(package, tmp_path, **fields) for package in (torch_impl, tf_impl))
    assert list(one) == list(other) and len(one) == 6
    assert other == pytest.approx(one, rel=1e-9)
    assert any(abs(np.log(size / fields["step_size"])) > 0.1 for size in one.values())


@pytest.mark.parametrize(("first", "second"), [(torch_impl, tf_impl), (tf_impl, torch_impl)])
@pytest.mark.parametrize("fields", [SGD, TEACHER], ids=["rule", "teacher"])
def test_a_file_of_step_sizes_runs_in_both_and_is_more_than_its_lr(first, second, fields, tmp_path):
    kind = "teacher" if fields is TEACHER else "rule"
    out = tmp_path / f"tuned.{'h5' if kind == 'teacher' else 'json'}"
    found = tuned(first, out, estimator="first", **fields)
    read = load_weights(out) if kind == "teacher" else Rule.load(out)
    assert read.step_sizes == found.step_sizes and read.sha256 == found.sha256
    losses = [
        package.optimize(
            OptimizeConfig(
                optimizer=f"{kind}:{out}", steps=8, out=str(tmp_path / package.__name__), **SHARED
            )
        ).runs[0].losses
        for package in (first, second)
    ]  # fmt: skip
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)
    plain = dataclasses.replace(read, step_sizes={})
    plain.save(out)
    other = first.optimize(
        OptimizeConfig(optimizer=f"{kind}:{out}", steps=8, out=str(tmp_path / "p"), **SHARED)
    )
    assert np.abs(other.runs[0].losses - losses[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kinds": True}, "--per-tensor tunes step sizes and nothing else, cheaply; leave out --kinds"),
        ({"memory": 1.0, "estimator": "forward"}, "nothing else, cheaply; leave out --memory"),
        ({"problem": "digits-mlp,quadratic"}, "--per-tensor: expected one problem"),
        ({"rule": "r.json"}, "--per-tensor: expected a rule without weight decay"),
        ({"rule": "rp_s", "constants": ("c0=1",)}, "rp_s is a teacher, which has none"),
        ({"rule": "psgd"}, "expected a rule or a teacher, got an optimizer that is no equation here"),
    ],
)
def test_what_has_no_step_sizes_is_refused_in_one_line(fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_rule(tmp_path, "-c0 * g - c1 * theta", c0=0.1, c1=0.01)
    with pytest.raises(L2OError, match=message):
        tuned(torch_impl, tmp_path / "x", **SGD | fields)
    assert not (tmp_path / "x").exists()


def test_what_has_step_sizes_is_tuned_and_recorded_no_more(tmp_path):
    from interchange.commands.record import RecordConfig

    path = tmp_path / "r.json"
    dataclasses.replace(Rule.named("adam"), step_sizes={"x": 0.5}).save(path)
    with pytest.raises(L2OError, match="without step sizes by tensor"):
        torch_impl.tune(TuneConfig(rule=str(path), problem="quadratic", quiet=True))
    with pytest.raises(L2OError, match="expected one learning rate for all tensors"):
        torch_impl.record(RecordConfig(source=f"rule:{path}", problem="quadratic", quiet=True))
    rule = torch_impl.tune(
        TuneConfig(
            rule=str(path), problem="quadratic", per_tensor=True, out=str(path), overwrite=True, **QUICK
        )
    )
    assert list(rule.step_sizes) == ["x"] and rule.step_sizes["x"] != 0.5
