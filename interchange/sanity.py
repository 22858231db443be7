"""Known rules found again from gradients and updates: ``python -m interchange.sanity [--json FILE]``.

The tables of the paper (Zheng et al. 2022, sanity checks and R2) and more rules, with times: held-out R2,
nodes, and whether the equation found is the true one, medians over seeds.
"""

import dataclasses
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from common.cli import Progress
from common.cli import run as run_command
from common.config import check, option
from common.errors import L2OError
from common.metrics import r2
from common.storage import atomic_write
from interchange import expression as ex
from interchange.canonical import name_constants
from interchange.expression import Node
from interchange.program import compile_program, evaluate
from interchange.refit import predict, refit
from interchange.rule import Rule
from interchange.samples import Sequences, dictionary
from interchange.sanity_rules import GRADIENT, KNOWN, Known, is_true_form, r2_each, shown

FORMAT, FORMAT_VERSION = "l2o-sanity", 1
_QUICK_SECONDS = 10.0
_SEARCH_SHARE = 0.6  # of the time; the rest refits
_MEMORY = 4 << 30  # bytes
_EQUAL = 1e-10  # of 1 - R2: below it two equations are equally good


def _engines() -> tuple[str, ...]:
    from interchange.search import ENGINES

    return (*ENGINES, "templates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanityConfig:
    """Known rules to find again."""

    rules: tuple[str, ...] = option((), "rules to find; all if not given", choices=lambda: tuple(KNOWN))
    engine: str = option("auto", "search engine", choices=_engines)
    time: float = option(30.0, "seconds for one rule and seed", above=0)
    seeds: int = option(3, "repetitions, each with its own gradients", low=1, high=100)
    max_size: int = option(60, "largest equation, in nodes", low=3, high=1000)
    threads: int = option(0, "threads; 0 takes every core there is", low=0)
    quick: bool = option(False, "one seed and at most 10 s for each rule")
    json: str = option("", "file for the table, as JSON")
    quiet: bool = option(False, "print nothing but errors")

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Found:
    """The equation of one seed, on held-out sequences.

    Attributes:
        r2: over all elements; ``r2_each``: mean over coordinates, which no single large one rules.
        nodes, seconds: its size, and the wall time of search and fit.
        true: whether it is the true form.
    """

    expression: str
    r2: float
    r2_each: float
    nodes: int
    seconds: float
    true: bool


def find(known: Known, config: SanityConfig, seed: int) -> Found:
    """Search for one rule from its gradients and updates only, and judge what is found.

    Raises:
        L2OError: the engine found nothing finite, or cannot run.
    """
    data = shown(known.rule, seed)
    started = time.monotonic()
    best = choose(candidates(data, config, seed, started + config.time), data)
    seconds = time.monotonic() - started
    literals = {name: ex.number(value) for name, value in best.constants.items()}
    return Found(
        ex.to_text(ex.substitute(best.expression, literals)),
        r2(data["test"].target, predict(best, data["test"])),
        r2_each(best, data["test"]),
        best.complexity,
        seconds,
        is_true_form(best, known.rule),
    )


def candidates(data: dict[str, Sequences], config: SanityConfig, seed: int, deadline: float) -> list[Rule]:
    """The engine's equations of at most max_size nodes, as they came and refitted, shortest first."""
    rules: list[Rule] = []
    for node in sorted(_search(data["train"], config, seed), key=ex.complexity):
        expression, constants = name_constants(node)
        if GRADIENT not in ex.names(expression) or ex.complexity(expression) > config.max_size:
            continue
        rule = Rule("found", expression, constants)
        rules.append(rule)
        if time.monotonic() < deadline:
            rules.append(refit(rule, data["train"]))
        if any(1.0 - r2_each(found, data["valid"]) < _EQUAL for found in rules[-2:]):
            break  # what is longer cannot be chosen
    return rules


def _search(train: Sequences, config: SanityConfig, seed: int) -> list[Node]:
    """Expressions of the engine; ``templates`` alone needs no child process."""
    if config.engine == "templates":
        from interchange.search.templates import drafts

        with np.errstate(all="ignore"):
            return drafts(train, (GRADIENT,))
    from interchange.search import Task
    from interchange.search.child import run_engine

    columns = dictionary((GRADIENT,), range(1, 21))
    values = evaluate(compile_program(columns), train.features)
    task = Task(
        names=(GRADIENT,),
        features=train.features,
        target=train.target,
        columns=tuple(map(ex.to_text, columns)),
        rows=np.stack([column.reshape(-1) for column in values], axis=1),
        y=train.target.reshape(-1),
        weights=np.ones(train.target.size),
        time=_SEARCH_SHARE * config.time,
        evaluations=0,
        max_size=config.max_size,
        seed=seed,
        threads=config.threads or len(os.sched_getaffinity(0)),
        memory=_MEMORY,
        guesses=(),
        options={},
    )
    return run_engine(config.engine, task, lambda *_: None)


def choose(rules: Sequence[Rule], data: dict[str, Sequences]) -> Rule:
    """The shortest rule about as good as the best by the mean R2 over coordinates not fitted.

    Raises:
        L2OError: no rule has finite values there.
    """
    scored = [(1.0 - r2_each(rule, data["valid"]), rule) for rule in rules]
    scored = [(error, rule) for error, rule in scored if math.isfinite(error)]
    if not scored:
        raise L2OError("expected an equation with finite values, the engine found none; raise --time")
    limit = 1.1 * max(min(error for error, _ in scored), _EQUAL)
    good = [(rule.complexity, error, k) for k, (error, rule) in enumerate(scored) if error <= limit]
    return scored[min(good)[2]][1]


def measure(config: SanityConfig, tick: Callable[[str], None] = lambda name: None) -> list[dict]:
    """One row per rule: medians over seeds beside the paper's figures, JSON-ready."""
    known = {name: KNOWN[name] for name in config.rules or KNOWN}
    if config.quick:
        config = dataclasses.replace(config, seeds=1, time=min(config.time, _QUICK_SECONDS))
    rows = []
    for name, row in known.items():
        runs = []
        for seed in range(config.seeds):
            runs.append(find(row, config, seed))
            tick(name)
        rows.append(_row(name, row, runs))
    return rows


def _row(name: str, known: Known, runs: Sequence[Found]) -> dict:
    medians = {
        key: statistics.median(getattr(run, key) for run in runs)
        for key in ("r2", "r2_each", "nodes", "seconds")
    }
    paper_r2, paper_seconds = known.paper or (None, None)
    return {
        "rule": name,
        **medians,
        "true": sum(run.true for run in runs),
        "bar": known.bar,
        "passed": medians["r2"] >= known.bar,
        "paper_r2": paper_r2,
        "paper_seconds": paper_seconds,
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def table_text(rows: Sequence[dict]) -> str:
    """The rows as an aligned table; a dash where the paper has no figure."""
    head = ("rule", "R2", "R2 each", "nodes", "s", "true form", "bar", "paper R2", "paper s")
    cells = [
        (
            row["rule"],
            _floor(row["r2"]),
            _floor(row["r2_each"]),
            f"{row['nodes']:g}",
            f"{row['seconds']:.1f}",
            f"{row['true']} of {len(row['runs'])}",
            f"{row['bar']:g}" + (" met" if row["passed"] else " MISSED"),
            "-" if row["paper_r2"] is None else f"{row['paper_r2']:.2f}",
            "-" if row["paper_seconds"] is None else f"{row['paper_seconds']:.0f}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in (head, *cells)
    )


def _floor(value: float) -> str:
    """Six decimals, cut and not rounded: 1 is shown for what is 1 to 1e-9 only."""
    if not math.isfinite(value) or value >= 1.0 - 1e-9:
        return f"{value:.6f}"
    return f"{math.floor(value * 1e6) / 1e6:.6f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code, 0 whether the bars are met or not."""

    def body(config: SanityConfig) -> None:
        total = len(config.rules or KNOWN) * (1 if config.quick else config.seeds)
        with Progress("sanity", total, quiet=config.quiet) as progress:
            rows = measure(config, lambda name: progress.advance(rule=name))
        if config.json:
            settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "json"}
            payload = {"format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings, "rows": rows}
            atomic_write(config.json, json.dumps(payload, indent=1, allow_nan=False) + "\n")
        if not config.quiet:
            print(table_text(rows))

    return run_command(
        SanityConfig,
        body,
        argv,
        prog="python -m interchange.sanity",
        description="Find known optimizers again from gradients and updates; the paper's tables with times.",
    )


if __name__ == "__main__":
    sys.exit(main())
