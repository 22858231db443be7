"""Commands run in this process, and what their runs leave."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import reference
from common.run import cli
from common.tables.problems import Instance
from interchange.files.trajectories import Run
from interchange.files.weights import load_weights
from interchange.rule.rule import Rule

ROOT = Path(__file__).parents[2]


def main_of(command: str) -> Callable[[list[str]], int]:
    folder = find_spec(command).submodule_search_locations
    return import_module(f"{command}.__main__" if folder else command).main


def call(line: str, *more: object) -> int:
    """The exit code of ``python -m LINE`` and more words, which may have spaces."""
    command, *words = shlex.split(line)
    return main_of(command)([*words, *map(str, more)])


def configuration(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command makes of its words, by its own parser."""
    main, made = main_of(command), []

    def stand_in(cls: type, body: Any, argv: list[str], **keywords: Any) -> int:
        shape = {k: v for k, v in keywords.items() if k not in ("required", "alone", "again", "leads")}
        given = vars(cli.parser_for(cls, **shape).parse_intermixed_args(argv))
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k != "config"}
        made.append(cli.resolve(cls, given))
        return 0

    shared = re.sub("^(torch|tf)_impl", "interchange.commands", command)
    home = shared if shared != command and find_spec(shared) else main.__module__
    if command.endswith("_impl.paper"):
        home = "interchange.paper.paper"
    monkeypatch.setattr(import_module(home), "run_command", stand_in)
    assert main(words) == 0
    return made[0]


def flags(fields: dict) -> list[str]:
    """Settings as words of a command line."""
    return [part for key, value in fields.items() for part in ("--" + key.replace("_", "-"), str(value))]


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run without the times."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(folder: Path, expected: Path) -> None:
    """The same bits in every weight, and the same metrics."""
    got, want = load_weights(folder), load_weights(expected)
    assert got.row == want.row and got.weights.keys() == want.weights.keys()
    for name, array in want.weights.items():
        assert array.dtype == got.weights[name].dtype and array.tobytes() == got.weights[name].tobytes(), name
    assert metrics(folder) == metrics(expected)


def unfinished(run: Path, folder: Path) -> Path:
    """A copy of a whole run that lacks its result, as if it had been killed at the very end."""
    shutil.copytree(run, folder)
    (folder / "teacher.h5").unlink()
    return folder


def user_run(name: str, x: np.ndarray, g: np.ndarray, y: np.ndarray, **fields: object) -> Run:
    """A recorded run of one vector: features x [step, n, feature], gradients and outputs [step, n]."""
    steps, n = g.shape
    given = {
        "problem": "quadratic", "problem_json": "{}", "source_kind": "user", "source_json": "{}",
        "source_sha256": "", "seed": 0, "init_seed": 0, "num_steps": steps, "scale": 1.0, "diverged": False,
        "outcome": "ok", "loss": np.ones(steps), "step": np.arange(1, steps + 1),
        "param_index": np.zeros(n, np.int32), "flat_index": np.arange(n, dtype=np.int32),
        "params_names": ("x",), "params_shapes": ((n,),),
    }  # fmt: skip
    return Run(name=name, x=x, g=g, y=y, **given | fields)


def descended(instance: Instance, steps: int, move: Callable) -> tuple[list[float], np.ndarray]:
    """A quadratic's losses before each ``theta = move(theta, g, step)`` by the oracle, and the last theta."""
    loss_and_grad = reference.quadratic(*instance.constants()[:2])
    theta, losses = instance.initial_parameters()["x"].ravel(), []
    for step in range(steps):
        loss, g = loss_and_grad(theta, step)
        losses.append(loss)
        theta = move(theta, g, step)
    return losses, theta


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def saved_rule(folder: Path, text: str = "c0 * g", **constants: float) -> str:
    """The path of a rule in a file of the folder."""
    Rule.from_text(text, constants).save(folder / "r.json")
    return str(folder / "r.json")


def rule_spec(folder: Path, text: str = "c0 * g", **constants: float) -> str:
    return f"rule:{saved_rule(folder, text, **constants)}"
