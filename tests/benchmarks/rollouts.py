"""Rules against their teachers as optimizers: loss on the training problem and on unseen ones.

    python tests/benchmarks/rollouts.py --teacher rp_s --front rules/rp_s [--teacher RUN --front FOLDER ...]
        [--choose FOLDER] [--seeds 5] [--steps 200] [--trials 0] [--jobs 4] [--whole] [--json FILE]

Every front's choice by R2, and its choice by rollouts, made anew here with ``torch_impl.select``, start from
the test seeds its teacher starts from; figures as in MATH.md section 6, on half B of the data. With 0 trials
all run as they are, at multiplier 1; with more, every multiplier is tuned on validation seeds, problem by
problem.
A ratio is the geometric mean over seeds of rule / teacher, with its 95 % t-interval.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interleaved import parser_of, save, tell

from common.metrics import geometric, interval, number
from interchange.commands.evaluate import loss_at_or_inf
from interchange.commands.select import SelectConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.profiles import mean_ratio, ratio
from interchange.rule.choice import shortest_within
from interchange.rule.front import read_front
from interchange.rule.rule import Rule
from torch_impl import evaluate, select

# Deeper; another activation; other data; convolutions with batch norm; other data, classes and
# convolutions; no network at all.
UNSEEN = ("mnist-mlp-deep", "mnist-sigmoid", "digits-mlp", "mnist-conv", "cifar-small-conv", "quadratic")
WITHIN = 1.05  # of the teacher's loss on the training problem

Figures = dict[str, dict[str, list[float]]]  # problem -> optimizer -> loss of each seed


@dataclasses.dataclass(frozen=True)
class Pair:
    """A teacher and what stands in for it: SPEC texts, and nodes and R2 by SPEC.

    Attributes:
        rules: ``r2``, ``rollout`` and, where all are asked for, ``rule_000`` and so on -> SPEC.
    """

    name: str
    teacher: str
    rules: dict[str, str]
    about: dict[str, dict[str, Any]]


def paired(name: str, teacher: str, front: str, options: argparse.Namespace) -> Pair:
    """The choices from a front, saved in a folder of this name below ``options.choose``."""
    folder = Path(options.choose, name)
    started = time.monotonic()
    given = {name: getattr(options, name) for name in ("problem", "steps", "data_dir", "jobs")}
    select(SelectConfig(front=front, out=str(folder), quiet=True, **given))
    seconds = time.monotonic() - started
    rules = read_front(folder)
    shortest_within(rules).save(folder / "r2.json")
    specs = {"r2": f"rule:{folder / 'r2.json'}", "rollout": f"rule:{folder / 'best.json'}"}
    if options.whole:
        specs |= {f"rule_{k:03d}": f"rule:{folder / f'rule_{k:03d}.json'}" for k in range(len(rules))}
    files = {Path(spec.removeprefix("rule:")): choice for choice, spec in specs.items()}
    about = {}
    for file, choice in files.items():
        rule = Rule.load(file)
        loss = rule.provenance["loss"]["valid"]
        about[choice] = {"nodes": rule.complexity, "r2": rule.provenance["r2"]["test"], "valid": loss}
    tell(f"{front}: {len(rules)} rules rolled out in {seconds:.0f} s")
    return Pair(name, f"teacher:{teacher}", specs, about)


def measure(pairs: Sequence[Pair], problem: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """SPEC -> loss of each test seed on ``problem``; inf where a run diverged."""
    specs = tuple(dict.fromkeys(spec for pair in pairs for spec in (pair.teacher, *pair.rules.values())))
    with tempfile.TemporaryDirectory() as folder:
        given = {name: getattr(options, name) for name in ("seeds", "trials", "jobs", "data_dir")}
        given |= {"problem": problem, "steps": (options.steps,), "out": folder, "quiet": True}
        rows = evaluate(EvaluateConfig(optimizers=specs, **given))
    losses: dict[str, list[float]] = {spec: [] for spec in specs}
    for row in sorted(rows, key=lambda row: row.seed):
        losses[row.optimizer].append(loss_at_or_inf(row, options.steps))
    return losses


def verdict(pair: Pair, figures: Figures, problem: str) -> dict[str, Any]:
    """Ratios of every choice to the teacher by problem, and whether the choice keeps what is promised."""
    result: dict[str, Any] = {"teacher": pair.teacher, "choices": {}}
    for choice, spec in pair.rules.items():
        ratios = {
            name: dataclasses.astuple(ratio(losses[spec], losses[pair.teacher]))
            for name, losses in figures.items()
        }
        unseen = [value[0] for name, value in ratios.items() if name != problem]
        as_good = sum(value <= 1.0 for value in unseen)
        result["choices"][choice] = pair.about[choice] | {
            "losses": {name: losses[spec] for name, losses in figures.items()},
            "ratios": ratios,
            "as_good": as_good,
            "kept": ratios[problem][0] <= WITHIN and 2 * as_good >= len(unseen),
        }
    result["losses"] = {name: losses[pair.teacher] for name, losses in figures.items()}
    return result


def against_r2(results: Mapping[str, Any], problems: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Loss of the rollout choice over the r2 choice's by problem, and of all; intervals are over teachers."""
    columns = {}
    for name in problems:
        values = []
        for result in results.values():
            pair = [result["choices"][choice]["losses"][name] for choice in ("rollout", "r2")]
            values.append(ratio(*pair).value)
        columns[name] = values
    columns["all"] = [mean_ratio(row) for row in zip(*columns.values(), strict=True)]
    return {name: geometric(map(_log, values)) for name, values in columns.items()}


