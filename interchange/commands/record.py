"""The recording of trajectories: ``record``.

What the optimizer saw (features, gradient) and did (its output), at coordinates drawn in equal shares
from every parameter tensor, or at all coordinates of some tensors.
"""

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.coordinates import choose_coordinates, choose_tensors, largest_within, split_by_run
from common.errors import L2OError
from common.rng import derived_seed
from common.run.cli import Progress
from common.run.cli import run as run_command
from common.run.config import OnProblem, from_dict, option
from common.run.places import vacant
from common.tables.baselines import BASELINES, DECAYS, Spec
from common.tables.problems import coordinate_table
from interchange.meta.config import TrainConfig
from interchange.meta.tasks import own
from interchange.rule.source import named_spec, read

if TYPE_CHECKING:
    from interchange.backend import Backend, Network, Task, Tasks
    from interchange.files.trajectories import Run, Trajectories
    from interchange.rule.source import Source

_FILE = "trajectories.h5"
# Runs that show what a structure makes of whole matrices: one to choose rules by, one to report; their rows.
_WHOLE_RUNS, _WHOLE_ROWS = 2, 300_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordConfig(OnProblem):
    """Recording of trajectories (FORMATS.md section 1)."""

    source: str = option(
        "", "a training run, a shipped teacher, a rule (file or name), or a baseline such as adam:lr=0.01"
    )
    problem: str = option("", "row of the problem table; the run's own if not given")
    steps: int = option(300, "inner steps of a trajectory", low=2)
    runs: int = option(8, "number of trajectories, each on a fresh optimizee", low=3)
    samples: int = option(50_000, "rows in all: runs x steps x coordinates", low=1)
    whole_tensors: bool = option(
        False, "every coordinate of as many tensors as the rows are enough for, for rules that see tensors"
    )


