"""What the meta-training of both frameworks is written in; tensors are the framework's own."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from common.errors import L2OError

if TYPE_CHECKING:
    from interchange.language.view import View

Tensor = Any


@dataclasses.dataclass(frozen=True)
class State:
    """Everything an optimizer carries from step to step.

    Attributes:
        t: number of steps taken.
        features: state of the feature stream, arrays [N].
        network: the network's or rule's own state: for a teacher h and c per cell, [H, N]; for a rule that
            sees tensors the arrays of each tensor in turn, in its shape or smaller.
    """

    t: int
    features: tuple[Tensor, ...]
    network: tuple[Tensor, ...]

    def named(self) -> dict[str, Tensor]:
        """The arrays by name, for checkpoints."""
        return {f"features/{i:03d}": a for i, a in enumerate(self.features)} | {
            f"network/{i:03d}": a for i, a in enumerate(self.network)
        }

    @classmethod
    def from_named(cls, t: int, arrays: Mapping[str, Tensor]) -> "State":
        """The inverse of ``named``."""
        parts = {
            group: tuple(arrays[k] for k in sorted(arrays, key=_number) if k.startswith(group))
            for group in ("features/", "network/")
        }
        return cls(t, parts["features/"], parts["network/"])


def _number(name: str) -> int:
    """Of an array's name; there may be more than three digits."""
    digits = name.rpartition("/")[2]
    return int(digits) if digits.isdigit() else -1


class Task(Protocol):
    """What the inner loop needs of an optimizee.

    Attributes:
        names, shapes: of the parameter tensors, in the order they lie in the flat vector.
        views: their matrix views; only rules that see tensors ask for them.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    views: "tuple[View, ...]"

    def initial(self) -> Tensor:
        """The initial parameters, a flat vector [N]."""

    def loss(self, parameters: list[Tensor], step: int) -> Tensor:
        """The loss, 0-dim, of parameters in their own shapes on the batch of ``step``."""


class Network(Protocol):
    """What is trained: a teacher's network, or a rule with its constants as weights.

    Attributes:
        weight_decay: decoupled weight decay, 0.0 without.
        tasks_batchable: several optimizees may run as one (``BatchedTasks``).
        weights_batchable: so may several sets of weights (``batched``).
        sees_tensors: an output depends on other coordinates of its tensor.
        views: of the tensors of the task it is bound to, where it sees them.
        source: what it is made of, but for its weights, as ``Learner.from_source`` takes it.
        structure: the tensor operator its outputs go through before ``scale``, "" for none.
    """

    weights: dict[str, Tensor]
    scale: float
    weight_decay: float
    tasks_batchable: bool
    sees_tensors: bool
    views: "tuple[View, ...]"
    structure: str
    source: Any

    def bind(self, task: Task) -> None:
        """Told at the start of an epoch what comes."""

    def rows(self, theta: Tensor) -> list[Tensor]:
        """Inputs [1, N] of the network after the features."""

    def initial_state(self, theta: Tensor) -> State:
        """Zero state for a flat vector [N]."""

    def inputs(self, g: Tensor, state: State) -> tuple[Tensor, State]:
        """Network inputs [F, N] of gradient [N], and the state after the features' step."""

    def step(
        self, weights: dict[str, Tensor], x: Tensor, network: tuple[Tensor, ...], t: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output [N] before ``structure`` and ``scale``, and the new network state."""

    def roll(
        self, x: Tensor, network: tuple[Tensor, ...], t: int, *, reuse: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``step`` with the network's own weights, not recorded; ``reuse``: the old state may be lost."""

    def vjp(self, state: State, inputs: Tensor, c: Tensor) -> dict[str, Tensor] | None:
        """sum_t <c_t, d out_t / d weights> by compiled code, None where there is none."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where an epoch stands between two unrolls.

    Attributes:
        theta: flat parameters [N].
        loss, gradient: at ``theta`` on the batch of ``step``, already taken by the unroll before
            (f_T of one unroll is f_0 of the next); None at the start of an epoch.
    """

    step: int
    theta: Tensor
    state: State
    loss: Tensor | None = None
    gradient: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Imitation:
    """Where an epoch of imitation stands.

    Attributes:
        expert: the rule of the optimizer that is imitated; it runs at learning rate ``lr``.
        at: the expert's position, with loss and gradient.
        state: of the network that is trained.
    """

    expert: Network
    lr: float
    at: Position
    state: State

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.at.step

    @property
    def theta(self) -> Tensor:
        """The optimizee's parameters [N]."""
        return self.at.theta


def views_of(task: Task, who: str) -> "tuple[View, ...]":
    """The views of a task's tensors, one for each; ``L2OError`` where ``who`` finds none."""
    views = tuple(getattr(task, "views", ()))
    if [view.shape for view in views] != list(map(tuple, task.shapes)):
        raise L2OError(
            f"{who} sees tensors: expected an optimizee with views, one for each of its shapes "
            "(interchange.language.view), beside them"
        )
    return views


def lanes_of(task: Task, who: str) -> "tuple[tuple[View, ...], int]":
    """The views of the tensors in one lane of a flat vector, and the number of lanes, which are alike.

    Of optimizees side by side (``BatchedTasks``) that are not alike, all tensors are those of one lane.
    """
    each = [views_of(one, who) for one in getattr(task, "tasks", (task,))]
    if all(views == each[0] for views in each):
        return each[0], len(each)
    return tuple(view for views in each for view in views), 1


def start(task: Task, network: Network) -> Position:
    """The position at the start of an epoch."""
    network.bind(task)
    theta = task.initial()
    return Position(0, theta, network.initial_state(theta))
