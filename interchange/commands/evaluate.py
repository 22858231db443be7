"""The fair comparison of optimizers: ``evaluate``.

Every optimizer is tuned with the same number of learning rates, a factor 2 apart, its best not at an
edge, chosen on validation seeds for each horizon and reported on test seeds (MATH.md section 6).
Teachers and rules tune the multiplier on their update.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.baselines import parse_specs
from common.cli import Progress
from common.cli import run as run_command
from common.config import EvaluateConfig
from common.errors import L2OError
from common.metrics import figure, summarise, summary_text

if TYPE_CHECKING:
    from interchange.commands.backend import Backend, Rollout, Source, Task
    from interchange.results import EvaluationRow

_FARTHEST = 14  # factors of 2 from the middle at which widening a grid ends
_TIMED_STEPS, _TIMED_ROUNDS = 10, 7


def evaluate(config: EvaluateConfig, backend: "Backend") -> "list[EvaluationRow]":
    """``torch_impl.evaluate`` and ``tf_impl.evaluate``: tune, roll out and time every optimizer."""
    from common.storage import RunLock

    backend.device_of(config.device)
    loaded = {spec.text: backend.load_source(spec) for spec in parse_specs(config.optimizers)}
    folder = Path(config.out or f"runs/evaluation-{config.problem}")
    if (folder / "evaluation.h5").exists() and not config.overwrite:
        raise L2OError(f"--out {folder} holds an evaluation; replace it with --overwrite or choose another")
    task = backend.table_task(config, "evaluate_test", 0, config.split)  # missing data are found here
    with RunLock(folder):
        return _evaluate(loaded, config, backend, folder, task)


def _evaluate(
    loaded: "dict[str, Source]", config: EvaluateConfig, backend: "Backend", folder: Path, task: "Task"
) -> "list[EvaluationRow]":
    from interchange.results import EvaluationRow, save_evaluation

    run = functools.partial(_run, config, backend)
    with Progress("tune", 0, quiet=config.quiet) as progress:
        tuned = _tune(loaded, config, run, progress)
    jobs = {
        (text, horizon, number): (source, tuned[text].best(horizon), "test", number, horizon)
        for text, source in loaded.items()
        for horizon in config.steps
        for number in range(config.seeds)
    }
    with Progress("test", len(jobs), quiet=config.quiet) as progress:
        rollouts = run(list(jobs.values()), progress)
    times = time_optimizers(
        {
            text: backend.stepper(source, tuned[text].best(max(config.steps)), task)
            for text, source in loaded.items()
        }
    )
    rows = [
        EvaluationRow(
            optimizer=text,
            problem=config.problem,
            seed=number,
            losses=result.losses,
            split="evaluation",
            accuracy=result.accuracy,
            ms_per_step=times[text][0],
            floats_per_parameter=times[text][1],
            outcome=result.outcome,
            settings={"lr": tuned[text].best(horizon), "sha256": loaded[text].sha256},
            trials=len(tuned[text].figures),
            horizon=horizon,
        )
        for (text, horizon, number), result in zip(jobs, rollouts, strict=True)
    ]
    save_evaluation(
        folder / "evaluation.h5", rows, dataclasses.asdict(config), backend.CREATED_BY, horizons=config.steps
    )
    return rows


@dataclasses.dataclass
class Grid:
    """Learning rates ``middle * 2**k`` tried for one optimizer.

    Attributes:
        figures: k -> figure at each horizon, averaged over the validation seeds; inf where one diverged.
    """

    middle: float
    figures: dict[int, list[float]]
    horizons: tuple[int, ...]

    def best_place(self, horizon: int) -> int:
        """The k with the smallest figure at ``horizon``."""
        column = self.horizons.index(horizon)
        return min(self.figures, key=lambda k: (self.figures[k][column], abs(k)))

    def best(self, horizon: int) -> float:
        """The learning rate with the smallest figure at ``horizon``."""
        return self.middle * 2.0 ** self.best_place(horizon) if self.figures else self.middle

    def missing(self, trials: int) -> list[int]:
        """Places to try next: beyond an edge that is best, then until there are ``trials``."""
        if not self.figures:
            return list(range(-(trials // 2), trials - trials // 2))
        low, high = min(self.figures), max(self.figures)
        best = {self.best_place(h) for h in self.horizons}
        beyond = [low - 1] * (low in best) + [high + 1] * (high in best)
        beyond = [k for k in beyond if abs(k) <= _FARTHEST]
        if beyond or len(self.figures) >= trials:
            return beyond
        return [high + 1 if high < -low else low - 1]


Job = tuple["Source", float, str, int, int]
Runner = Callable[[list[Job], Progress], "list[Rollout]"]


def _tune(
    sources: "dict[str, Source]", config: EvaluateConfig, run: Runner, progress: Progress
) -> dict[str, Grid]:
    """A grid per optimizer, all of one size; an optimizer whose SPEC fixes lr has none."""
    specs = {text: source.spec for text, source in sources.items()}
    grids = {text: Grid(s.lr or s.middle, {}, config.steps) for text, s in specs.items()}
    free = [text for text, s in specs.items() if s.lr is None and config.trials]
    trials = config.trials
    while True:
        places = [(text, k) for text in free for k in grids[text].missing(trials)]
        if not places:
            widest = max((len(grids[text].figures) for text in free), default=0)
            if widest <= trials:
                return grids
            trials = widest
            continue
        seeds = range(config.validation_seeds)
        jobs = [
            (sources[text], grids[text].middle * 2.0**k, "validation", number, max(config.steps))
            for text, k in places
            for number in seeds
        ]
        progress.total += len(jobs)
        results = iter(run(jobs, progress))
        for text, k in places:
            runs = [next(results) for _ in seeds]
            grids[text].figures[k] = [
                float(np.mean([figure_or_inf(r, horizon) for r in runs])) for horizon in config.steps
            ]


def figure_or_inf(rollout: "Rollout", horizon: int) -> float:
    """Loss at ``horizon`` (mean of the 20 losses before it); inf if the run did not get there."""
    return float(figure(rollout.losses, horizon)) if len(rollout.losses) >= horizon else math.inf


def _run(config: EvaluateConfig, backend: "Backend", jobs: list[Job], progress: Progress) -> "list[Rollout]":
    """The rollouts in the jobs' order; joblib keeps its worker processes between calls."""
    from joblib import Parallel, delayed

    results = []
    for result in Parallel(n_jobs=config.jobs, return_as="generator")(
        delayed(backend.rollout_job)(config, *job) for job in jobs
    ):
        results.append(result)
        progress.advance()
    return results


