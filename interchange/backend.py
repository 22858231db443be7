"""What the commands need of a framework: modules ``torch_impl.backend`` and ``tf_impl.backend`` have it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.metrics import DIVERGED, figure

if TYPE_CHECKING:
    from common.tables.baselines import Spec
    from common.tables.teachers import TeacherRow
    from interchange.meta.trainer import MetaTraining
    from interchange.meta.workers import Workers
    from interchange.rule.rule import Rule

Arrays = dict[str, np.ndarray]
# The backend's own, passed on as they are; the commands read no more of them than this.
Task = Any  # instance, names, shapes
Tasks = Callable[[str, int], Any]
Network = Any  # weights, scale, features.names; a rule's has rates and tuned(arrays) -> Rule too
Source = Any  # spec, loaded, sha256, row()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One optimizer from one seed.

    Attributes:
        losses: [step], each before that step's update.
        accuracy, test_loss: on the test images at the end; nan where there are none or nobody asked.
        seconds: of wall clock.
    """

    losses: np.ndarray
    outcome: str
    accuracy: float
    test_loss: float = dataclasses.field(default=math.nan, kw_only=True)
    seconds: float = dataclasses.field(default=math.nan, kw_only=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Trained(Rollout):
    """One optimizee after its training.

    Attributes:
        outcome: ``ok``, ``diverged`` or ``interrupted``.
        arrays: ``theta/<name>`` in canonical layout and ``buffers/<name>``, as a checkpoint holds them.
    """

    arrays: Arrays

    @property
    def loss(self) -> float:
        """The loss at the end: the mean of the last 20, inf where it diverged."""
        return math.inf if self.outcome == DIVERGED else figure(self.losses, len(self.losses))


class Backend(Protocol):
    """One framework's side of the commands.

    Attributes:
        NAME: ``torch`` or ``tf``; the package is ``<NAME>_impl``.
        TARGET: the row of ``interchange.emit.TARGETS`` whose code runs in the framework.
        USAGE: the shortest way to use a rule, as Python text.
        CREATED_BY: what made a file: this project and the framework, with versions.
        KINDS: of tensors that a rule may have constants of its own for.
        MetaTrainer: ``MetaTrainer(network, config, *, rates=None, tasks=None, folder=None, workers=None)``.
    """

    NAME: str
    TARGET: str
    USAGE: str
    CREATED_BY: str
    KINDS: tuple[str, ...]
    MetaTrainer: "Callable[..., MetaTraining]"

    def device_of(self, name: str) -> Any:
        """The device called ``name``; one that is not there raises ``L2OError``."""

    def join(self, device: str) -> "Workers":
        """The processes that train together, as this one's environment tells; ``Alone`` without any."""

    def load_source(self, spec: "Spec") -> Source:
        """Read the file a SPEC names; what cannot run as an optimizer is refused here."""

    def teacher_network(
        self,
        teacher: "TeacherRow",
        weights: Mapping[str, np.ndarray],
        dtype: str,
        device: str,
        state_dtype: str = "",
    ) -> Network:
        """A teacher's network; ``dtype``, ``device`` and ``state_dtype`` as on the command line."""

    def rule_network(
        self, rule: "Rule", device: str, problems: Sequence[str] = (), kinds: bool = False
    ) -> Network:
        """A rule's network; a rule that cannot be one raises ``L2OError``.

        Args:
            problems: each gets a factor on the update as a weight more.
            kinds: constants for matrices, convolution kernels and vectors apart.
        """

    def table_task(self, config: Any, stream: str, number: int, split: Any = "meta_train") -> Task:
        """Optimizee ``number`` of a stream of seeds, as a command's configuration describes it."""

    def mean_figure(self, tasks: Iterable[Task], network: Network, steps: int) -> float:
        """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""

    def trace(
        self, source: Source, network: Network | None, task: Task, steps: int, coordinates: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        """Inputs [n, F], gradient [n] and output [n] at ``coordinates``, and the loss, step by step.

        Ends after ``steps`` or before the first in which one of them is not finite. A baseline has no
        network: its input is the gradient, its output (theta after - theta before) / lr.
        """

    def fit(self, source: Source, task: Task, steps: int, stop: Callable[[float], bool]) -> Trained:
        """Train an optimizee; ``stop`` is asked after every step with its loss, True ends the training."""

    def rollout_job(
        self, config: Any, source: Source, lr: float, stream: str, number: int, steps: int
    ) -> Rollout:
        """One rollout of a comparison, on the stream ``validation`` or ``test``; worker processes run it."""

    def stepper(
        self, source: Source, lr: float, task: Task
    ) -> tuple[Callable[[int], None], Callable[[], float]]:
        """A fresh optimizer on one gradient of the task, to measure its cost.

        Returns:
            ``advance(steps)``, which returns once they are done, or raises ``RuntimeError`` where updates
            stay non-finite; and ``floats()``, the floats of state per parameter.
        """
