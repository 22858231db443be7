"""What is measured: R2, the loss at a step, intervals over seeds, the summary of an evaluation.

Definitions: MATH.md, sections 5 and 6. NumPy only.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import L2OError

LOSS_FLOOR = 2.0**-30  # less is counted as this where losses are compared: MATH.md, section 6
DIVERGED = "diverged"
FAILED = "failed: "  # an outcome goes on with what happened


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One optimizer on one problem at one horizon.

    Attributes:
        horizon: step at which the loss is read.
        mean, low, high: mean over seeds of the loss at ``horizon`` and its 95 % interval (``loss_interval``).
            A diverged seed makes the mean infinite and the bounds nan: divergence is counted, never dropped.
        seeds: number of runs; ``diverged`` of them diverged, or failed: their outcome says how.
        lr: the tuned learning rate or multiplier; None where there is none.
        schedule: what it follows; "" where that is not known.
        knob: the option that was tuned beside it and its value, as ``beta1=0.95``; "" where none was.
        ms_per_step: median over seeds, milliseconds.
        floats_per_parameter: floats of optimizer state per optimized parameter.
        trials: settings tried when tuning.
        figures: the loss at ``horizon`` of every seed, in order of seed; infinite where diverged.
        test_loss, accuracy: on the test images at the end, as ``mean``, over the seeds that got there.
        validation: the loss at ``horizon`` on the validation seeds, for which ``lr`` was chosen; nan without.
        trained_on: a suite's problem that meta-training may have used.
    """

    optimizer: str
    problem: str
    horizon: int
    mean: float
    low: float
    high: float
    seeds: int
    diverged: int
    lr: float | None
    ms_per_step: float
    floats_per_parameter: float
    trials: int
    figures: tuple[float, ...] = ()
    test_loss: float = math.nan
    accuracy: float = math.nan
    validation: float = math.nan
    trained_on: bool = False
    schedule: str = ""
    knob: str = ""


def r2(target: np.ndarray, prediction: np.ndarray) -> float:
    """Pooled coefficient of determination, 1 - SSE / SST, over all elements, unweighted.

    Args:
        target, prediction: arrays of one shape; computed in float64.

    Returns:
        1 for a perfect prediction, 0 for the target's mean, negative for worse; -inf where a
        prediction is not finite; nan where the target is constant (R2 is not defined there).
    """
    target = np.asarray(target, dtype=np.float64)
    prediction = np.asarray(prediction, dtype=np.float64)
    if target.shape != prediction.shape:
        raise L2OError(f"r2: expected two arrays of one shape, got {target.shape} and {prediction.shape}")
    if target.size == 0 or np.ptp(target) == 0.0:
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        sse = float(np.sum(np.square(target - prediction)))
    if not math.isfinite(sse):
        return -math.inf
    return 1.0 - sse / float(np.sum(np.square(target - target.mean())))


def loss_at(losses: np.ndarray, horizon: int, window: int = 20) -> float:
    """The loss at step ``horizon``: mean of the ``window`` mini-batch losses before it.

    Args:
        losses: [step], each taken before that step's update.
        horizon: number of steps that count; at most ``len(losses)``.
        window: number of losses averaged; fewer where ``horizon`` is shorter.

    Returns:
        The mean, or inf where any loss up to ``horizon`` is not finite.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 1 or not 1 <= horizon <= len(losses) or window < 1:
        raise L2OError(
            f"loss at step {horizon} over {window} steps: expected at least {max(horizon, 1)} losses of one "
            f"run and a window of at least 1, got an array of shape {losses.shape}"
        )
    if not np.isfinite(losses[:horizon]).all():
        return math.inf
    return float(losses[max(0, horizon - window) : horizon].mean())


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: half-width of a 95 % interval in standard errors; nan below 1."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975)) if degrees >= 1 else math.nan


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean and its 95 % t-interval over independent seeds.

    The bounds are nan for a single value and wherever a value is not finite; the mean is then inf
    (nan counts as inf: a run that broke is no better than one that blew up).
    """
    if not (numbers := [float(value) for value in values]):
        return math.nan, math.nan, math.nan
    if not all(map(math.isfinite, numbers)):
        return math.inf, math.nan, math.nan
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return mean, math.nan, math.nan
    half = t_quantile(len(numbers) - 1) * statistics.stdev(numbers) / math.sqrt(len(numbers))
    return mean, mean - half, mean + half


