"""``tests/benchmarks/meta_training.py``: everybody computes the same, and its tables come out."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "benchmarks" / "meta_training.py"
JAX = ["jax"] if all(map(importlib.util.find_spec, ("jax", "optax"))) else []
SMALL = ["--problem", "digits-mlp", "--unroll", "4", "--steps", "4", "--rounds", "1"]


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What the script prints, and its JSON report."""
    command = [sys.executable, str(SCRIPT), *SMALL, *arguments, "--json", str(folder / "report.json")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "report.json").read_text())


def first_unroll(name: str, teacher: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses before each step and meta-gradient of a contestant's first unroll, in this process."""
    turns, contestants = import_module("turns"), import_module("contestants")
    more = {"contestant": name, "teacher": teacher, "problem": "digits-mlp", "unroll": 4, "steps": 4}
    contestant = contestants.built(turns.DEFAULTS | more)
    losses = contestant.epoch()
    assert len(losses) == 4
    assert contestant.first[0] == losses
    return contestant.first


@pytest.mark.parametrize("teacher", ["rnnprop", "rp_s", "dm", "rp_si"])
def test_references_agree_with_torch(teacher, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    losses, gradient = first_unroll("torch", teacher)
    for name in ("naive", "iclr", *JAX):
        others, expected = first_unroll(name, teacher)
        np.testing.assert_allclose(others, losses, rtol=1e-5)
        assert set(expected) == set(gradient), name
        for part, want in expected.items():
            size = float(np.abs(want).max())
            assert size > 0.0, part
            np.testing.assert_allclose(gradient[part], want, rtol=0.0, atol=1e-4 * size)


def test_the_table_comes_out(tmp_path):
    text, report = run(tmp_path, "--teachers", "rp_s", "--contestants", "torch", "naive")
    rows = report["rp_s"]["contestants"]
    assert list(rows) == ["torch", "torch 10%", "naive"]
    for label, row in rows.items():
        assert 0.0 <= row["disagreement"]["losses"] < 1e-5, label
        assert 0.0 <= row["disagreement"]["gradient"] < 1e-4, label
        assert row["median"] > 0.0, label
        assert len(row["steps_per_second"]) == 1, label
    assert rows["torch"]["losses"] == pytest.approx(rows["naive"]["losses"], rel=1e-3)
    assert report["rp_s"]["coordinates"] == 2780
    assert report["rp_s"]["stored"] == {"features": 4 * 4 * 2 * 2780, "gradients": 4 * 4 * 2780}
    head, *lines = text.splitlines()
    assert head.split() == ["rp_s", "steps/s", "/", "naive", "peak", "MB", "loss", "diff", "grad", "diff"]
    cells = {line[2:14].strip(): line[14:].split() for line in lines[:3]}
    expected = rows["torch 10%"]["median"] / rows["naive"]["median"]
    assert float(cells["torch 10%"][1]) == pytest.approx(expected, abs=0.006)
