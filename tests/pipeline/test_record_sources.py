"""Recording from every kind of source, as a command, and what distillation makes of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.tables.baselines import BASELINES, baseline_names
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.files.trajectories import Run, load_trajectories
from interchange.files.weights import load_weights
from interchange.rule.rule import Rule
from tests.helpers.commands import call

torch = pytest.importorskip("torch")

from torch_impl import Recorder  # noqa: E402

RULE = Rule.from_text("c0 * m_tilde", {"c0": -1.0}, {"m_tilde": "ema(g, 0.5) / (abs(g) + 0.1)"}, scale=0.02)


SMALL = "--steps 12 --runs 3 --samples 1440 --dtype float64 --quiet"


def recorded(out: Path, words: str) -> list[Run]:
    assert call(f"torch_impl.record {words} --out {out} {SMALL}") == 0
    return list(load_trajectories(out).runs.values())


def stepwise(optimizer: torch.optim.Optimizer, theta: torch.Tensor, gradients: np.ndarray) -> np.ndarray:
    changes = []
    for g in gradients:
        before = theta.detach().clone()
        theta.grad = torch.tensor(g)
        optimizer.step()
        changes.append((theta.detach() - before).numpy())
    return np.stack(changes)


# As the table's rows say, in torch's own words; not adamw, whose decay needs theta.
TORCHS = {
    "sgd": lambda p, given: torch.optim.SGD(p, 0.01),
    "momentum": lambda p, given: torch.optim.SGD(p, 0.01, momentum=0.9),
    "nesterov": lambda p, given: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda p, given: torch.optim.RMSprop(p, 0.01),
    "adagrad": lambda p, given: torch.optim.Adagrad(p, 0.01),
    "adam": lambda p, given: torch.optim.Adam(p, 0.01, betas=(given["beta1"], 0.999)),
}


SPECS = {name: f"{name}:lr=0.01" for name in baseline_names("torch") if BASELINES[name].coordinatewise}
SPECS["adam with another decay"] = "adam:lr=0.01,beta1=0.7"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_baseline_is_recorded_on_digits_mlp(spec, tmp_path):
    name = spec.partition(":")[0]
    for run in recorded(tmp_path / "t.h5", f"{spec} --problem digits-mlp"):
        assert (run.source_kind, run.problem, run.outcome) == ("baseline", "digits-mlp", "ok")
        assert (run.scale, run.source_sha256) == (1.0, "")
        source = json.loads(run.source_json)
        assert source["name"] == name and run.y.shape == (12, 40)
        assert "beta1=0.7" not in spec or source["beta1"] == 0.7
        np.testing.assert_array_equal(run.x[:, :, 0], run.g)
        if name in TORCHS:
            theta = torch.zeros(40, dtype=torch.float64, requires_grad=True)
            want = stepwise(TORCHS[name]([theta], source), theta, run.g)
            np.testing.assert_allclose(0.01 * run.y, want, rtol=1e-7, atol=1e-14)
        assert run.loss[-1] < run.loss[0]


SOURCES = {
    "a training run": ("{run}", "teacher"),
    "a training run on another problem": ("{run} --problem digits-mlp", "teacher"),
    "a teacher": ("teacher:{run}", "teacher"),
    "a teacher file": ("{run}/teacher.h5 --problem digits-mlp", "teacher"),
    "a teacher file by its kind": ("teacher:{run}/teacher.h5 --problem quadratic", "teacher"),
    "a rule": ("rule:rule.json --problem digits-mlp", "rule"),
    "a rule file": ("rule.json --problem digits-mlp", "rule"),
}


@pytest.mark.parametrize(("words", "kind"), SOURCES.values(), ids=SOURCES)
def test_every_form_of_a_source_is_recorded(words, kind, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RULE.save("rule.json")
    problem = "digits-mlp" if "digits-mlp" in words else "quadratic"
    for run in recorded(tmp_path / "t.h5", words.format(run=trained)):
        assert (run.source_kind, run.problem, run.outcome) == (kind, problem, "ok")
        assert run.y.shape == (12, 40) and np.abs(run.y).max() > 0
        assert run.source_sha256 == (RULE if kind == "rule" else load_weights(trained)).sha256
        if kind == "rule":
            np.testing.assert_allclose(0.02 * run.y, RULE.evaluate({"g": run.g}), rtol=1e-9, atol=1e-15)


def test_a_run_is_recorded_into_its_own_folder_and_once_only(trained, tmp_path, refused):
    run = shutil.copytree(trained, tmp_path / "run")
    assert call(f"torch_impl.record {run} {SMALL}") == 0
    assert load_trajectories(run / "trajectories.h5").config["problem"] == "quadratic"
    message = refused(f"torch_impl.record {run} {SMALL}")
    assert "is there already; replace it with --overwrite" in message


def test_distilling_one_loop_of_a_users_own_finds_its_momentum(tmp_path):
    pytest.importorskip("pyoperon")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.8)
    recorder = Recorder(optimizer, coordinates=60, steps=60)
    for _ in range(60):
        x = torch.randn(32, 8, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x)[:, 0] - x.prod(1)).square().mean().backward()
        optimizer.step()
    file = str(recorder.save(tmp_path / "mine.h5"))
    settings = {"evaluations": 5_000, "threads": 1, "out": str(tmp_path / "rules"), "quiet": True}
    _, best = distill(DistillConfig(trajectories=file, **settings))
    assert best.provenance["r2"]["test"] >= 0.99 and "ema(g" in str(best.expression)