def loss_interval(values: Iterable[float]) -> tuple[float, float, float]:
    """As ``interval``; where none is negative by the logarithms of what is ``counted``: the geometric mean.

    Losses of seeds differ by factors, and no bound of losses that are not negative is negative.
    """
    numbers = list(map(float, values))
    if any(value < 0.0 for value in numbers):
        return interval(numbers)
    return geometric(math.log2(counted(value)) for value in numbers)


def geometric(logs: Iterable[float]) -> tuple[float, float, float]:
    """2 to the power of the mean and the bounds that ``interval`` finds; inf where that is no float."""
    return tuple(math.exp2(value) if value < 1024.0 else value * math.inf for value in interval(logs))


def counted(loss: float) -> float:
    """What a loss counts as where it is compared: ``LOSS_FLOOR`` for less, but negative ones as they are."""
    return LOSS_FLOOR if 0.0 <= loss < LOSS_FLOOR else loss


def log_slopes(losses: np.ndarray) -> np.ndarray:
    """d log f / df = 1/f for losses f of any shape, float64; 0 below ``LOSS_FLOOR``, where less counts as it.

    Raises:
        L2OError: a loss is negative and has no logarithm.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if (negative := losses[np.isfinite(losses) & (losses < 0.0)]).size:
        raise L2OError(f"--loss log: expected losses of at least 0, got {negative.min():g}; use --loss sum")
    return np.where(losses >= LOSS_FLOOR, 1.0 / np.maximum(losses, LOSS_FLOOR), 0.0)


def smooth(losses: np.ndarray, window: int) -> np.ndarray:
    """Trailing mean over the last axis, float64, same shape; the first entries average what there is.

    A non-finite loss spoils only the windows that hold it.
    """
    losses = np.asarray(losses, dtype=np.float64)
    if window < 1:
        raise L2OError(f"smooth: expected a window of at least 1, got {window}")
    if window == 1 or losses.shape[-1] == 0:
        return losses.copy()
    padding = [(0, 0)] * (losses.ndim - 1) + [(window - 1, 0)]
    sums = np.lib.stride_tricks.sliding_window_view(np.pad(losses, padding), window, axis=-1).sum(axis=-1)
    return sums / np.minimum(np.arange(1, losses.shape[-1] + 1), window)


def summarise(rows: Iterable[Any], horizons: Sequence[int] = (), window: int = 20) -> list[SummaryRow]:
    """The table of an evaluation, best first within each problem and horizon.

    Args:
        rows: mappings or objects with ``optimizer, problem, seed, losses, outcome, ms_per_step,
            floats_per_parameter, settings`` (a mapping, ``lr`` in it is shown) and ``trials``; one per
            run. A row with a ``horizon`` (its settings were tuned for that one) counts there only.
            ``test_loss, accuracy, trained_on`` and a ``validation`` among the settings may be there.
        horizons: steps at which rows without a ``horizon`` are read; their full length if empty.
        window: losses averaged for one figure.

    A run counts as diverged at a horizon if a loss up to it is not finite, or if its outcome is
    ``diverged`` or ``failed: ...`` and it ended there or earlier. A diverged seed makes the mean inf.
    """
    groups: dict[tuple[str, int, str], list[Any]] = {}
    for row in rows:
        own = _field(row, "horizon", None)
        for horizon in (own,) if own else (horizons or (len(_field(row, "losses")),)):
            key = (_field(row, "problem"), int(horizon), _field(row, "optimizer"))
            groups.setdefault(key, []).append(row)
    table = (_summary(*key, group, window) for key, group in groups.items())
    return sorted(table, key=lambda row: (row.problem, row.horizon, row.mean, row.optimizer))


def number(value: float | None, spec: str = ".4g") -> str:
    """A number for people: a dash for None and nan, a word for infinite losses, a true minus sign."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{spec}}".replace("-", "−") if math.isfinite(value) else DIVERGED


