"""Step sizes by tensor, which ``tune --per-tensor`` trains: what of them has no tensor of a framework.

The learned step sizes ("LUM") of the ICLR 2022 code are plain factors; here they are logarithms, which stay
positive and move by shares of themselves. Everything else of the optimizer stays as it is.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.tables.problems import parameter_specs, problem_row
from interchange.backend import Arrays, Tasks
from interchange.files.weights import Teacher, teacher_from_arrays
from interchange.protocols import Network, State, Task
from interchange.rule.rule import Rule

if TYPE_CHECKING:
    from interchange.meta.config import TuneConfig

_NOT_TOO = ("factors", "kinds", "schedule", "weight_decay", "coordinates", "memory")


@dataclasses.dataclass(frozen=True, eq=False)
class Sized:
    """A rule or teacher with a step size for every tensor: what a network of them is made of.

    Attributes:
        loaded: with ``step_sizes`` by parameter name, in the order of the parameters.
    """

    loaded: Rule | Teacher

    @property
    def plain(self) -> Rule | Teacher:
        """The rule or teacher without step sizes."""
        return dataclasses.replace(self.loaded, step_sizes={})


class StepSizeWeights:
    """The half of a ``StepSizes`` network without tensors: names, start values, rates, the way back.

    Its outputs are those of ``inner`` times the step size of their tensor. A structure comes after that,
    which makes no difference: ``orth`` of a multiple is that multiple of ``orth``.

    Args:
        inner: the network of the rule or teacher without step sizes; its weights stay as they are.

    Attributes:
        source: what the network is made of, in another process too.
        starts: weight name -> logarithm of the step size to begin with.
        rates: weight name -> factor on the meta learning rate, 1.

    Raises:
        L2OError: a rule with decoupled weight decay, which would differ by tensor, too.
    """

    tasks_batchable = weights_batchable = False  # every optimizee is asked for its tensors
    weight_decay = 0.0

    def __init__(self, source: Sized, inner: Network) -> None:
        if inner.weight_decay:
            raise L2OError(
                "--per-tensor: expected a rule without weight decay, of which the meta-gradient has one for "
                "all tensors; leave '- constant * theta' out, and give it to the optimizer"
            )
        self.source, self.inner = source, inner
        self.scale, self.structure, self.sees_tensors = inner.scale, inner.structure, inner.sees_tensors
        self.starts = {f"step_size/{name}": math.log(size) for name, size in source.loaded.step_sizes.items()}
        self.rates = dict.fromkeys(self.starts, 1.0)
        self._place = np.zeros(0, np.int32)

    @property
    def views(self) -> tuple[Any, ...]:
        """Of the tensors of the task it is bound to, where it sees them."""
        return self.inner.views

    def bind(self, task: Task) -> None:
        """Take which coordinate is of which tensor.

        Raises:
            L2OError: the task has other tensors than there are step sizes for.
        """
        self.inner.bind(task)
        expected = tuple(self.source.loaded.step_sizes)
        numbers = np.arange(len(task.names), dtype=np.int32)
        place = np.repeat(numbers, [math.prod(shape) for shape in task.shapes])
        known = self._place if len(self._place) else place  # graphs keep it
        if tuple(task.names) != expected or not np.array_equal(place, known):
            raise L2OError(
                f"--per-tensor: expected optimizees with the tensors {_listed(expected)} of the same shapes, "
                f"got {_listed(task.names)}; tune on one problem"
            )
        self._place = place

    def rows(self, theta: Any) -> list[Any]:
        """Inputs beside the features."""
        return self.inner.rows(theta)

    def initial_state(self, theta: Any) -> State:
        """Zero state for a flat vector [N]."""
        return self.inner.initial_state(theta)

    def inputs(self, g: Any, state: State) -> tuple[Any, State]:
        """The network's inputs [F, N] for gradient [N], and the state after their step."""
        return self.inner.inputs(g, state)

    def tuned(self, weights: Mapping[str, np.ndarray]) -> Rule | Teacher:
        """The rule or teacher with the step sizes that these weights stand for."""
        sizes = {name.partition("/")[2]: math.exp(float(w)) for name, w in weights.items()}
        return dataclasses.replace(self.source.loaded, step_sizes=sizes)


def sized(loaded: Rule | Teacher, config: "TuneConfig", tasks: Tasks | None) -> Sized:
    """What ``config`` asks to tune, with a step size for every tensor of its problem to begin with.

    Args:
        loaded: its own step sizes are gone on from, ``config.step_size`` is that of all others.

    Raises:
        L2OError: settings that do not go together.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in _NOT_TOO:
        if getattr(config, name) != defaults[name]:
            flag = f"--{name.replace('_', '-')}"
            raise L2OError(f"--per-tensor tunes step sizes and nothing else, cheaply; leave out {flag}")
    if tasks is not None:
        names: Sequence[str] = tasks("meta_train", 0).names
    elif "," in config.problem:
        raise L2OError(f"--per-tensor: expected one problem, whose tensors it is about, got {config.problem}")
    else:
        names = [spec.name for spec in parameter_specs(problem_row(config.problem, config.dataset))]
    sizes = {name: loaded.step_sizes.get(name, config.step_size) for name in names}
    return Sized(dataclasses.replace(loaded, step_sizes=sizes))


def packed(loaded: Rule | Teacher) -> tuple[dict[str, Any], Arrays]:
    """A rule or teacher as JSON data and arrays, for other workers."""
    if isinstance(loaded, Rule):
        return {"rule": loaded.to_json()}, {}
    names = ("sha256", "created_by", "step_sizes", "tuned")
    return {"row": loaded.row.to_dict(), **{name: getattr(loaded, name) for name in names}}, loaded.weights


def unpacked(told: Mapping[str, Any], arrays: Arrays) -> Rule | Teacher:
    """The inverse of ``packed``."""
    if "rule" in told:
        return Rule.from_json(told["rule"])
    found = teacher_from_arrays(told["row"], arrays, told["sha256"], told["created_by"], "the first worker")
    return dataclasses.replace(found, step_sizes=told["step_sizes"], tuned=told["tuned"])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown}, ... ({len(names)})" if len(names) > 6 else shown
