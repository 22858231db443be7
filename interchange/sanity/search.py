"""The search for one known rule: what the sanity command may be told, and what comes of one rule and seed."""

import dataclasses
import math
import time
from collections.abc import Sequence

from common.errors import L2OError
from common.run.config import check, option
from common.run.parallel import check_cluster, threads_of_a_job
from interchange.distill.config import DistillConfig
from interchange.distill.run import search_front
from interchange.language import expression as ex
from interchange.rule.rule import Rule
from interchange.sanity.rules import KNOWN, Known, is_true_form, r2_each, recorded
from interchange.search import ENGINES
from interchange.search.samples import Sequences, sequences

_SECONDS, _SIZE = 30.0, 60  # unless given
_QUICK_SECONDS = 10.0
_SMALLEST = 3  # nodes
_EQUAL = 1e-10  # of 1 - R2: below it two equations are equally good


@dataclasses.dataclass(frozen=True, kw_only=True)
class SanityConfig:
    """Known rules to find again, and recordings to distill."""

    rules: tuple[str, ...] = option((), "rules to find; all if not given", choices=lambda: tuple(KNOWN))
    trajectories: tuple[str, ...] = option((), "files of recorded trajectories to distill instead")
    engine: str = option("auto", "search engine", choices=lambda: tuple(ENGINES))
    time: float = option(0.0, "seconds for one job; 0 takes 30 for a rule and 60 for a recording", low=0)
    evaluations: int = option(0, "candidates to try, after which a seed gives the same again", low=0)
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

    def for_jobs(self) -> "SanityConfig":
        """With the threads of one job, and one seed and little time where it is to be quick."""
        threads = threads_of_a_job(self.threads, self.jobs, self.cluster)
        return dataclasses.replace(self, threads=threads, seeds=1 if self.quick else self.seeds)

    def distillation(self, seconds: float, max_size: int, seed: int, name: str) -> DistillConfig:
        """Of one job, ``name`` in messages; the time and size are those of a job that was given none."""
        seconds = self.time or seconds
        return DistillConfig(
            trajectories=name,
            engine=self.engine,
            time=min(seconds, _QUICK_SECONDS) if self.quick else seconds,
            evaluations=self.evaluations,
            max_size=self.max_size or max_size,
            seed=seed,
            threads=self.threads,
            allow_singular=True,  # some of the known rules are: the question is whether they are found
            quiet=True,  # the jobs would talk all at once
        )


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
    """Distill one rule from its gradients and updates only, and judge what is found.

    Raises:
        L2OError: the engine found nothing finite, or cannot run.
    """
    trajectories = recorded(known.rule, seed)
    started = time.monotonic()
    front = search_front(trajectories, config.distillation(_SECONDS, _SIZE, seed, known.rule.name), started)
    best = choose(front, sequences(trajectories, "valid"))
    seconds = time.monotonic() - started
    return Found(
        text(best),
        best.provenance["r2"]["test"],
        r2_each(best, sequences(trajectories, "test")),
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


def choose(rules: Sequence[Rule], data: Sequences) -> Rule:
    """The shortest rule about as good as the best by the mean R2 over coordinates not fitted.

    Raises:
        L2OError: no rule has finite values there.
    """
    scored = [(1.0 - r2_each(rule, data), rule) for rule in rules]
    scored = [(error, rule) for error, rule in scored if math.isfinite(error)]
    if not scored:
        raise L2OError("expected an equation with finite values, the engine found none; raise --time")
    limit = 1.1 * max(min(error for error, _ in scored), _EQUAL)
    good = [(rule.complexity, error, k) for k, (error, rule) in enumerate(scored) if error <= limit]
    return scored[min(good)[2]][1]