def time_optimizers(
    steppers: Mapping[str, tuple[Callable[[int], None], Callable[[], float]]],
) -> dict[str, tuple[float, float]]:
    """Milliseconds of one step (median, taking turns), and floats of state per parameter.

    Args:
        steppers: as ``Backend.stepper`` makes them.
    """
    samples: dict[str, list[float]] = {text: [] for text in steppers}
    for _ in range(_TIMED_ROUNDS):
        for text, (advance, _) in steppers.items():
            started = math.nan
            try:
                advance(1)  # state is made in the first step; caches are warm in the others
                started = time.perf_counter()
                advance(_TIMED_STEPS)
            except RuntimeError:  # updates stayed non-finite: skipped steps are no measure
                started = math.nan
            samples[text].append((time.perf_counter() - started) / _TIMED_STEPS)
    return {
        text: (1e3 * statistics.median(samples[text]), floats()) for text, (_, floats) in steppers.items()
    }


def main(command: Callable[[EvaluateConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: EvaluateConfig) -> None:
        rows = command(config)
        if not config.quiet:
            print(summary_text(summarise(rows, config.steps)))
            print(f"evaluation: {Path(config.out or f'runs/evaluation-{config.problem}') / 'evaluation.h5'}")

    return run_command(
        EvaluateConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.evaluate",
        description="Compare optimizers, each tuned with the same number of trials.",
    )
