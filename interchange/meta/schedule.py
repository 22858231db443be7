"""What each epoch of a meta-training does: problem, length, expert to imitate, meta learning rate.

Everything is read off the configuration and the epoch's number, so a resumed run needs no state of it.
"""

import functools
import math

from common.errors import L2OError
from common.rng import rng
from interchange.meta.config import MetaLoop

# Hand-made optimizers to imitate (Chen et al. 2020): name -> learning rate; the gallery has their rules.
EXPERTS = {"adam": 0.01, "rmsprop": 0.01, "nesterov": 0.01}
_WHOLE_EPOCHS = ("es",)  # estimators with one update an epoch
EVOLVING = ("es", "pes")


class Schedule:
    """The plan of a meta-training.

    With several problems, optimizee ``number`` runs on problem ``number`` mod their count: in turn, so each
    is trained on equally often.

    Args:
        config: ``TrainConfig`` or ``TuneConfig``.
        own_tasks: the optimizees are the caller's, whatever problem the configuration names.

    Attributes:
        problems: names; one, "" for the caller's own tasks, where there are not several.
        low, high: bounds of an epoch's length in steps; equal without ``--horizon LOW..HIGH``.

    Raises:
        L2OError: settings that do not go together.
    """

    def __init__(self, config: MetaLoop, own_tasks: bool = False) -> None:
        self.config = config
        self.problems = ("",) if own_tasks else tuple(config.problem.split(","))
        self.several = len(self.problems) > 1
        self.low, self.high = _bounds(config)
        self.estimator = config.estimator
        self.imitations = config.stage_imitation or (config.imitation,)
        self.curriculum = config.curriculum
        _check(self, config, own_tasks)

    def problem(self, number: int) -> str:
        """Name of the problem optimizee ``number`` runs on."""
        return self.problems[number % len(self.problems)]

    def length(self, epoch: int) -> int:
        """Steps of an epoch: log-uniform between the bounds, whole unrolls where there are unrolls."""
        if self.low == self.high:
            return self.high
        drawn = math.exp(
            rng(self.config.seed, "horizon", epoch).uniform(math.log(self.low), math.log(self.high))
        )
        unit = 1 if self.estimator in _WHOLE_EPOCHS else self.config.unroll
        return min(max(round(drawn / unit), -(-self.low // unit)), self.high // unit) * unit

    @property
    def horizons(self) -> tuple[int, ...]:
        """Steps at which validation reads the loss: both bounds of the length and their geometric mean."""
        return tuple(sorted({self.low, round(math.sqrt(self.low * self.high)), self.high}))

    def expert(self, epoch: int, stage: int = 0) -> str:
        """Name of the optimizer the epoch imitates, "" where it trains by its own loss.

        Args:
            stage: of the curriculum; the last share given goes on.
        """
        generator = rng(self.config.seed, "imitation", epoch)
        if generator.uniform() >= self.imitations[min(stage, len(self.imitations) - 1)]:
            return ""
        return tuple(EXPERTS)[int(generator.integers(len(EXPERTS)))]

    def restarts(self, epoch: int, stage: int = 0) -> bool:
        """Whether a stopped epoch starts again: checkpoints hold no perturbed runs, tangents or experts."""
        return self.estimator in (*EVOLVING, "forward") or bool(self.expert(epoch, stage))

    def updates(self, epoch: int) -> int:
        """Meta-updates of an epoch."""
        if self.estimator in _WHOLE_EPOCHS and not self.expert(epoch):
            return 1
        return -(-self.length(epoch) // self.config.unroll)

    @functools.cached_property
    def planned(self) -> int:
        """Meta-updates of the whole training; lengths of a curriculum are not known beforehand."""
        epochs = self.config.epochs
        if self.low == self.high and not any(self.imitations):
            return max(1, epochs * self.updates(0))
        return max(1, sum(map(self.updates, range(epochs))))

    def factor(self, updates: int, epoch: int) -> float:
        """Of the meta learning rate after so many updates; a curriculum's goes by epochs."""
        part = epoch / self.config.epochs if self.curriculum else updates / self.planned
        decay = self.config.lr_decay
        return decay + (1.0 - decay) * 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))

    def averages(self, epoch: int) -> bool:
        """Whether the weights after the epoch count in the average."""
        return epoch + 1 > round((1.0 - self.config.average) * self.config.epochs)


def _bounds(config: MetaLoop) -> tuple[int, int]:
    """Shortest and longest epoch of ``--horizon``, or ``--epoch-length`` for both."""
    if not config.horizon:
        return config.epoch_length, config.epoch_length
    low, dots, high = config.horizon.partition("..")
    parts = (low, high) if dots else (low, low)
    if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts) or not (
        1 <= int(parts[0]) <= int(parts[1])
    ):
        raise L2OError(
            f"--horizon: expected steps such as 200, or a range such as 20..2000, got {config.horizon!r}"
        )
    return int(parts[0]), int(parts[1])


def _check(plan: Schedule, config: MetaLoop, own_tasks: bool) -> None:
    """Settings that do not go together; the first raises."""
    kind, evolves = plan.estimator, plan.estimator in EVOLVING
    default = type(config).epoch_length
    for wrong, message in (
        (
            config.horizon and config.epoch_length != default,
            "--horizon replaces --epoch-length; leave out one",
        ),
        (
            plan.low < plan.high
            and kind not in _WHOLE_EPOCHS
            and plan.high // config.unroll * config.unroll < plan.low,
            f"--horizon {config.horizon}: expected a multiple of --unroll {config.unroll}; lower that",
        ),
        (
            plan.several and config.start,
            f"--start: expected one problem, got {len(plan.problems)}; parameters fit only one",
        ),
        (
            config.coordinates < 1.0 and kind not in ("first", "forward"),
            f"--coordinates below 1 needs --estimator first or forward, got {kind}; leave out --coordinates",
        ),
        (
            config.tasks > 1 and evolves,
            f"--tasks: --estimator {kind} runs each of its pairs on an optimizee of its own; use --pairs",
        ),
        (
            config.loss != type(config).loss and evolves,
            f"--loss: --estimator {kind} has an objective of its own; leave it out",
        ),
        (
            config.jobs > 1 and not evolves,
            f"--jobs: expected --estimator es or pes, whose pairs run in parallel, got {kind}; leave it out",
        ),
        (
            config.jobs > 1 and own_tasks,
            "--jobs: tasks of the caller's own stay in this process; expected 1, or a problem of the table",
        ),
        (
            plan.curriculum and config.horizon,
            "--curriculum has epoch lengths of its own; leave out --horizon",
        ),
        (
            config.lengths and not plan.curriculum,
            "--lengths are those of a curriculum; give --curriculum too, or leave them out",
        ),
        (
            list(config.lengths) != sorted(set(config.lengths)),
            f"--lengths: expected each longer than the one before, got {' '.join(map(str, config.lengths))}",
        ),
        (
            config.stage_imitation and (not plan.curriculum or config.imitation),
            "--stage-imitation has a share for each stage of --curriculum, instead of --imitation",
        ),
        (
            plan.curriculum and config.average,
            "--curriculum ends where it stops to improve and has no last epochs; leave out --average",
        ),
        (
            plan.curriculum and not config.validate_every,
            "--curriculum goes by validations; expected --validate-every of at least 1, got 0",
        ),
    ):
        if wrong:
            raise L2OError(message)
