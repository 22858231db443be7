"""The search's child process: rows in, trees out, nothing shared with the parent but two files.

Engines can crash or hang, and some must not live beside a deep-learning framework; the parent kills
the child when its time is up.
"""

import importlib
import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.storage import loads_json
from interchange.search import ENGINES, PACKAGES

_GRACE = 20.0  # seconds beyond the search's own limit, for imports and the last generation

_log = logging.getLogger(__name__)


def run_engine(
    engine: str,
    rows: np.ndarray,
    target: np.ndarray,
    settings: dict[str, Any],
    tick: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Run ``engine`` in a child process; its trees.

    Args:
        rows: [n, columns], finite; target: [n], finite, not constant.
        settings: at least ``time`` (seconds), ``max_length``, ``seed``, ``threads``.
        tick: called about once a second while the search runs, at most ``int(time)`` times.

    Raises:
        L2OError: unknown engine, its package is missing, the data are not finite, or it failed.
    """
    ENGINES[engine]
    if importlib.util.find_spec(PACKAGES[engine]) is None:
        raise L2OError(f"engine {engine!r} needs {PACKAGES[engine]}: pip install symbolic-l2o[{engine}]")
    if not (np.isfinite(rows).all() and np.isfinite(target).all()):
        raise L2OError(
            "expected finite features and targets, got nan or inf; record again without divergence"
        )
    with tempfile.TemporaryDirectory(prefix="l2o-search-") as folder:
        np.savez(Path(folder, "data.npz"), rows=rows, target=target)
        Path(folder, "settings.json").write_text(json.dumps(settings | {"engine": engine}), encoding="utf-8")
        command = [sys.executable, "-m", "interchange.search.child", folder]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        ) as child:
            try:
                messages = _wait(child, settings["time"], tick)
            except subprocess.TimeoutExpired:
                raise L2OError(
                    f"engine {engine!r} ran {_GRACE:.0f} s over its limit and was killed"
                ) from None
            finally:
                child.kill()  # also where the wait was interrupted
        output = Path(folder, "trees.json")
        if child.returncode or not output.exists():
            last = (messages.strip().splitlines() or ["no message"])[-1]
            raise L2OError(f"engine {engine!r} failed with exit code {child.returncode}: {last}")
        return loads_json(output.read_text(encoding="utf-8"), f"output of engine {engine!r}")


def _wait(child: subprocess.Popen[str], seconds: float, tick: Callable[[], None]) -> str:
    """Wait for the child, ticking; its messages. ``TimeoutExpired`` after ``seconds`` and the grace."""
    for second in range(int(seconds + _GRACE)):
        try:
            return child.communicate(timeout=1.0)[1]
        except subprocess.TimeoutExpired:
            if second < int(seconds):
                tick()
    return child.communicate(timeout=1.0)[1]


def main(folder: str) -> None:
    """Read ``data.npz`` and ``settings.json``, search, write ``trees.json``."""
    settings = json.loads(Path(folder, "settings.json").read_text(encoding="utf-8"))
    with np.load(Path(folder, "data.npz"), allow_pickle=False) as data:
        rows, target = data["rows"], data["target"]
    trees = importlib.import_module(ENGINES[settings["engine"]]).search(rows, target, settings)
    finite = [tree for tree in trees if _is_finite(tree)]
    Path(folder, "trees.json").write_text(json.dumps(finite), encoding="utf-8")


def _is_finite(tree: Any) -> bool:
    """Whether all constants of a tree are finite; local search can drive one off to infinity."""
    if tree[0] in ("c", "x"):
        return math.isfinite(tree[1])
    return all(map(_is_finite, tree[1:]))


if __name__ == "__main__":
    main(sys.argv[1])