def _log(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


def table(results: Mapping[str, Any], problems: Sequence[str]) -> str:
    """One line per teacher and choice: nodes, R2, ratio to the teacher on every problem, verdict."""
    lines = [f"{'':24s} nodes     R2  " + "".join(f"{name:>24s}" for name in problems)]
    for name, result in results.items():
        means = [interval(result["losses"][problem])[0] for problem in problems]
        lines.append(f"{name + ' teacher':24s} {'':13s}" + "".join(f"{number(m):>24s}" for m in means))
        for choice, row in result["choices"].items():
            cells = "".join(f"{_cell(row['ratios'][problem]):>24s}" for problem in problems)
            kept = "kept" if row["kept"] else "missed"
            who = f"{'  ' + choice:24s} {row['nodes']:5d} {row['r2']:7.4f}"
            lines.append(f"{who}{cells}  as good on {row['as_good']}: {kept}")
    return "\n".join(lines)


def _cell(value: Sequence[float]) -> str:
    return f"{number(value[0], '.3f')} ({number(value[1], '.3f')}, {number(value[2], '.3f')})"


def main() -> None:
    parser = parser_of(__doc__, seeds=5, steps=200, jobs=4, data_dir="")
    parser.add_argument("--teacher", action="append", required=True, help="run, file or shipped name")
    parser.add_argument("--front", action="append", required=True, help="its front; one for each teacher")
    parser.add_argument("--choose", help="folder for the choices; a temporary one if not given")
    parser.add_argument("--problem", default="mnist-mlp", help="the problem the teachers were trained on")
    parser.add_argument("--unseen", nargs="*", default=list(UNSEEN))
    parser.add_argument("--trials", type=int, default=0, help="multipliers tried per optimizer and problem")
    parser.add_argument("--whole", action="store_true", help="every rule of the fronts, not only the choices")
    options = parser.parse_args()
    if len(options.teacher) != len(options.front):
        parser.error("expected one --front for each --teacher")
    with tempfile.TemporaryDirectory() as scratch:
        options.choose = options.choose or scratch
        names = [Path(teacher).stem for teacher in options.teacher]
        names = [f"{name}-{k}" if name in names[:k] else name for k, name in enumerate(names)]
        pairs = [paired(*given, options) for given in zip(names, options.teacher, options.front, strict=True)]
        problems, figures = [options.problem, *options.unseen], {}
        for problem in problems:
            started = time.monotonic()
            figures[problem] = measure(pairs, problem, options)
            results = {pair.name: verdict(pair, figures, options.problem) for pair in pairs}
            compared = against_r2(results, list(figures))
            tell(f"{problem}: {time.monotonic() - started:.0f} s")
            if options.json:
                settings = {k: v for k, v in vars(options).items() if k not in ("json", "data_dir", "choose")}
                report = {"settings": settings, "teachers": results, "rollout_over_r2": compared}
                save(options.json, report)
    print(table(results, problems))
    print("rollout choice / r2 choice: " + ", ".join(f"{n} {_cell(v)}" for n, v in compared.items()))


if __name__ == "__main__":
    main()
