"""The whole path from Python, as a new user would type it: notebook.py runs from top to bottom."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("notebook.py")
ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("torch")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(SCRIPT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr == ""
    names = ("training.png", "runs/rp/teacher.h5", "runs/rules/front.csv", "runs/tuned.json")
    names += ("runs/evaluation/summary.csv", "runs/net/losses.csv", "runs/SymbolicOptimizer.h5")
    assert [name for name in names if not (tmp_path / name).is_file()] == []
    names = ("SymbolicOptimizer ", "LearnedOptimizer ", "Adam ")
    losses = [float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith(names)]
    assert len(losses) == 3 and max(losses) < 0.5
