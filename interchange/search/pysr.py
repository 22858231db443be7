"""PySR 2.x: genetic programming with tuned constants, run by Julia (Cranmer 2023).

Runs only inside the search's child process. Importing pysr starts Julia and may download it, so nothing here
imports it before the search, and then offline. What PySR makes of its equations with SymPy is not used: the
hall of fame it writes is read by the whitelist parser, while the search runs and after it.
"""

import contextlib
import dataclasses
import io
import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.canonical import to_node
from interchange.language.expression import Node
from interchange.language.operators import OPERATORS
from interchange.language.parse import parse
from interchange.search import ENGINES, Task, needs
from interchange.search.julia import DEFINED, JULIA, read_front, to_guess, variables
from interchange.search.standard import Archive, Standard, as_tree, standardised

DEFAULT_OPERATORS = ("add", "sub", "mul", "div", "square", "abs", "sqrt", "tanh", "sign")
CLUSTER_MANAGERS = ("slurm", "pbs", "lsf", "sge", "qrsh", "scyld", "htc")
PARALLELISM = ("serial", "multithreading", "multiprocessing")
NUMBERS = (  # PySR's keywords that options may set; some texts are code there, so only numbers pass
    "procs", "worker_timeout", "heap_size_hint_in_bytes", "niterations", "populations", "population_size",
    "ncycles_per_iteration", "parsimony", "adaptive_parsimony_scaling", "maxdepth", "warmup_maxsize_by",
    "batching", "batch_size", "precision", "fraction_replaced_guesses", "optimizer_iterations",
)  # fmt: skip
_SMALLEST = 7  # nodes: PySR takes no lower limit of size
_RUN = "run"
_ONCE = "run `python -c 'import pysr'` once, which downloads Julia and its packages"

_log = logging.getLogger(__name__)


def missing() -> str:
    """Why PySR cannot run here and the remedy, one line, or ""; neither pysr nor Julia is started for it."""
    if told := needs(ENGINES["pysr"]):
        return told
    try:
        from juliapkg.deps import find_requirements
        from juliapkg.find_julia import find_julia
        from juliapkg.state import STATE

        with contextlib.redirect_stdout(io.StringIO()):  # it says which files it reads
            find_julia(find_requirements()[0], prefix=STATE["install"], install=False)
    except Exception as error:  # juliapkg raises nothing narrower
        return f"needs Julia: {_first_line(error)}; install it, or {_ONCE}"
    return ""


def search(task: Task, report: Callable[[list[str]], None]) -> list[str]:
    """The front of PySR's hall of fame, by our sizes and errors.

    Args:
        task: ``options`` are ``operators`` (rows of the operator table), ``parallelism``, ``cluster_manager``
            and the keywords of ``NUMBERS``. A limit of evaluations makes the search serial and reproducible.

    Raises:
        L2OError: pysr or Julia is missing, an option is wrong, or PySR failed before it found anything.
    """
    started = time.monotonic()
    data, archive = standardised(task), Archive(task, report)
    settings = keywords(task, data)
    os.environ.setdefault("PYTHON_JULIAPKG_OFFLINE", "yes")
    os.environ.setdefault("PYTHON_JULIACALL_THREADS", str(task.threads))
    os.environ.setdefault("PYTHON_JULIACALL_HEAP_SIZE_HINT", f"{max(task.memory >> 20, 1)}M")
    reason = missing()
    if reason:
        raise L2OError(reason)
    with tempfile.TemporaryDirectory(prefix="l2o-pysr-") as folder:
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(folder, data, archive, stop), daemon=True)
        watcher.start()
        try:
            failure = _fit(task, data, settings, folder, started)
        finally:
            stop.set()
            watcher.join()
        archive.add(read_folder(folder, data))
    found = archive.texts()
    if failure and not found:
        raise L2OError(f"PySR failed: {failure}; if it never ran here, {_ONCE}")
    if failure:
        _log.warning("PySR failed, the equations found until then are kept: %s", failure)
    return found


def _watch(folder: str, data: Standard, archive: Archive, stop: threading.Event) -> None:
    """Take in the hall of fame once a second."""
    while not stop.wait(1.0):
        archive.add(read_folder(folder, data))