def loss_number(loss: float, spec: str = ".4g") -> str:
    """A loss for people: as ``number``, but of one that is counted as ``LOSS_FLOOR`` that it is no more."""
    return f"≤ {number(LOSS_FLOOR, '.3g')}" if 0.0 <= loss <= LOSS_FLOOR else number(loss, spec)


def summary_text(summary: Sequence[SummaryRow]) -> str:
    """The summary as an aligned plain-text table; knobs are shown where any was tuned."""
    knobs = any(row.knob for row in summary)
    head = (
        "optimizer", "steps", "loss", "95 % interval", "test loss", "seeds", "diverged", "lr", "schedule",
        *["knob"] * knobs, "trials", "ms/step", "floats/param",
    )  # fmt: skip
    cells = [
        (
            row.optimizer,
            str(row.horizon),
            loss_number(row.mean),
            "–" if math.isnan(row.low) else f"{number(row.low)} to {number(row.high)}",
            loss_number(row.test_loss, ".3g"),
            str(row.seeds),
            str(row.diverged),
            number(row.lr),
            row.schedule or "–",
            *[row.knob or "–"] * knobs,
            str(row.trials),
            number(row.ms_per_step, ".3f"),
            number(row.floats_per_parameter, ".3g"),
        )
        for row in summary
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *cells)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _summary(problem: str, horizon: int, optimizer: str, group: list[Any], window: int) -> SummaryRow:
    group = sorted(group, key=lambda row: _field(row, "seed"))
    seeds = [_field(row, "seed") for row in group]
    if len(set(seeds)) < len(seeds):
        raise L2OError(f"{optimizer} on {problem}: expected one run per seed, got the seeds {seeds}")
    figures = tuple(_figure_of(row, horizon, window) for row in group)
    mean, low, high = loss_interval(figures)
    settings = _field(group[0], "settings", {})
    lr, validation = settings.get("lr"), settings.get("validation")
    return SummaryRow(
        optimizer=optimizer,
        problem=problem,
        horizon=horizon,
        mean=mean,
        low=low,
        high=high,
        seeds=len(group),
        diverged=sum(map(math.isinf, figures)),
        lr=None if lr is None else float(lr),
        ms_per_step=statistics.median(float(_field(row, "ms_per_step")) for row in group),
        floats_per_parameter=float(_field(group[0], "floats_per_parameter")),
        trials=int(_field(group[0], "trials", 0)),
        figures=figures,
        test_loss=loss_interval(_known(group, "test_loss"))[0],
        accuracy=interval(_known(group, "accuracy"))[0],
        validation=math.nan if validation is None else float(validation),
        trained_on=bool(_field(group[0], "trained_on", False)),
        schedule=str(settings.get("schedule", "")),
        knob=", ".join(f"{name}={value:.6g}" for name, value in settings.get("knob", {}).items()),
    )


def _known(group: list[Any], name: str) -> list[float]:
    return [x for x in (float(_field(row, name, math.nan)) for row in group) if not math.isnan(x)]


def _figure_of(row: Any, horizon: int, window: int) -> float:
    losses = _field(row, "losses")
    lost = str(_field(row, "outcome", "")).startswith((DIVERGED, FAILED))
    if lost and len(losses) <= horizon:
        return math.inf
    return loss_at(losses, horizon, window)


_REQUIRED = object()


def _field(row: Any, name: str, default: Any = _REQUIRED) -> Any:
    value = row.get(name, default) if isinstance(row, Mapping) else getattr(row, name, default)
    if value is _REQUIRED:
        raise L2OError(f"an evaluation row has no {name!r}")
    return value
