"""Recording from every kind of source, as a command, and what distillation makes of it."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.tables.baselines import BASELINES
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.files.trajectories import Run, load_trajectories
from interchange.files.weights import load_weights
from interchange.meta.config import TrainConfig
from interchange.rule.rule import Rule

torch = pytest.importorskip("torch")

from torch_impl import Recorder  # noqa: E402
from torch_impl.record import main  # noqa: E402
from torch_impl.train import train  # noqa: E402

ROOT = Path(__file__).parents[2]
RULE = Rule.from_text("c0 * m_tilde", {"c0": -1.0}, {"m_tilde": "ema(g, 0.5) / (abs(g) + 0.1)"}, scale=0.02)
SMALL = ["--steps", "12", "--runs", "3", "--samples", "1440", "--dtype", "float64", "--quiet"]


@pytest.fixture(autouse=True)
def restored_logging():
    """The commands hand warnings to logging for the rest of their process, which here is the tests'."""
    yield
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a training run ``run`` and a rule ``rule.json``."""
    folder = tmp_path_factory.mktemp("made")
    tiny = {"epochs": 1, "epoch_length": 4, "unroll": 2, "validate_every": 0, "teacher": "rp_s"}
    train(TrainConfig(problem="quadratic", **tiny, out=str(folder / "run"), quiet=True))
    RULE.save(folder / "rule.json")
    return folder


def recorded(out: Path, *arguments: str) -> list[Run]:
    assert main([*arguments, "--out", str(out), *SMALL]) == 0
    return list(load_trajectories(out).runs.values())


def stepwise(optimizer: torch.optim.Optimizer, theta: torch.Tensor, gradients: np.ndarray) -> np.ndarray:
    """Changes [step, n] of theta under recorded gradients."""
    changes = []
    for g in gradients:
        before = theta.detach().clone()
        theta.grad = torch.tensor(g)
        optimizer.step()
        changes.append((theta.detach() - before).numpy())
    return np.stack(changes)


# As the table's rows say, in torch's own words.
TORCHS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr),
}


@pytest.mark.parametrize("name", [name for name, row in BASELINES.items() if row.coordinatewise])
def test_every_baseline_is_recorded_on_digits_mlp(name, tmp_path):
    for run in recorded(tmp_path / "t.h5", f"{name}:lr=0.01", "--problem", "digits-mlp"):
        assert (run.source_kind, run.problem, run.outcome) == ("baseline", "digits-mlp", "ok")
        assert json.loads(run.source_json)["name"] == name and run.y.shape == (12, 40)
        np.testing.assert_array_equal(run.x[:, :, 0], run.g)
        if name in TORCHS and name != "adamw":  # whose decay needs theta
            theta = torch.zeros(40, dtype=torch.float64, requires_grad=True)
            want = stepwise(TORCHS[name]([theta], 0.01), theta, run.g)
            np.testing.assert_allclose(0.01 * run.y, want, rtol=1e-7, atol=1e-14)
        assert run.loss[-1] < run.loss[0]


def test_an_optimizer_of_whole_matrices_is_refused(tmp_path, capsys):
    """One long vector, as recording has it, would be another optimizer's trajectory."""
    assert main(["muon:lr=0.1", "--problem", "digits-mlp", "--out", str(tmp_path / "t.h5"), *SMALL]) == 2
    err = capsys.readouterr().err
    assert "muon:lr=0.1: expected an optimizer that works coordinate by coordinate" in err
    assert err.count("\n") == 1 and not (tmp_path / "t.h5").exists()


SOURCES = {
    "a training run": ("run", (), "teacher"),
    "a training run on another problem": ("run", ("--problem", "digits-mlp"), "teacher"),
    "a teacher": ("teacher:run", (), "teacher"),
    "a teacher file": ("run/teacher.h5", ("--problem", "digits-mlp"), "teacher"),
    "a teacher file by its kind": ("teacher:run/teacher.h5", ("--problem", "quadratic"), "teacher"),
    "a rule": ("rule:rule.json", ("--problem", "digits-mlp"), "rule"),
    "a rule file": ("rule.json", ("--problem", "digits-mlp"), "rule"),
}


@pytest.mark.parametrize(("source", "more", "kind"), SOURCES.values(), ids=SOURCES)
def test_every_form_of_a_source_is_recorded(source, more, kind, made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    problem = more[-1] if more else "quadratic"
    for run in recorded(tmp_path / "t.h5", source, *more):
        assert (run.source_kind, run.problem, run.outcome) == (kind, problem, "ok")
        assert run.y.shape == (12, 40) and np.abs(run.y).max() > 0
        if kind == "rule":
            assert run.source_sha256 == RULE.sha256
            np.testing.assert_allclose(0.02 * run.y, RULE.evaluate({"g": run.g}), rtol=1e-9, atol=1e-15)
        else:
            assert run.source_sha256 == load_weights("run").sha256


def test_a_run_is_recorded_into_its_own_folder_and_once_only(made, capsys):
    assert main([str(made / "run"), *SMALL]) == 0
    assert load_trajectories(made / "run" / "trajectories.h5").config["problem"] == "quadratic"
    assert main([str(made / "run"), *SMALL]) == 2
    assert "is there already; replace it with --overwrite" in capsys.readouterr().err


BAD = {
    "no problem": (["adam"], "--problem is missing: adam is no training run that names one"),
    "no source": ([], "SOURCE is missing"),
    "unknown": (["nowhere/run", "--problem", "quadratic"], "unknown optimizer 'nowhere/run'"),
    "no such run": (["teacher:nowhere", "--problem", "quadratic"], "nowhere"),
    "no such rule": (["rule:nowhere.json", "--problem", "quadratic"], "nowhere.json"),
    "unknown option": (["sgd:speed=1", "--problem", "quadratic"], "unknown option 'speed'"),
    "diverging at once": (
        ["sgd:lr=1e300", "--problem", "quadratic"],
        "on quadratic diverged; lower its lr",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_a_source_that_cannot_be_recorded_is_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "t.h5"), *SMALL]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_distilling_a_recording_of_sgd_finds_minus_g(tmp_path):
    """From the shell, as a user would."""
    pytest.importorskip("pyoperon")
    file = tmp_path / "sgd.h5"
    arguments = ["sgd", "--problem", "digits-mlp", "--steps", "40", "--runs", "4", "--samples", "8000"]
    command = [sys.executable, "-m", "torch_impl.record", *arguments, "--out", str(file)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout == f"trajectories: {file}\n"
    settings = {"time": 3.0, "threads": 1, "out": str(tmp_path / "rules"), "quiet": True}
    _, best = distill(DistillConfig(trajectories=str(file), **settings))
    assert best.provenance["r2"]["test"] >= 0.999
    g = np.linspace(-1.0, 1.0, 9)
    np.testing.assert_allclose(best.evaluate({"g": g[:, None]})[:, 0], -g, rtol=1e-3, atol=1e-6)


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
    file = recorder.save(tmp_path / "mine.h5")
    settings = {"time": 4.0, "threads": 1, "out": str(tmp_path / "rules"), "quiet": True}
    _, best = distill(DistillConfig(trajectories=str(file), **settings))
    assert best.provenance["r2"]["test"] >= 0.99 and "ema(g" in str(best.expression)
