"""Search engines behind one protocol, each run in a child process with limits of time and memory.

An engine is a module with ``search(task, report) -> list[str]``: expressions in the rule language over
``task.names`` with numbers as literals, which fit the target as it is. It calls ``report(texts so far)``
whenever it has something better, so that a limit or Ctrl-C keeps it.
"""

import dataclasses
import importlib.util
import re
from typing import Any

import numpy as np

from common.errors import L2OError
from common.extras import missing
from common.registry import Registry

SKLEARN = "sklearn:"
_SKLEARN_NAME = re.compile(SKLEARN + r"([A-Za-z_]\w*)((?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*", re.ASCII)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What an engine is asked.

    Attributes:
        names: the features, in order.
        features: name -> float64 [T, N], whole sequences (T = 1 for tables); empty for engines of rows.
        target: float64 [T, N], output before scale.
        columns: expressions over the features, texts of the rule language: what the columns of rows are.
        rows: float64 [n, columns], at most about 10,000 chosen rows.
        y: float64 [n].
        weights: float64 [n], not negative.
        time: seconds.
        evaluations: candidates to try, after which the same seed gives the same result; 0 for no limit.
        max_size: nodes of the largest expression wanted (FORMATS.md section 3).
        memory: bytes the child may take beyond what it starts with.
        guesses: expressions over the features to start from, where an engine can.
        options: what only one engine knows.
    """

    names: tuple[str, ...]
    features: dict[str, np.ndarray]
    target: np.ndarray
    columns: tuple[str, ...]
    rows: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    time: float = 60.0
    evaluations: int = 0
    max_size: int = 40
    seed: int = 0
    threads: int = 1
    memory: int = 4 << 30
    guesses: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Engine:
    """One row.

    Attributes:
        module: has ``search``; imported in the child process only.
        package: what must be installed; "" for none.
        note: what it is good for.
        sequences: whether it reads ``features`` and ``target``; other engines get the rows alone.
        address_space: whether the memory limit holds for reserved addresses too; a runtime that reserves
            far more than it uses cannot start under one.
    """

    module: str
    package: str = ""
    note: str = ""
    sequences: bool = False
    address_space: bool = True


ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "operon": Engine("interchange.search.operon", "pyoperon", "genetic programming, constants fitted"),
        "pysr": Engine("interchange.search.pysr", "pysr", "PySR 2, needs Julia", address_space=False),
        "linear": Engine("interchange.search.linear", "", "sparse sums over a dictionary of columns"),
        "auto": Engine(
            "interchange.search.auto",
            "pyoperon",
            "optimizers' usual forms, then genetic programming over few columns",
            sequences=True,
        ),
    },
)


# What people look for by name -> how it is named here.
_REGRESSORS = {"gplearn": f"{SKLEARN}gplearn.genetic:SymbolicRegressor"}


def find_engine(name: str) -> Engine:
    """The engine called ``name``; ``sklearn:MODULE:CLASS`` is any regressor in scikit-learn's style.

    Raises:
        L2OError: no such engine, or a name of another form.
    """
    if name in _REGRESSORS:
        raise L2OError(f"engine {name!r} is a regressor in scikit-learn's style; name it {_REGRESSORS[name]}")
    if not name.startswith(SKLEARN):
        return ENGINES[name]
    match = _SKLEARN_NAME.fullmatch(name)
    if not match:
        raise L2OError(
            f"expected an engine of the form sklearn:MODULE:CLASS, got {name!r}; "
            "for example sklearn:gplearn.genetic:SymbolicRegressor"
        )
    return Engine("interchange.search.regressor", match.group(1), "a scikit-learn style regressor")


def needs(engine: Engine) -> str:
    """``needs PACKAGE`` and the command that installs it, where an engine's package is missing; "" else."""
    if not engine.package or importlib.util.find_spec(engine.package):
        return ""
    plain = f"needs {engine.package}, which is not installed: python -m pip install {engine.package}"
    return missing(engine.package) or plain
