"""The main job on embedded data: ``demo``.

Train a teacher, record it, distill it into equations, choose one by rollouts, tune its constants,
compare it with fairly tuned hand-made optimizers, and write an HTML report.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.extras import require
from common.metrics import SummaryRow, summarise, summary_text
from common.run.cli import run as run_command
from common.run.config import OnProblem, option
from common.tables.baselines import baseline_names
from common.tables.problems import PROBLEMS, parameter_specs
from common.tables.teachers import TEACHERS
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig, rollout_loss
from interchange.commands.stages import Stages
from interchange.evaluation.config import EvaluateConfig
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.report.demo_page import FrontRow, ReportData, RuleCard, write_report
from interchange.rule.words import told

if TYPE_CHECKING:
    from interchange.backend import Backend
    from interchange.commands.train import Run
    from interchange.files.results import EvaluationRow
    from interchange.rule.rule import Rule
    from interchange.search.samples import Sequences

_PROTOCOL = [
    "Meta-training, recording, choice and tuning use half A of the training images, the comparison half B.",
    "Meta-training lowers the sum of the losses' logarithms, so that late steps count as much as the first.",
    "Loss at step S: mean mini-batch loss, before the update, over the 20 steps up to S.",
    "Every optimizer tries the same number of learning rates, a factor 2 apart, its best not at an edge; "
    "teacher and rules tune the multiplier on their update. Chosen on validation seeds.",
    "Reported on test seeds: geometric mean, 95 % t-interval of logarithms. Diverged runs are counted.",
    "Test loss: of the network at the end, on images it was not trained on.",
    "The search for an equation ends after a number of candidates, not of seconds.",
    "Tuned constants are kept if they beat the rule's own on 24 optimizees that decided nothing before.",
    "ms/step: median time of one optimizer.step(), optimizers taking turns in one process.",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(OnProblem):
    """The main job on the embedded data."""

    teacher: str = option("rp_s_m", "row of the teacher table", choices=lambda: TEACHERS)
    epochs: int = option(160, "meta-epochs of the teacher", low=1)
    samples: int = option(120_000, "rows of the recording", low=1)
    evaluations: int = option(30_000, "candidates of the symbolic search", low=1)
    max_size: int = option(40, "nodes of the longest equation", low=3, high=1000)
    steps: int = option(100, "inner steps of training and comparison", low=20)
    seeds: int = option(5, "test seeds of the comparison", low=2)
    jobs: int = option(2, "processes of the comparison", low=1)


def demo(config: DemoConfig, backend: "Backend") -> Path:
    """Run every stage; the path of the report.

    Raises:
        L2OError: ``config.out`` holds a run already, or a stage fails.
    """
    require("demo", "pyoperon", "matplotlib")  # needed minutes later
    stages = Stages(config.quiet, backend)
    folder = Path(config.out or "runs/demo")
    run, ranked, tuned = _make_rules(config, stages, folder)
    rows = _compare(config, stages, folder)
    summary = summarise(rows, (config.steps,))
    report = folder / "report.html"
    write_report(report, report_data(config, run, ranked, tuned, rows, summary, stages))
    if not config.quiet:
        best, last = folder / "rules" / "best.json", folder / "tuned.json"
        print()
        print(summary_text(summary))
        print(told(tuned, last))
        print(f"rule before tuning: {best}\nreport: {report}")
    return report


def _shared(config: DemoConfig, *more: str) -> dict[str, Any]:
    """The settings that every stage has, and those named."""
    names = ("seed", "quiet", "device", "data_dir", "dtype", "batch_size", "overwrite", *more)
    return {name: getattr(config, name) for name in names}


def _make_rules(config: DemoConfig, stages: "Stages", folder: Path) -> "tuple[Run, list[Rule], Rule]":
    """The teacher's run, its rules, the chosen one first, and that one tuned."""
    from interchange.distill.config import DistillConfig

    train = TrainConfig(
        epochs=config.epochs,
        lr=2e-3,
        lr_decay=0.1,
        loss="log",  # of the sum the late steps are a hundredth, and nothing makes their updates small
        validate_every=10,
        validation_tasks=8,
        epoch_length=config.steps,
        out=str(folder),
        **_shared(config, "teacher", "problem"),
    )
    run = stages.run("train", train)
    if run.exit_code:
        raise SystemExit(run.exit_code)
    record = RecordConfig(source=str(folder), runs=12, samples=config.samples, **_shared(config))
    trajectories = str(stages.run("record", record))
    common = {n: getattr(config, n) for n in ("evaluations", "max_size", "seed", "quiet", "overwrite")}
    stages.run("distill", DistillConfig(trajectories=trajectories, **common))
    rules, shared = folder / "rules", _shared(config, "problem")
    ranked = stages.run("select", SelectConfig(front=str(rules), steps=config.steps, more=20, **shared))
    best, out = str(rules / "best.json"), str(folder / "tuned.json")
    tune = TuneConfig(rule=best, epoch_length=config.steps, validation_tasks=8, confirm=24, out=out, **shared)
    tuned = stages.run("tune", tune)
    return run, ranked, tuned


