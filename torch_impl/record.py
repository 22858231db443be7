"""Record trajectories: ``python -m torch_impl.record runs/rp --out runs/rp/trajectories.h5``.

What the optimizer saw (features, gradient) and did (its output), at coordinates drawn in equal shares
from every parameter tensor.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.baselines import Spec, parse_spec
from common.cli import Progress
from common.cli import run as run_command
from common.config import RecordConfig, TrainConfig, from_dict
from common.coordinates import choose_coordinates, split_by_run
from common.errors import L2OError

if TYPE_CHECKING:
    from interchange.trajectories import Run
    from torch_impl.sources import Source

_FILE = "trajectories.h5"


def record(config: RecordConfig) -> Path:
    """Record ``config.runs`` trajectories and write them to ``config.out``; the file's path.

    Raises:
        L2OError: an unknown source or problem, missing data, or every run diverged.
    """
    from interchange.trajectories import Trajectories, save_trajectories
    from torch_impl import sources
    from torch_impl.tensors import CREATED_BY, device_of

    spec, config, out = _resolve(config)
    if out.exists() and not config.overwrite:
        raise L2OError(f"--out {out} is there already; replace it with --overwrite or choose another name")
    device_of(config.device)
    source = sources.load(spec)
    runs: dict[str, Run] = {}
    features: dict[str, str] = {}
    with Progress(f"record {spec.kind}", config.runs, quiet=config.quiet) as progress:
        for index in range(config.runs):
            run, features = _record_one(source, config, index)
            runs[run.name] = run
            progress.advance(loss=float(run.loss[-1]))
    if all(run.diverged for run in runs.values()):
        raise L2OError(
            f"every trajectory of {spec.text} on {config.problem} diverged; lower its lr or train it longer"
        )
    trajectories = Trajectories(
        features=features,
        runs=runs,
        split=split_by_run(list(runs)),
        config=_portable(config, spec),
        seed=config.seed,
        created_by=CREATED_BY,
    )
    save_trajectories(out, trajectories)
    return out


def _resolve(config: RecordConfig) -> tuple[Spec, RecordConfig, Path]:
    """The source, the configuration with the problem filled in, and the output file.

    A bare path is a rule where it ends in ``.json``, else a teacher; its run names the problem and its data.
    """
    place = Path(config.source)
    kind = "rule" if place.suffix == ".json" else "teacher"
    spec = parse_spec(config.source if ":" in config.source or not place.exists() else f"{kind}:{place}")
    run = Path(spec.target if spec.kind == "teacher" else "runs")
    if not config.problem and spec.kind == "teacher" and (run / "config.json").is_file():
        from common.runs import RunFolder

        its = from_dict(TrainConfig, RunFolder(run).config(), spec.target)
        config = dataclasses.replace(config, problem=its.problem, dataset=config.dataset or its.dataset)
    if not config.problem:
        raise L2OError(f"--problem is missing: {config.source} is no training run that names one")
    return spec, config, Path(config.out or (run if run.is_dir() else Path("runs")) / _FILE)


def _record_one(source: "Source", config: RecordConfig, index: int) -> "tuple[Run, dict[str, str]]":
    import torch

    from common.problems import coordinate_table
    from common.storage import canonical_json
    from interchange.expression import to_text
    from interchange.rule import Rule
    from interchange.trajectories import Run
    from torch_impl.problems import table_task, value_and_gradient
    from torch_impl.symbolic import RuleNetwork
    from torch_impl.teachers import TeacherNetwork

    task = table_task(config, "record", index)
    row, seed = task.instance.problem, task.instance.seed
    tensor, place = coordinate_table(task.shapes)
    count = max(1, round(config.samples / (config.runs * config.steps)))
    chosen = choose_coordinates([math.prod(shape) for shape in task.shapes], count, config.seed, index)
    pick = torch.from_numpy(chosen).to(config.device)
    lr, theta = source.spec.lr or 1.0, task.initial()
    if isinstance(source.loaded, Rule):
        network: Any = RuleNetwork(source.loaded, config.device)
        given = source.loaded.features
        expressions = {n: to_text(given[n]) if n in given else "g" for n in network.features.names}
    elif source.loaded is not None:
        network = TeacherNetwork(source.loaded.row, source.loaded.weights, theta.dtype, config.device)
        expressions = source.loaded.row.expressions()
    else:
        network, expressions = None, {"g": "g"}
        lr = source.spec.lr or source.spec.middle
        theta = theta.requires_grad_()
        optimizer = source.optimizer([theta], lr)
    state = network.initial_state(theta) if network else None
    xs, gs, ys, losses = [], [], [], []
    for step in range(config.steps):
        loss, g = value_and_gradient(task, theta, step)
        if not bool(torch.isfinite(loss) & torch.isfinite(g).all()):
            break
        with torch.no_grad():
            if network:
                x, state = network.inputs(g, state)
                y, hidden = network.step(network.weights, x, state.network, state.t)
                state = dataclasses.replace(state, network=hidden)
                theta = theta + (lr * network.scale) * y
            else:
                x, before = g[None], theta.detach().clone()
                theta.grad = g
                optimizer.step()
                y = (theta.detach() - before) / lr
        if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
            break
        xs.append(x[:, pick].T.cpu().numpy())
        gs.append(g[pick].cpu().numpy())
        ys.append(y[pick].cpu().numpy())
        losses.append(float(loss))
    if not losses:
        raise L2OError(f"{source.spec.text} diverged on {config.problem} at its first step; lower its lr")
    diverged = len(losses) < config.steps
    return Run(
        name=f"{index:06d}",
        problem=config.problem,
        problem_json=canonical_json(dataclasses.asdict(row)),
        source_kind=source.spec.kind,
        source_json=canonical_json(source.row()),
        source_sha256=source.sha256,
        seed=seed,
        init_seed=seed,
        num_steps=config.steps,
        scale=network.scale if network else 1.0,
        diverged=diverged,
        outcome=f"diverged at step {len(losses) + 1}" if diverged else "ok",
        x=np.stack(xs),
        g=np.stack(gs),
        y=np.stack(ys),
        loss=np.asarray(losses),
        step=np.arange(1, len(losses) + 1, dtype=np.int64),
        param_index=tensor[chosen],
        flat_index=place[chosen],
        params_names=task.names,
        params_shapes=task.shapes,
    ), expressions


def _portable(config: RecordConfig, spec: Spec) -> dict[str, Any]:
    """What the recording depends on, without places and devices: equal in both backends."""
    values = dataclasses.asdict(config) | {"source": spec.kind, "dataset": Path(config.dataset).name}
    places = ("out", "data_dir", "start", "device", "quiet", "overwrite")
    return {k: v for k, v in values.items() if k not in places}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: RecordConfig) -> None:
        path = record(config)
        if not config.quiet:
            print(f"trajectories: {path}")

    return run_command(
        RecordConfig,
        body,
        argv,
        prog="python -m torch_impl.record",
        description="Record what an optimizer sees and does, coordinate by coordinate.",
        positional=("source",),
        required=("source",),
    )


if __name__ == "__main__":
    sys.exit(main())
