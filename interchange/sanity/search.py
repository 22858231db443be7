"""The search for one known rule: what the sanity command may be told, and what comes of one rule and seed."""

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from common.errors import L2OError
from common.metrics import r2
from common.run.config import check, option
from common.run.parallel import check_cluster, threads_of_a_job
from interchange.distill.refit import predict, refit
from interchange.language import expression as ex
from interchange.language.canonical import name_constants
from interchange.language.execute import compile_program, evaluate
from interchange.language.expression import Node
from interchange.rule.rule import Rule
from interchange.sanity.rules import GRADIENT, KNOWN, Known, is_true_form, r2_each, shown
from interchange.search.samples import Sequences, dictionary

_SECONDS, _SIZE = 30.0, 60  # unless given
_QUICK_SECONDS = 10.0
_SMALLEST = 3  # nodes
_TEMPLATES = "templates"  # the first part of auto alone, without a child process
_SEARCH_SHARE = 0.6  # of the time; the rest refits
_MEMORY = 4 << 30  # bytes
_EQUAL = 1e-10  # of 1 - R2: below it two equations are equally good


def _engines() -> tuple[str, ...]:
    from interchange.search import ENGINES

    return (*ENGINES, _TEMPLATES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanityConfig:
    """Known rules to find again, and recordings to distill."""

    rules: tuple[str, ...] = option((), "rules to find; all if not given", choices=lambda: tuple(KNOWN))
    trajectories: tuple[str, ...] = option((), "files of recorded trajectories to distill instead")
    engine: str = option("auto", "search engine", choices=_engines)
    time: float = option(0.0, "seconds for one job; 0 takes 30 for a rule and 60 for a recording", low=0)
    seeds: int = option(3, "repetitions; rules get other gradients for each", low=1, high=100)
    max_size: int = option(
        0, "largest equation, in nodes; 0 takes 60 for rules and 50 for recordings", low=0, high=1000
    )
    threads: int = option(0, "threads of one job; 0 shares the cores out among the jobs", low=0)
    jobs: int = option(1, "rules and seeds at once; times are honest only with 1", low=1, high=1000)
    cluster: str = option("", "where jobs run instead of here: dask or ray, alone or with :ADDRESS")
    quick: bool = option(False, "one seed and at most 10 s for each job")
    json: str = option("", "file for the tables, as JSON")
    quiet: bool = option(False, "print nothing but errors")

    def __post_init__(self) -> None:
        check(self)
        check_cluster(self.cluster)
        if 0 < self.max_size < _SMALLEST:
            raise L2OError(
                f"max_size: expected 0 or at least {_SMALLEST}, got {self.max_size}; give --max-size more"
            )
        if self.trajectories and self.engine == _TEMPLATES:
            raise L2OError(
                f"--engine {_TEMPLATES} is for known rules; distill --trajectories with auto or operon"
            )

    def for_jobs(self) -> "SanityConfig":
        """With the threads of one job, and one seed and little time where it is to be quick."""
        threads = threads_of_a_job(self.threads, self.jobs, self.cluster)
        return dataclasses.replace(self, threads=threads, seeds=1 if self.quick else self.seeds)

    def seconds(self, usual: float) -> float:
        """Of one job that usually gets ``usual``."""
        given = self.time or usual
        return min(given, _QUICK_SECONDS) if self.quick else given


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
    best = choose(candidates(data, config, seed, started + config.seconds(_SECONDS)), data)
    seconds = time.monotonic() - started
    return Found(
        text(best),
        r2(data["test"].target, predict(best, data["test"])),
        r2_each(best, data["test"]),
        best.complexity,
        seconds,
        is_true_form(best, known.rule),
    )


def text(rule: Rule) -> str:
    """The expression with its constants as numbers."""
    literals = {name: ex.number(value) for name, value in rule.constants.items()}
    return ex.to_text(ex.substitute(rule.expression, literals))


def job(name: str, config: SanityConfig, seed: int) -> tuple[str, int, Found]:
    """What a worker is sent; its result says which rule and seed it is of."""
    return name, seed, find(KNOWN[name], config, seed)


def candidates(data: dict[str, Sequences], config: SanityConfig, seed: int, deadline: float) -> list[Rule]:
    """The engine's equations of at most ``max_size`` nodes, as they came and refitted, shortest first."""
    rules: list[Rule] = []
    for node in sorted(_search(data["train"], config, seed), key=ex.complexity):
        expression, constants = name_constants(node)
        if GRADIENT not in ex.names(expression) or ex.complexity(expression) > (config.max_size or _SIZE):
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
    if config.engine == _TEMPLATES:
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
        time=_SEARCH_SHARE * config.seconds(_SECONDS),
        evaluations=0,
        max_size=config.max_size or _SIZE,
        seed=seed,
        threads=threads_of_a_job(config.threads, 1),
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