def _compare(config: DemoConfig, stages: "Stages", folder: Path) -> "list[EvaluationRow]":
    """Teacher, rules and every baseline, by short names."""
    names = {
        f"teacher:{folder}": "teacher",
        f"rule:{folder / 'rules' / 'best.json'}": "rule",
        f"rule:{folder / 'tuned.json'}": "tuned rule",
    }
    evaluate = EvaluateConfig(
        optimizers=(*names, *baseline_names(stages.backend.NAME)),
        steps=(config.steps,),
        out=str(folder / "evaluation"),
        **_shared(config, "problem", "seeds", "jobs"),
    )
    rows = stages.run("evaluate", evaluate)
    return [dataclasses.replace(row, optimizer=names.get(row.optimizer, row.optimizer)) for row in rows]


def report_data(
    config: DemoConfig,
    run: "Run",
    ranked: "list[Rule]",
    tuned: "Rule",
    rows: "list[EvaluationRow]",
    summary: list[SummaryRow],
    stages: Stages,
) -> ReportData:
    """Everything the report shows."""
    from common.run.runs import environment
    from interchange.files.trajectories import load_trajectories
    from interchange.search.samples import sequences

    held_out = sequences(load_trajectories(run.folder / "trajectories.h5"), "test")
    chosen = ranked[0]
    return ReportData(
        title=f"A learned optimizer as an equation: {config.teacher} on {config.problem}",
        problem=config.problem,
        problem_lines=_problem_lines(config),
        teacher={k: v for k, v in run.teacher.to_dict().items() if v not in ("", 0)},
        training_seconds=stages.seconds["train"],
        metrics=[
            {"epoch": r["epoch"], "loss": r["loss"], "validation": r.get("validation")} for r in run.history
        ],
        front=[_front_row(rule, chosen) for rule in sorted(ranked, key=lambda rule: rule.complexity)],
        rules=[
            _card("distilled rule", chosen, chosen, held_out),
            _card("tuned rule", tuned, chosen, held_out),
        ],
        summary=summary,
        curves=_curves(rows, config.steps),
        commands=stages.commands,
        versions=environment()["versions"] | {"python": environment()["python"]},
        protocol=_PROTOCOL,
        timings=stages.seconds,
        **use(summary, {"rule": chosen, "tuned rule": tuned}, run.folder, stages.backend),
    )


def _problem_lines(config: DemoConfig) -> dict[str, str]:
    problem = PROBLEMS[config.problem]
    specs = parameter_specs(problem)
    return {
        "what": problem.note,
        "parameters": f"{sum(math.prod(s.shape) for s in specs):,} in {len(specs)} tensors",
        "mini-batch": str(problem.batch_size),
        "steps compared": str(config.steps),
    }


def _curves(rows: "list[EvaluationRow]", steps: int) -> dict[str, np.ndarray]:
    """Losses [seed, step] of every optimizer, nan where a run has ended."""
    curves: dict[str, list[np.ndarray]] = {}
    for row in rows:
        padded = np.full(steps, np.nan)
        padded[: len(row.losses)] = row.losses
        curves.setdefault(row.optimizer, []).append(padded)
    return {name: np.stack(values) for name, values in curves.items()}


def _front_row(rule: "Rule", chosen: "Rule") -> FrontRow:
    record = rule.provenance["loss"]
    return FrontRow(
        rule=rule,
        **{f"r2_{split}": rule.provenance["r2"][split] for split in ("train", "valid", "test")},
        chosen=rule.expression == chosen.expression,
        rollout_loss=rollout_loss(rule),
        tasks=record["tasks"],
        behind=record["behind"],
    )


def _card(name: str, rule: "Rule", before: "Rule", held_out: "Sequences") -> RuleCard:
    from interchange.distill.refit import score
    from interchange.distill.structure import inside

    constants = {c: (before.constants[c], value) for c, value in rule.constants.items()}
    return RuleCard(name=name, rule=rule, constants=constants, r2=score(inside(rule), held_out))


def use(
    summary: list[SummaryRow], rules: "Mapping[str, Rule]", folder: Path, backend: "Backend"
) -> dict[str, Any]:
    """How to use the better of the two rules, with the learning rate that was chosen for it; its exports."""
    from interchange.emit import TARGETS

    files = {"rule": folder / "rules" / "best.json", "tuned rule": folder / "tuned.json"}
    rows = [row for row in summary if row.optimizer in files]
    best = min(rows, key=lambda row: row.mean)
    rule = rules[best.optimizer]
    return {
        "usage": backend.USAGE.format(file=files[best.optimizer].as_posix(), lr=f"{best.lr:g}"),
        "exports": {name: TARGETS[name].emit(rule) for name in ("latex", "numpy", backend.TARGET)},
    }


def main(command: Callable[[DemoConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: DemoConfig) -> None:
        command(config)

    return run_command(
        DemoConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.demo",
        description="Teacher, recording, equation, tuning, comparison and report on embedded data.",
    )
