"""What a comparison is asked to run: optimizers, problems with their horizons, and first optimizees."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.errors import L2OError
from common.tables.suites import Entry, entries
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.grid import first_tasks, in_steps
from interchange.meta.tasks import own
from interchange.rule.source import named_specs

if TYPE_CHECKING:
    from interchange.backend import Backend, Task, Tasks
    from interchange.rule.source import Source

_HORIZONS = (200,)
_OWN = "own"  # what a caller's own tasks are called as a problem


@dataclasses.dataclass(frozen=True)
class Asked:
    """A comparison before its first run.

    Attributes:
        config: all of it; configs: problem -> that with the problem alone.
        loaded: SPEC -> what was loaded for it.
        wanted: problems and horizons; first: problem -> its first optimizee.
        left_out: problem -> why.
        own: tasks of the caller, if they are.
    """

    config: EvaluateConfig
    loaded: "Mapping[str, Source]"
    wanted: tuple[Entry, ...]
    configs: Mapping[str, EvaluateConfig]
    first: "Mapping[str, Task]"
    left_out: Mapping[str, str]
    own: "Tasks | None" = None

    def horizons(self, problem: str) -> tuple[int, ...]:
        """Of a problem, in steps."""
        return tuple(sorted(entry.steps for entry in self.wanted if entry.problem == problem))


def asked(config: EvaluateConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Asked:
    """What ``evaluate`` is asked to run.

    Raises:
        L2OError: an unknown optimizer or problem, missing data, settings that do not go together or that the
            device cannot do.
    """
    config = config.resolved()
    backend.device_of(config.device)
    for name in ("steps", "passes"):
        if getattr(config, name) and "suite:" in config.problem:
            raise L2OError(f"--problem {config.problem}: a suite has its own horizons; leave --{name} out")
    if config.steps and config.passes:
        raise L2OError("--steps and --passes both say how long to train; leave one out")
    if tasks is not None:
        if config.jobs > 1 or config.cluster:
            raise L2OError("jobs, cluster: tasks of your own stay in one process; leave them out")
        tasks, config = own(config, tasks), dataclasses.replace(config, problem=_OWN)
    lengths = config.steps or config.passes or _HORIZONS
    wanted = entries(config.problem, lengths) if tasks is None else tuple(Entry(_OWN, n) for n in lengths)
    loaded = {spec.text: backend.load_source(spec) for spec in named_specs(config.optimizers, backend.NAME)}
    configs, first, left_out = first_tasks(wanted, config, backend, tasks)
    wanted = tuple(entry for entry in wanted if entry.problem in configs)
    if config.passes:
        wanted, configs = in_steps(wanted, configs, first)
    backend.check_training(config.training, config.device)
    return Asked(config, loaded, wanted, configs, first, left_out, tasks)
