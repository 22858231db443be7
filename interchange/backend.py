"""The two protocols of a framework: ``Backend`` for the commands, ``Learner`` for meta-training.

Modules ``torch_impl.backend`` and ``tf_impl.backend`` are backends, and have their learner.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.data.coordinates import Subset
from common.training import Training
from interchange.protocols import Network, Position, Task
from interchange.rollout import Begun, Rollout, Trained

if TYPE_CHECKING:
    from common.tables.baselines import Spec
    from common.tables.teachers import TeacherRow
    from interchange.meta.carried import Carried
    from interchange.meta.workers import Workers
    from interchange.rule.rule import Rule
    from interchange.rule.source import Source
    from interchange.rule.step_sizes import Sized

Arrays = dict[str, np.ndarray]
Tasks = Callable[[str, int], Task]
Stop = Callable[[float], bool]
Told = Callable[[int, float, float], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Half:
    """One half of an antithetic pair.

    Attributes:
        pair: its number; both halves run on the optimizee of that number.
        weights: the perturbed ones.
        position: where it stands, the backend's own; None at the start of an epoch.
    """

    pair: int
    weights: Arrays
    position: Any = None


class Learner(Protocol):
    """A network, Adam on its weights, and the meta-gradients of unrolls (MATH.md section 3).

    Positions, tensors and optimizees are the backend's own. An unroll gives the position after ``steps``
    steps, the losses before each, and the meta-gradient: None where a loss or a gradient on the way is not
    finite; with ``coordinates`` it is the estimate from those.

    Attributes:
        network: what is trained; its weights are changed in place.
        config: ``TrainConfig`` or ``TuneConfig``.
        source: what ``from_source`` makes the same network of, in another process.
    """

    network: Network
    config: Any
    source: Any

    @classmethod
    def from_source(cls, source: Any, config: Any) -> "Learner":
        """The learner of another one's ``source``, with any weights."""

    @staticmethod
    def use_one_thread() -> None:
        """Leave the other cores to other processes, as far as the framework still can."""

    def weights(self) -> Arrays:
        """A copy of the network's weights."""

    def put(self, weights: Arrays) -> None:
        """Put weights into the network; Adam stays where it is."""

    def tensors(self, arrays: Arrays) -> dict[str, Any]:
        """Arrays by weight name as tensors of the weights' dtypes."""

    def moments(self) -> tuple[Arrays, Arrays, int]:
        """Adam's first and second moments by weight, and its number of steps; empty before the first."""

    def set_moments(self, first: Arrays, second: Arrays, count: int) -> None:
        """Put Adam where ``moments`` found it."""

    def descend(self, grads: dict[str, Any], rates: dict[str, float]) -> None:
        """One step of Adam at a learning rate per weight; none where a gradient is not finite."""

    def start(self, task: Task) -> "Position | Carried":
        """The position of an optimizee at the start of an epoch."""

    def start_imitation(self, task: Task, expert: str, lr: float) -> Position:
        """The start of an epoch that imitates a rule of the gallery at a learning rate."""

    def first_order(
        self, task: Task, position: Position, steps: int, coordinates: Subset | None
    ) -> tuple[Position, list[float], dict[str, Any] | None]:
        """An unroll by the meta-gradient that needs no graph of the optimizee.

        With ``coordinates`` the position is used up: its state may be written into.
        """

    def first_order_batch(
        self,
        tasks: list[Task],
        positions: list[Position],
        steps: int,
        coordinates: list[Subset] | None,
        weigh: Callable[[list[float]], float],
    ) -> tuple[list[Position | None], list[list[float]], dict[str, Any]] | None:
        """``first_order`` of several optimizees as one; None where these cannot be.

        Args:
            weigh: factor on a meta-gradient by the losses of its optimizee.

        Returns:
            Their positions, None of one that diverged; the losses of those that did not; the sum of their
            weighted meta-gradients, empty where there are none.
        """

    def second_order(
        self, task: Task, position: Position, steps: int, coordinates: None
    ) -> tuple[Position, list[float], dict[str, Any] | None]:
        """An unroll by the whole meta-gradient, through the optimizee's gradients."""

    def forward(
        self, task: Task, position: "Carried", steps: int, coordinates: Subset | None
    ) -> tuple["Carried", list[float], dict[str, Any] | None]:
        """An unroll by tangents carried along, without truncation; the position itself moves on."""

    def imitation(
        self, task: Task, position: Position, steps: int, coordinates: Subset | None
    ) -> tuple[Position, list[float], dict[str, Any] | None]:
        """An unroll along an expert's steps; the network learns to take them."""

    def kind(self, task: Task) -> Any:
        """What optimizees have in common that can run at once with weights of their own; None if alone."""

    def run_halves(
        self, tasks: Sequence[Task], halves: Sequence[Half], steps: int, keep: bool
    ) -> list[tuple[Position | None, np.ndarray]]:
        """Rollouts with weights of their own, at once if there are several.

        Returns:
            Of every half its position after ``steps`` steps, None unless ``keep``, and losses [steps + 1].
        """

    def position_arrays(self, position: Position) -> tuple[int, Arrays]:
        """A position's t, and its arrays: theta, gradient, loss, and ``state/<name>``."""

    def position_from(self, step: int, t: int, arrays: Arrays) -> Position:
        """The inverse of ``position_arrays``; there may be other arrays among them."""

    def mean_loss_at(self, tasks: Iterable[Task], steps: int) -> float:
        """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""

    def table_task(self, config: Any, stream: str, number: int, *, problem: str = "") -> Task:
        """Optimizee ``number`` of a stream of seeds, as the configuration describes it."""

    def random_scaling(self, task: Task, r: float, seed: int, number: int) -> Task:
        """The optimizee in rescaled coordinates (Lv et al. 2017)."""

    def convex_term(self, task: Task, seed: int, number: int) -> Task:
        """The optimizee plus a convex term of coordinates of its own (Lv et al. 2017)."""


class Backend(Protocol):
    """One framework's side of the commands.

    Attributes:
        NAME: ``torch`` or ``tf``; the package is ``<NAME>_impl``.
        TARGET: the row of ``interchange.emit.TARGETS`` whose code runs in the framework.
        USAGE: a program that uses a rule, as Python text with places for its {file} and its {lr}.
        CREATED_BY: what made a file: this project and the framework, with versions.
        KINDS: of tensors that a rule may have constants of its own for.
        Learner: ``Learner(network, config)``, for meta-training.
    """

    NAME: str
    TARGET: str
    USAGE: str
    CREATED_BY: str
    KINDS: tuple[str, ...]
    Learner: Callable[..., Learner]

    def metrics_writer(self, folder: str) -> Callable[[Mapping[str, Any]], None]:
        """What takes the rows of a run's metrics and writes them for TensorBoard."""

    def device_of(self, name: str) -> Any:
        """The device called ``name``; one that is not there raises ``L2OError``."""

    def check_training(self, training: Training, device: str) -> None:
        """Refuse, by ``L2OError``, steps that the device cannot take."""

    def join(self, device: str) -> "Workers":
        """The processes that train together, as this one's environment tells; ``Alone`` without any."""

    def load_source(self, spec: "Spec") -> "Source":
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

    def step_sizes_network(self, source: "Sized", dtype: str, device: str) -> Network:
        """A network of step sizes by tensor; ``dtype`` and ``device`` as on the command line."""

    def table_task(self, config: Any, stream: str, number: int, split: Any = "meta_train") -> Task:
        """Optimizee ``number`` of a stream of seeds, as a command's configuration describes it."""

    def mean_loss_at(self, tasks: Iterable[Task], network: Network, steps: int) -> float:
        """Mean over tasks of the loss at ``steps`` (MATH.md section 6); inf if a rollout diverges."""

    def trace(
        self, source: "Source", network: Network | None, task: Task, steps: int, coordinates: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        """Inputs [n, F], gradient [n] and output [n] at ``coordinates``, and the loss, step by step.

        Ends after ``steps`` or before the first in which one of them is not finite. A baseline has no
        network: its input is the gradient, its output (theta after - theta before) / lr.
        """

    def fit(
        self,
        source: "Source",
        task: Task,
        steps: int,
        stop: Stop,
        training: Training,
        told: Told,
        begun: Begun | None,
    ) -> Trained:
        """Train an optimizee; ``stop`` is asked after every step with its loss, True ends the training.
        ``told`` gets step, test loss and accuracy at every look; ``begun`` is a run of these settings to go
        on with, to the same bits as without an interruption."""

    def roll_out(
        self,
        source: "Source",
        lr: float,
        task: Task,
        steps: int,
        schedule: str,
        score: bool,
        training: Training,
    ) -> Rollout:
        """A run of an optimizer on an optimizee; ``score``: look at the test data at its end."""

    def rollout_job(
        self, config: Any, source: "Source", lr: float, stream: str, number: int, steps: int, schedule: str
    ) -> Rollout:
        """One rollout of a comparison, on the stream ``validation`` or ``test``; worker processes run it."""

    def stepper(
        self, source: "Source", lr: float, task: Task
    ) -> tuple[Callable[[int], None], Callable[[], float]]:
        """A fresh optimizer on one gradient of the task, to measure its cost.

        Returns:
            ``advance(steps)``, which returns once they are done, or raises ``RuntimeError`` where updates
            stay non-finite; and ``floats()``, the floats of state per parameter.
        """
