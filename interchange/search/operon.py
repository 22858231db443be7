"""Operon through pyoperon 0.6: genetic programming with local search of constants (Burlacu et al. 2020).

Runs only inside the search's child process. Trees are read from the nodes, because the printed model
rounds its constants to a few decimals. Every thread has a population of its own, an island: Operon with
several threads for one population waits at every generation, and one population alone settles too soon.
A run is cut into equal parts, each going on from the population before, so that the front is reported and
a budget of evaluations ends at the same place every time. All parts but the last ones see a few rows, other
ones each: the local search takes most of the time, and many generations on few rows find more than few on
all; the front is judged on all rows.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from common.errors import L2OError
from common.rng import derived_seed, rng
from interchange.dialects.objects import read_tree
from interchange.dialects.table import operon_tree
from interchange.language.expression import Node
from interchange.search import Task
from interchange.search.standard import Archive, Standard, resampled, standardised

# fmin and fmax are swapped in 0.6.2.
SYMBOLS = "add,sub,mul,div,tanh,square,abs,exp,constant,variable"
_POPULATION = 500
_GENERATIONS = 10  # of a part
_LENGTH_PER_NODE = 0.75  # Operon counts a weighted column as 1 where we count 3 to 5 nodes
_FEW_ROWS = 1000
_FEW_UNTIL = 0.8  # of the time or the evaluations
_SEED = 2**32


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """The front of all islands and parts, by our sizes and errors.

    Args:
        task: ``options`` are keywords of ``pyoperon.sklearn.SymbolicRegressor``.
    """
    started = time.monotonic()
    data, archive = standardised(task), Archive(task, report)
    # A budget of evaluations must give the same whatever the threads.
    islands = 1 if task.evaluations else task.threads
    with ThreadPoolExecutor(islands) as pool:
        for done in [pool.submit(_evolve, task, data, archive, started, island) for island in range(islands)]:
            done.result()
    return archive.texts()


def _evolve(task: Task, data: Standard, archive: Archive, started: float, island: int) -> None:
    """One population, part after part; Operon lets go of the interpreter while it runs."""
    from pyoperon.sklearn import SymbolicRegressor

    rows, y = resampled(task, (data.rows.astype(np.float32), data.y.astype(np.float32)))
    few = min(_FEW_ROWS, len(y))
    settings = _settings(task)
    per_part = settings["population_size"] * settings["generations"]
    regressor = SymbolicRegressor(**settings, warm_start=True)
    part, done = 0, 0
    while True:
        left = task.time - (time.monotonic() - started)
        if part and left < 0.5:
            break
        if task.evaluations:
            rest = -(-(task.evaluations - done) // settings["population_size"])
            regressor.generations = max(1, min(settings["generations"], rest))
        regressor.max_time = max(1, int(left))
        regressor.random_state = derived_seed(task.seed, "operon", island, part) % _SEED
        spent = done / task.evaluations if task.evaluations else 1.0 - left / task.time
        chosen = rng(task.seed, "operon rows", island, part).choice(len(y), few, replace=False)
        if spent >= _FEW_UNTIL or not np.ptp(y[chosen]):
            chosen = np.arange(len(y))
        regressor.fit(rows[chosen], y[chosen])
        archive.add(front(regressor, data))
        part, done = part + 1, done + per_part
        if task.evaluations and done >= task.evaluations:
            break


def _settings(task: Task) -> dict[str, Any]:
    return {
        "allowed_symbols": SYMBOLS,
        "objectives": ["r2", "length"],
        "max_length": max(5, round(_LENGTH_PER_NODE * task.max_size)),
        "max_depth": 10,
        "population_size": _POPULATION,
        "generations": _GENERATIONS,
        "max_evaluations": 10**12,  # Operon's own count includes the local search
        "optimizer_iterations": 2,
        "epsilon": 0.0,  # goes on where the error is small: shorter equations may be as good
        "n_threads": task.threads if task.evaluations else 1,
    } | task.options


def front(regressor: Any, data: Standard) -> list[Node]:
    """A fitted regressor's front over columns ``x0, x1, ...``, without trees of infinite constants."""
    columns = {code: index for index, code in enumerate(regressor.variables_)}
    nodes = []
    for row in regressor.pareto_front_:
        try:
            nodes.append(data.node(operon_tree(read_tree(row["tree"].Nodes, columns))))
        except L2OError:  # local search can drive a constant off to infinity
            continue
    return nodes
