"""Operon's islands: one population per thread, one front of all; a budget of evaluations has one."""

import sys
import threading
import time
import types
from typing import ClassVar

import numpy as np
import pytest

from interchange.language import expression as ex
from interchange.search import Task, operon
from interchange.search.standard import Archive

ROWS = np.random.default_rng(0).normal(size=(60, 2))


def task(threads: int, seconds: float = 1.2, evaluations: int = 0) -> Task:
    names, settings = ("a", "b"), {"time": seconds, "evaluations": evaluations, "threads": threads}
    return Task(names, {}, np.zeros((0, 0)), names, ROWS, ROWS.sum(axis=1), np.ones(60), **settings)


class Regressor:
    """In the place of Operon's: finds a variable times a number, another one for every seed."""

    made: ClassVar[list["Regressor"]] = []
    fail = False

    def __init__(self, **settings) -> None:
        self.settings, self.seeds, self.threads = settings, [], set()
        self.variables_ = {7: "X1", 8: "X2"}
        Regressor.made.append(self)

    def fit(self, rows: np.ndarray, y: np.ndarray) -> None:
        time.sleep(0.2)  # as Operon, which lets go of the interpreter
        if Regressor.fail and threading.active_count() > 2:
            raise MemoryError("bad_alloc")
        self.seeds.append(self.random_state)
        self.threads.add(threading.get_ident())
        kind = ("Variable", "Square")[len(Regressor.made) % 2]
        node = types.SimpleNamespace(
            Type="NodeType.Variable", Value=0.5 + self.random_state % 97, HashValue=7
        )
        nodes = [node] if kind == "Variable" else [node, types.SimpleNamespace(Type="x.Square", Arity=1)]
        self.pareto_front_ = [{"tree": types.SimpleNamespace(Nodes=nodes)}]


@pytest.fixture(autouse=True)
def fake(monkeypatch) -> None:
    module = types.ModuleType("pyoperon.sklearn")
    module.SymbolicRegressor = Regressor
    monkeypatch.setitem(sys.modules, "pyoperon", types.ModuleType("pyoperon"))
    monkeypatch.setitem(sys.modules, "pyoperon.sklearn", module)
    monkeypatch.setattr(Regressor, "made", [])
    monkeypatch.setattr(Regressor, "fail", False)


def test_every_thread_has_a_population_and_seeds_of_its_own():
    reports: list[list[str]] = []
    texts = operon.search(task(threads=3), reports.append)
    assert len(Regressor.made) == 3
    assert {one.settings["n_threads"] for one in Regressor.made} == {1}
    seeds = [seed for one in Regressor.made for seed in one.seeds]
    assert len(seeds) >= 6 and len(set(seeds)) == len(seeds)
    assert len(set.union(*(one.threads for one in Regressor.made))) == 3
    assert texts == reports[-1]


def test_a_budget_of_evaluations_has_one_population_whatever_the_threads():
    found = []
    for threads in (1, 3):
        Regressor.made = []
        found.append(operon.search(task(threads, 60.0, evaluations=9_000), lambda texts: None))
        assert [one.settings["n_threads"] for one in Regressor.made] == [threads]
    assert found[0] == found[1]


def test_a_failure_of_one_island_is_not_lost():
    Regressor.fail = True
    with pytest.raises(MemoryError, match="bad_alloc"):
        operon.search(task(threads=3, seconds=0.6), lambda texts: None)


def test_an_archive_takes_from_one_island_at_a_time():
    inside, most = [0], [0]

    def report(texts: list[str]) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.1)
        inside[0] -= 1

    archive = Archive(task(1), report)
    x0, x1 = ex.name("x0"), ex.name("x1")
    found = [x0, ex.call("add", x0, x1), ex.call("add", x0, ex.call("mul", ex.number(0.5), x1))]
    crowd = [threading.Thread(target=archive.add, args=([node],)) for node in found]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert most == [1]
    assert archive.texts() == ["a", "a + b"]