def record(config: RecordConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Path:
    """Record ``config.runs`` trajectories and write them to ``config.out``; the file's path.

    Each is kept beside it until all are there: the same command goes on where one was stopped.

    Args:
        tasks: ``tasks("record", number)`` gives optimizee ``number`` (a ``ModuleTask``, say), the same
            whenever asked; ``config.problem``'s if None. Of these nothing is kept.

    Raises:
        L2OError: an unknown source or problem, missing data, or every run diverged.
    """
    from interchange.files.trajectories import save_trajectories

    spec, config, out = _resolve(config, tasks)
    given = functools.partial(backend.table_task, config) if tasks is None else own(config, tasks)
    backend.device_of(config.device)
    source = backend.load_source(spec)
    vacant(out, config.overwrite)
    parts = out.with_name(out.name + ".parts")
    runs: dict[str, Run] = {}
    with Progress(f"record {spec.kind}", config.runs, quiet=config.quiet) as progress:
        for index in range(config.runs):
            part = parts / f"{index:06d}.h5"
            one = _kept(part, source, config, spec, backend) if tasks is None else None
            if one is None:
                run, features = _record_one(source, config, backend, given, index)
                one = _trajectories({run.name: run}, features, {}, config, spec, backend)
                if tasks is None and not run.diverged:  # of which there may be nothing but these
                    save_trajectories(part, one)
            runs |= one.runs
            progress.advance(loss=float(one.runs[f"{index:06d}"].loss[-1]))
    if all(run.diverged for run in runs.values()):
        raise L2OError(
            f"every trajectory of {spec.text} on {config.problem or 'its task'} diverged; lower its lr or "
            "train it longer"
        )
    split = split_by_run(list(runs))
    if (
        source.row().get("structure")
        and not config.whole_tensors
        and _has_matrices(given("record", config.runs))
    ):
        # In no split: what is fitted, and what the body is judged by, is the same without them.
        for index in range(config.runs, config.runs + _WHOLE_RUNS):
            run, _ = _record_one(source, config, backend, given, index, matrices=True)
            runs[run.name] = run
    save_trajectories(out, _trajectories(runs, one.features, split, config, spec, backend))
    shutil.rmtree(parts, ignore_errors=True)
    return out


def _trajectories(
    runs: "dict[str, Run]",
    features: dict[str, str],
    split: dict[str, tuple[str, ...]],
    config: RecordConfig,
    spec: Spec,
    backend: "Backend",
) -> "Trajectories":
    from interchange.files.trajectories import Trajectories

    return Trajectories(
        features=features,
        runs=runs,
        split=split,
        config=_portable(config, spec),
        seed=config.seed,
        created_by=backend.CREATED_BY,
    )


def _kept(
    part: Path, source: "Source", config: RecordConfig, spec: Spec, backend: "Backend"
) -> "Trajectories | None":
    """A trajectory that an interrupted recording of these settings left; None where there is none."""
    from common.run.storage import canonical_json
    from interchange.files.trajectories import load_trajectories

    if not part.exists():
        return None
    try:
        found = load_trajectories(part)
    except L2OError:
        return None
    same = (found.config, found.created_by) == (_portable(config, spec), backend.CREATED_BY)
    row = canonical_json(source.row())
    same = same and all((r.source_sha256, r.source_json) == (source.sha256, row) for r in found.runs.values())
    return found if same else None


def _resolve(config: RecordConfig, tasks: "Tasks | None") -> tuple[Spec, RecordConfig, Path]:
    """The source, the configuration with the problem filled in, and the output file.

    A teacher's run names the problem and its data.
    """
    spec = named_spec(config.source)
    if spec.schedule not in ("", "constant"):  # outputs are recorded before the learning rate
        raise L2OError(f"{config.source}: expected a constant lr to record at; leave the schedule out")
    if spec.kind != "baseline" and (given := [name for name in DECAYS if name in spec.options]):
        raise L2OError(f"{config.source}: expected the outputs of a {spec.kind}; leave {given[0]} out")
    if spec.kind == "baseline" and not BASELINES[spec.target].coordinatewise:
        raise L2OError(f"{config.source}: expected an optimizer that works coordinate by coordinate")
    run = Path(spec.target if spec.kind == "teacher" else "runs")
    if tasks is not None:
        config = dataclasses.replace(config, problem="")
    elif not config.problem and spec.kind == "teacher" and (run / "config.json").is_file():
        from common.run.runs import RunFolder

        its = from_dict(TrainConfig, RunFolder(run).config(), spec.target)
        if "," in its.problem:
            raise L2OError(f"--problem is missing: {config.source} was trained on {its.problem}; choose one")
        config = dataclasses.replace(config, problem=its.problem, dataset=config.dataset or its.dataset)
    if not config.problem and tasks is None:
        read(spec)  # a file of another kind is named as what it is first
        raise L2OError(f"--problem is missing: {config.source} is no training run that names one")
    return spec, config, Path(config.out or (run if run.is_dir() else Path("runs")) / _FILE)


def _has_matrices(task: "Task") -> bool:
    return any(view.matrix for view in task.views)


def _record_one(
    source: "Source",
    config: RecordConfig,
    backend: "Backend",
    given: "Tasks",
    index: int,
    matrices: bool = False,
) -> "tuple[Run, dict[str, str]]":
    """A run on an optimizee of its own, and its features; ``matrices``: of matrices alone, and whole."""
    from common.run.storage import canonical_json
    from interchange.files.trajectories import Run

    task, seed = given("record", index), derived_seed(config.seed, "record", index)
    row = dataclasses.asdict(task.instance.problem) if config.problem else {}
    tensor, place = coordinate_table(task.shapes)
    chosen, length = _chosen(config, task, index, matrices)
    network, expressions = _network(source, config, backend)
    steps = list(backend.trace(source, network, task, length, chosen))
    if not steps:
        where = config.problem or "its task"
        raise L2OError(f"{source.spec.text} diverged on {where} at its first step; lower its lr")
    x, g, y, losses = map(np.stack, zip(*steps, strict=True))
    diverged = len(losses) < length
    return Run(
        name=f"{index:06d}",
        problem=config.problem or "user",
        problem_json=canonical_json(row),
        source_kind=source.spec.kind,
        source_json=canonical_json(source.row()),
        source_sha256=source.sha256,
        seed=seed,
        init_seed=seed,
        num_steps=length,
        scale=network.scale if network else 1.0,
        diverged=diverged,
        outcome=f"diverged at step {len(losses) + 1}" if diverged else "ok",
        x=x,
        g=g,
        y=y,
        loss=losses,
        step=np.arange(1, len(losses) + 1, dtype=np.int64),
        param_index=tensor[chosen],
        flat_index=place[chosen],
        params_names=task.names,
        params_shapes=task.shapes,
        params_views=task.views if config.whole_tensors or matrices else None,
    ), expressions


def _chosen(config: RecordConfig, task: "Task", index: int, matrices: bool) -> tuple[np.ndarray, int]:
    """The coordinates of a run that are recorded, and its length."""
    count, length = max(1, round(config.samples / (config.runs * config.steps))), config.steps
    if matrices:
        sizes, (tensor, _) = (
            [math.prod(v.shape) * v.matrix for v in task.views],
            coordinate_table(task.shapes),
        )
        chosen = np.flatnonzero(np.isin(tensor, largest_within(sizes, _WHOLE_ROWS // length)))
        return chosen, min(length, max(2, _WHOLE_ROWS // len(chosen)))
    choose = choose_tensors if config.whole_tensors else choose_coordinates
    return choose([math.prod(shape) for shape in task.shapes], count, config.seed, index), length


def _network(
    source: "Source", config: RecordConfig, backend: "Backend"
) -> "tuple[Network | None, dict[str, str]]":
    """The network of a teacher or a rule, None for a baseline; what the inputs are, name -> expression."""
    from interchange.language.expression import to_text
    from interchange.rule.rule import Rule

    loaded = source.loaded
    if source.step_sizes:
        raise L2OError(
            f"{config.source}: expected one learning rate for all tensors, got step sizes by tensor, of "
            "which a recording says nothing; record it as it was before tune --per-tensor"
        )
    if loaded is None:
        return None, {"g": "g"}
    if isinstance(loaded, Rule):
        network, given = backend.rule_network(loaded, config.device), loaded.features
        if network.weight_decay:
            raise L2OError(
                f"{config.source}: expected a rule over gradient features, got one with weight decay, which "
                "reads theta; leave '- constant * theta' out"
            )
        return network, {n: to_text(given[n]) if n in given else "g" for n in network.features.names}
    network = backend.teacher_network(loaded.row, loaded.weights, config.dtype, config.device)
    return network, loaded.row.expressions()


def _portable(config: RecordConfig, spec: Spec) -> dict[str, Any]:
    """What the recording depends on, without places and devices: equal in both backends."""
    values = dataclasses.asdict(config) | {"source": spec.kind, "dataset": Path(config.dataset).name}
    places = ("out", "data_dir", "start", "device", "quiet", "overwrite")
    return {k: v for k, v in values.items() if k not in places and (k, v) != ("whole_tensors", False)}


def main(command: Callable[[RecordConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: RecordConfig) -> None:
        path = command(config)
        if not config.quiet:
            print(f"trajectories: {path}")

    return run_command(
        RecordConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.record",
        description="Record what an optimizer sees and does, coordinate by coordinate.",
        positional=("source",),
        required=("source",),
        again="the same command goes on",
    )
