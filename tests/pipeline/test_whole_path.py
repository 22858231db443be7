"""The whole path from Python, as a new user would type it, and what it promises on the embedded data."""

import numpy as np
import pytest

from common.metrics import loss_at
from common.tables.baselines import parse_spec
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.meta.config import TrainConfig, TuneConfig
from tests.helpers.commands import ROOT

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("pyoperon", reason="the search engine needs pyoperon")

from torch_impl import record, select, sources, train, tune
from torch_impl.rollout import rollout, task

STEPS = 100


@pytest.mark.slow
def test_the_notebook_runs_and_shows_the_rule_and_the_front(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    notebook = nbformat.read(ROOT / "common" / "notebook.ipynb", as_version=4)
    for name, value in (("PYTHONPATH", str(ROOT)), ("PYTHONWARNINGS", "error::UserWarning")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own, which shows what is drawn
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources=resources, timeout=300)
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    streams = {"stdout": "", "stderr": ""}
    for output in outputs:
        if output.output_type == "stream":
            streams[output.name] += output.text
    assert streams["stderr"] == ""
    shown = [output.data for output in outputs if "data" in output]
    assert any("aligned" in data.get("text/latex", "") for data in shown)  # the rule
    assert any("<math" in data.get("text/html", "") for data in shown)  # the front
    assert any("image/png" in data for data in shown)
    names = ("runs/rp/teacher.h5", "runs/rules/front.csv", "runs/tuned.json", "runs/evaluation/summary.csv")
    names += ("runs/net/losses.csv", "runs/SymbolicOptimizer.h5")
    assert [name for name in names if not (tmp_path / name).is_file()] == []
    names = ("SymbolicOptimizer ", "LearnedOptimizer ", "Adam ")
    losses = [float(line.split()[1]) for line in streams["stdout"].splitlines() if line.startswith(names)]
    assert len(losses) == 3 and max(losses) < 0.5


def loss_of(spec: str, multiplier: float = 1.0) -> float:
    """Mean loss at step 100 over five test seeds that nothing before has seen."""
    config, source = SelectConfig(front="-", problem="digits-mlp"), sources.load(parse_spec(spec))
    runs = [rollout(source, multiplier, task(config, "test", number), STEPS) for number in range(5)]
    return float(np.mean([loss_at(run.losses, STEPS) for run in runs]))


@pytest.mark.slow
def test_teacher_rule_and_tuned_rule_reach_what_they_promise_on_digits(tmp_path):
    folder = str(tmp_path / "run")
    best, tuned = f"{folder}/rules/best.json", f"{folder}/tuned.json"
    steps = {"epoch_length": STEPS, "quiet": True}
    train(TrainConfig(epochs=100, lr=2e-3, lr_decay=0.1, validate_every=5, out=folder, **steps))
    record(RecordConfig(source=folder, runs=12, samples=120_000, quiet=True))
    _, rule = distill(DistillConfig(trajectories=f"{folder}/trajectories.h5", time=60.0, quiet=True))
    assert rule.complexity <= 40 and rule.provenance["r2"]["test"] >= 0.9
    select(SelectConfig(front=f"{folder}/rules", steps=STEPS, quiet=True))
    tune(TuneConfig(rule=best, out=tuned, **steps))
    figures = {
        "teacher": loss_of(f"teacher:{folder}"),
        "rule": loss_of(f"rule:{best}"),
        "tuned": loss_of(f"rule:{tuned}"),
        "adam": min(loss_of("adam", lr) for lr in (0.004, 0.008, 0.016, 0.032, 0.064)),
    }
    print(figures)
    assert figures["rule"] <= 1.1 * figures["teacher"]
    assert figures["tuned"] <= 1.1 * figures["rule"]  # validation seeds were tuned on; these are others