def _fit(task: Task, data: Standard, settings: dict[str, Any], folder: str, started: float) -> str:
    """Run PySR to its end; the first line of what it raised, or ""."""
    try:
        import sympy
        from pysr import PySRRegressor

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes above 40, and threads that are set here
            regressor = PySRRegressor(
                **settings,
                # Julia's start has had its share of the time.
                timeout_in_seconds=max(1.0, task.time - (time.monotonic() - started)),
                # PySR insists on a SymPy meaning for what is defined in Julia; nothing here reads it.
                extra_sympy_mappings={name: sympy.Function(name) for name in DEFINED},
                temp_equation_file=True,  # beside others it would pickle itself
                tempdir=folder,
                run_id=_RUN,
            )
            regressor.fit(
                data.rows,
                data.y,
                weights=task.weights,
                variable_names=variables(len(task.columns)),
                complexity_of_variables=[ex.complexity(parse(text, task.names)) for text in task.columns],
            )
    except Exception as error:  # JuliaError, plain Exception: what was found by then is in the file
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def keywords(task: Task, data: Standard) -> dict[str, Any]:
    """What ``PySRRegressor`` is made with, but for its files and its time."""
    options = dict(task.options)
    ops = tuple(options.pop("operators", DEFAULT_OPERATORS))
    for op in ops:
        if op not in JULIA:
            raise L2OError(f"operator {op!r}: PySR has no such operator here; it has: {', '.join(JULIA)}")
    manager = _chosen(options, "cluster_manager", CLUSTER_MANAGERS)
    parallelism = _chosen(options, "parallelism", PARALLELISM)
    for key, value in options.items():
        if key not in NUMBERS:
            known = ", ".join(("operators", "parallelism", "cluster_manager", *NUMBERS))
            raise L2OError(f"option {key!r}: the engine 'pysr' has no such option; it has: {known}")
        if not isinstance(value, int | float):
            raise L2OError(f"option {key!r}: expected a number, got {value!r}; correct it")
    settings: dict[str, Any] = {
        "unary_operators": [JULIA[op] for op in ops if OPERATORS[op].arity == 1],
        "binary_operators": [JULIA[op] for op in ops if OPERATORS[op].arity == 2],
        "maxsize": max(_SMALLEST, task.max_size),
        "niterations": 10**6,  # the time or the evaluations end it
        "max_evals": task.evaluations or None,
        "precision": 64,
        "guesses": _guesses(task, data, ops) or None,
        "verbosity": 0,
        "progress": False,
        "input_stream": "devnull",
    }
    if task.evaluations:
        if manager or parallelism not in ("", "serial"):
            raise L2OError(
                "expected a serial search with a limit of evaluations, because no other is reproducible; "
                "leave out parallelism and cluster_manager, or the limit"
            )
        return (
            settings | {"parallelism": "serial", "deterministic": True, "random_state": task.seed} | options
        )
    if manager and parallelism not in ("", "multiprocessing"):
        raise L2OError(f"expected parallelism multiprocessing with a cluster manager, got {parallelism}")
    settings["parallelism"] = parallelism or ("multiprocessing" if manager else "multithreading")
    if settings["parallelism"] == "multiprocessing":
        settings |= {"procs": task.threads, "heap_size_hint_in_bytes": task.memory}
        settings |= {"cluster_manager": manager or None}
    return settings | options


def _chosen(options: dict[str, Any], key: str, known: Sequence[str]) -> str:
    """One of the known words, taken out of the options; no other passes, since PySR makes code of it."""
    value = options.pop(key, "") or ""
    if value and value not in known:
        raise L2OError(f"option {key!r}: expected one of {', '.join(known)}, got {value!r}; correct it")
    return value


def _guesses(task: Task, data: Standard, ops: Sequence[str]) -> list[str]:
    """The task's guesses in Julia over the standardised columns, without those that need others."""
    names = [ex.name(name) for name in variables(len(task.columns))]
    columns = {parse(text, task.names): name for text, name in zip(task.columns, names, strict=True)}
    sizes = {name.name: _product(size, name) for name, size in zip(names, data.sizes, strict=True)}
    texts = []
    for guess in task.guesses:
        node = _over(parse(guess, task.names), columns)
        text = ""
        if set(ex.names(node)) <= set(sizes):
            tree = as_tree(ex.substitute(node, sizes))
            text = to_guess(to_node(tree, names, 1.0 / data.spread), ops)
        if text:
            texts.append(text)
        else:
            _log.info("a guess is left out, it needs other columns or operators: %s", guess)
    return texts


def _product(factor: float, node: Node) -> Node:
    return ex.call("mul", ex.number(factor), node)


def _over(node: Node, columns: Mapping[Node, Node]) -> Node:
    """The tree with columns in place of the sub-trees they are."""
    if node in columns:
        return columns[node]
    return dataclasses.replace(node, args=tuple(_over(arg, columns) for arg in node.args))


def read_folder(folder: str, data: Standard) -> list[Node]:
    """The hall of fame a search wrote below ``folder``, over columns; [] where there is none yet."""
    for name in ("hall_of_fame.csv", "hall_of_fame.csv.bak"):  # written one after the other
        for file in Path(folder).glob(f"*/{_RUN}/{name}"):
            nodes = read_front(file.read_text(encoding="utf-8", errors="replace"), len(data.sizes))
            if nodes:
                return [data.node(as_tree(node)) for node in nodes]
    return []
