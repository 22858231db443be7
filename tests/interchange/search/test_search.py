"""The engine protocol: a child process, limits of time and memory, and what is kept when it ends."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.registry import Registry
from interchange.language.expression import to_text
from interchange.language.parse import parse
from interchange.search import ENGINES, Engine, Task, child, find_engine
from interchange.search.child import run_engine
from interchange.search.samples import Sequences, choose_rows, row_values

ROOT = Path(__file__).parents[3]
BEGIN = "import os, sys, time, dataclasses\ndef search(task, report):\n"
FOUND = "    report(['1.0 * a', 'b'])\n"


def task(**changes) -> Task:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3))
    values = {"a": rng.normal(size=(5, 12)), "b": rng.normal(size=(5, 12))}
    columns, y = ("a", "lag(b, 1)", "ema(a, 0.9)"), rows @ [1.0, -2.0, 0.5]
    base = Task(("a", "b"), values, values["a"] * 2.0, columns, rows, y, np.ones(60), time=30.0)
    return dataclasses.replace(base, **changes)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Makes engine 'toy' of the body of its search."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(body: str, **fields) -> None:
        (tmp_path / "toy_engine.py").write_text(BEGIN + body, encoding="utf-8")
        rows = {"toy": Engine("toy_engine", **fields)}
        monkeypatch.setattr("interchange.search.ENGINES", Registry("engine", rows))

    return make


def found(*arguments, **keywords) -> list[str]:
    return [to_text(node) for node in run_engine("toy", *arguments, **keywords)]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waits for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_task_arrives_whole_and_the_texts_come_back_as_trees(toy):
    toy(
        "    assert task.names == ('a', 'b') and task.columns[1] == 'lag(b, 1)'\n"
        "    assert task.rows.shape == (60, 3) and task.y.shape == task.weights.shape == (60,)\n"
        "    assert task.options == {'depth': 3} and task.guesses == ('a',) and task.seed == 7\n"
        "    assert not task.features and task.target.size == 0\n"
        "    block = b'x' * (100 << 20)\n"  # memory below the limit is there
        "    return ['b + 0.1', repr(float(task.rows[3, 1])) + ' * lag(a, 2)']\n"
    )
    asked = task(seed=7, guesses=("a",), options={"depth": 3}, memory=256 << 20)
    assert found(asked) == ["b + 0.1", f"{float(asked.rows[3, 1])!r} * lag(a, 2)"]


def test_an_engine_of_sequences_gets_them_but_no_table_whole(toy):
    """All that it could use of rows without a past is in the chosen rows."""
    toy(
        "    return [repr(float(abs(task.target - 2.0 * task.features['a']).max())) + ' * b']\n",
        sequences=True,
    )
    assert found(task()) == ["0.0 * b"]
    toy("    return [str(float(task.target.size + len(task.features))) + ' * b']\n", sequences=True)
    table = {name: x.reshape(1, -1) for name, x in task().features.items()}
    assert found(task(features=table, target=task().target.reshape(1, -1))) == ["0.0 * b"]


def test_what_is_no_expression_over_the_names_is_dropped_and_logged(toy, caplog):
    toy("    return ['a', 'nan * a', 'c0 * a', '__import__(\"os\")', 'a', 'a if b else 1', 'g']\n")
    with caplog.at_level(logging.WARNING):
        assert found(task()) == ["a"]
    assert len(caplog.records) == 5 and all("an equation is dropped" in r.message for r in caplog.records)


ENDS = {
    "it raises": ("    raise ValueError('no such\\nsymbol: foo')\n", "failed with exit code 1: ValueError"),
    "it refuses": (
        "    from common.errors import L2OError\n    raise L2OError('expected x; got y')\n",
        "engine 'toy': expected x; got y",
    ),
    "it exits": ("    os._exit(7)\n", "failed with exit code 7: no message"),
    "it crashes": ("    os.kill(os.getpid(), 11)\n", "failed with exit code -11: no message"),
    "it ends early": ("    print('half', file=sys.stderr); sys.exit(0)\n", "failed with exit code 0: half"),
    "it is killed": ("    os.kill(os.getpid(), 9)\n", "failed with exit code -9"),
    "it hangs": ("    time.sleep(600)\n", "s over its limit and was killed"),
    "it takes all memory": ("    b'x' * (600 << 20)\n", "needed more than its 0.25 GiB of memory"),
}


@pytest.mark.parametrize(("body", "message"), ENDS.values(), ids=ENDS)
def test_a_search_that_ends_badly_keeps_what_was_reported(body, message, toy, monkeypatch, caplog):
    hangs = "sleep" in body
    monkeypatch.setattr(child, "_GRACE", 2.0 if hangs else 60.0)
    asked = task(time=1.0, memory=256 << 20)
    if "raises" in message or "ValueError" in message:
        message = "symbol: foo"
    toy(body)
    with pytest.raises(L2OError) as error:
        run_engine("toy", asked)
    assert message in str(error.value) and "\n" not in str(error.value)
    toy(FOUND + body)
    with caplog.at_level(logging.WARNING):
        assert found(asked) == ["1.0 * a", "b"]
    assert message in caplog.text and "goes on with the 2 equations" in caplog.text


def test_ctrl_c_ends_the_child_and_returns_what_was_reported(toy, tmp_path, caplog):
    toy(f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{FOUND}    time.sleep(600)\n")

    def interrupt(texts: list[str]) -> None:
        assert texts == ["1.0 * a", "b"]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)

    # A shell without job control starts what runs in its background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caplog.at_level(logging.WARNING):
            assert found(task(), live=interrupt) == ["1.0 * a", "b"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert "was interrupted" in caplog.text
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_thread_is_told_to_stop_as_if_by_ctrl_c(toy):
    toy(f"{FOUND}    time.sleep(600)\n")
    stop = threading.Event()
    assert found(task(), live=lambda texts: stop.set(), stop=stop) == ["1.0 * a", "b"]


def test_ctrl_c_before_anything_was_found_ends_the_command(toy):
    toy("    time.sleep(600)\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_engine("toy", task(), interrupt)


def test_the_child_ends_with_its_files_when_its_parent_is_killed(toy, tmp_path):
    pid = tmp_path / "pid"
    toy(f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n{FOUND}    time.sleep(600)\n")
    code = (
        "import numpy as np, interchange.search as s\n"
        "from common.registry import Registry\n"
        "from interchange.search.child import run_engine\n"
        "s.ENGINES = Registry('engine', {'toy': s.Engine('toy_engine')})\n"
        "x = np.ones((3, 1))\n"
        "run_engine('toy', s.Task(('a',), {}, x, ('a',), x, x[:, 0], x[:, 0], time=600.0))"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    files = tmp_path / "files"
    files.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(files)}
    )
    try:
        until(lambda: any(files.rglob("partial.json")) and pid.read_text() != "", 60.0)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: gone(int(pid.read_text())), 20.0)
    assert not list(files.iterdir())


def until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_ticks_come_once_a_second_and_no_more_than_the_seconds_asked(toy):
    toy("    time.sleep(3.0)\n    return ['a']\n")
    ticks = []
    run_engine("toy", task(time=2.0), lambda: ticks.append(1))
    assert len(ticks) == 2


# Of auto, test_distill.py says so of the whole command.
@pytest.mark.parametrize("engine", ["linear", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_seed_and_a_budget_give_the_same_texts_whatever_the_time_and_the_threads(engine):
    if find_engine(engine).package:
        pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    generator = np.random.default_rng(1)
    features = {name: generator.normal(size=(100, 120)) for name in ("a", "b")}
    sums = np.cumsum(features["b"], axis=0)
    data = Sequences(features, np.tanh(features["a"]) + 0.02 * sums)
    chosen = choose_rows(data, 1500, seed=0)
    columns = ("a", "lag(b, 1)", "ema(a, 0.9)", "cumsum(b)")
    asked = {"rows": row_values([parse(text) for text in columns], features, chosen), "columns": columns}
    asked |= {"features": features, "target": data.target, "y": chosen.of(data.target)}
    asked = task(weights=chosen.weights, time=300.0, evaluations=2_000, seed=3, **asked)
    other = dataclasses.replace(asked, time=900.0, threads=2)
    first, again = ([to_text(node) for node in run_engine(engine, each)] for each in (asked, other))
    assert len(first) > 2 and first == again


def test_bad_tasks_and_engines_are_one_line(toy, monkeypatch):
    toy("    return ['a']\n")
    nan = np.full(60, np.nan)
    for changes, message in (
        ({"y": nan}, "expected finite features and targets"),
        ({"y": np.ones(3)}, "expected rows [n, 3], y [n] and weights [n]"),
        ({"columns": ("a",)}, "expected rows [n, 1]"),
        ({"weights": -np.ones(60)}, "expected weights of 0 or more"),
        ({"weights": np.zeros(60)}, "expected weights of 0 or more"),
    ):
        with pytest.raises(L2OError) as error:
            run_engine("toy", task(**changes))
        assert message in str(error.value) and "\n" not in str(error.value)
    toy("    return {'a': 1}\n")
    with pytest.raises(L2OError, match="expected a list of texts"):
        run_engine("toy", task())
    toy("    return ['a']\n", package="no_such_package_anywhere")
    with pytest.raises(
        L2OError,
        match="'toy' needs no_such_package_anywhere, which is not installed: python -m pip install no_such_p",
    ):
        run_engine("toy", task())


def test_engines_by_name():
    assert set(ENGINES) == {"operon", "pysr", "linear", "auto"}
    assert find_engine("operon") is ENGINES["operon"]
    row = find_engine("sklearn:some.where:Regressor")
    assert (row.module, row.package) == ("interchange.search.regressor", "some")
    with pytest.raises(L2OError, match="unknown engine 'operom' \\(did you mean 'operon'"):
        find_engine("operom")
    for name in ("sklearn:", "sklearn:os", "sklearn:a:b:c", "sklearn:a b:c", "sklearn:.a:b", "sklearn:a/b:c"):
        with pytest.raises(L2OError, match="expected an engine of the form sklearn:MODULE:CLASS"):
            find_engine(name)
    with pytest.raises(
        L2OError, match="needs no_such_module_anywhere, which is not installed: python -m pip"
    ):
        run_engine("sklearn:no_such_module_anywhere:Class", task())
