"""``results/suite_NAME.csv`` from an evaluation of a suite, and the tables of RESULTS.md from that file.

    python tests/benchmarks/suite_results.py FOLDER     # the CSV file, then the tables
    python tests/benchmarks/suite_results.py            # the tables again, from the files that are there

FOLDER is what ``evaluate --problem suite:NAME`` wrote with the code that is checked out, and committed. The
file's head says which command, commit and versions; lines that begin with # are no rows.
"""

import argparse
import collections
import csv
import dataclasses
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import L2OError
from common.metrics import loss_number, number, summarise
from common.run.config import from_dict
from common.run.storage import atomic_write
from interchange.commands.stages import command_line
from interchange.evaluation.cells import code_of
from interchange.evaluation.config import EvaluateConfig
from interchange.evaluation.profiles import CLOSE, compare, coordinatewise, is_baseline, mean_ratio
from interchange.files.results import Evaluation, load_evaluation, summary_csv

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ALIKE = ("coordinatewise_baseline", "coordinatewise_ratio", "coordinatewise_low", "coordinatewise_high")
SUITE = re.compile(r"suite:(\w+)")


def made_by(evaluation: Evaluation, root: Path = ROOT) -> list[str]:
    """The lines of the head: command, commit, versions, and what was not there to compare with.

    Raises:
        L2OError: other code is checked out than computed it, or code that is not committed.
    """
    told, names = evaluation.config, {field.name for field in dataclasses.fields(EvaluateConfig)}
    config = from_dict(EvaluateConfig, {key: value for key, value in told.items() if key in names})
    packages = ("common", "interchange", f"{told['backend']}_impl")
    if code_of(*(root / name for name in packages)) != told["code"]:
        raise L2OError("the evaluation was made by other code than is here; check out what made it")
    if _git(root, "status", "--porcelain", "--", *packages):
        raise L2OError(
            f"expected {', '.join(packages)} as they are committed; commit what made the evaluation"
        )
    if absolute := [text for text in config.optimizers if os.path.isabs(text.partition(":")[2])]:
        raise L2OError(f"expected optimizers by names or paths that others have too, got {absolute[0]}")
    plain = EvaluateConfig()
    shown = {"out": "", "data_dir": "data" if config.data_dir else "", "quiet": False, "overwrite": False}
    shown |= {"jobs": plain.jobs, "cluster": plain.cluster, "report": True}
    if config.knob and config.schedules == ("all",):
        shown |= {"knob": False, "schedules": plain.schedules, "fair": True}
    command = command_line(f"{told['backend']}_impl.evaluate", dataclasses.replace(config, **shown))
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    lines = [f"command: {command}", f"commit: {_git(root, 'rev-parse', 'HEAD')}", f"versions: {versions}"]
    return lines + [f"not compared: {name} ({reason})" for name, reason in told["absent"].items()]


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def results_csv(evaluation: Evaluation, head: Iterable[str]) -> str:
    """The head, then the summary with the comparison to coordinate-wise baselines beside it."""
    compared = compare(summarise(evaluation.rows), evaluation.rows)
    alike = {(c.row.optimizer, c.row.problem, c.row.horizon): c for c in coordinatewise(compared)}
    rows = list(csv.reader(io.StringIO(summary_csv(compared))))
    rows[0] += ALIKE
    for row, one in zip(rows[1:], compared, strict=True):
        own = alike.get((one.row.optimizer, one.row.problem, one.row.horizon))
        values = (own.ratio.value, own.ratio.low, own.ratio.high) if own else ()
        row += [own.best, *("" if math.isnan(v) else repr(v) for v in values)] if own else [""] * len(ALIKE)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return "".join(f"# {line}\n" for line in head) + text.getvalue()


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Head and rows of a file that ``results_csv`` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    head = [line[2:].strip() for line in lines if line.startswith("# ")]
    return head, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def tables(name: str, head: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: the learned optimizers problem by problem and their standing; what was chosen for each."""
    learned = list(dict.fromkeys(row["optimizer"] for row in rows if not is_baseline(row["optimizer"])))
    text = [f"Command, commit and versions: head of [suite_{name}.csv](results/suite_{name}.csv)."]
    if missing := [line.partition(": ")[2] for line in head if line.startswith("not compared")]:
        text[0] += f" Not compared: {'; '.join(missing)}."
    for optimizer in learned:
        own = [row for row in rows if row["optimizer"] == optimizer]
        text.append(_table(("problem, steps", f"`{optimizer}`", *_HEAD), map(_place, own)))
        unseen = [row for row in own if row["trained_on"] != "True"]
        for which, prefix in (("best baseline", ""), ("best coordinate-wise baseline", "coordinatewise_")):
            text.append(f"{optimizer}, {_standing(unseen, prefix, which)}.")
    names = dict.fromkeys(row["optimizer"] for row in rows)
    groups = {name: [row for row in rows if row["optimizer"] == name] for name in names}
    means = {name: _mean(own) for name, own in groups.items()}
    order = sorted(groups, key=lambda name: (math.isnan(means[name]), means[name], name))
    head_ = ("optimizer", "loss ratio to the best baseline", "diverged runs", "schedules", "knobs", "trials")
    text.append(_table(head_, (_choices(name, groups[name]) for name in order)))
    return "\n\n".join(text)


_HEAD = ("best coordinate-wise baseline", "ratio", "best baseline", "ratio")


def _place(row: Mapping[str, str]) -> list[str]:
    seen = " (trained on)" if row["trained_on"] == "True" else ""
    place = f"`{row['problem']}`{seen}, {int(row['horizon']):,}"
    ratios = [_ratio(row, prefix) for prefix in ("coordinatewise_", "")]
    bests = [row["coordinatewise_baseline"], row["best_baseline"]]
    return [place, loss_number(float(row["loss_mean"]), ".3g"), bests[0], ratios[0], bests[1], ratios[1]]


def _ratio(row: Mapping[str, str], prefix: str) -> str:
    value, low, high = (_float(row[key]) for key in _keys(prefix))
    value, low, high = (number(x, ".1e" if 0.0 < x < 1e-3 else ".3f") for x in (value, low, high))
    return f"{value} ({low} to {high})"


def _keys(prefix: str) -> tuple[str, str, str]:
    return tuple(f"{prefix}{end}" for end in (("ratio", "low", "high") if prefix else _PLAIN))


_PLAIN = ("ratio", "ratio_low", "ratio_high")


def _float(text: str) -> float:
    return float(text) if text else math.nan


def _standing(rows: Sequence[Mapping[str, str]], prefix: str, which: str) -> str:
    values = [[_float(row[key]) for key in _keys(prefix)] for row in rows]
    counts = sum(v <= 1.0 for v, _, _ in values), sum(v <= CLOSE for v, _, _ in values)
    surely = sum(high < 1.0 for _, _, high in values)
    return (
        f"on the {len(rows)} entries it was not trained on: at least as good as the {which} on {counts[0]}, "
        f"within 5 % on {counts[1]}, surely better on {surely}"
    )


def _mean(rows: Sequence[Mapping[str, str]]) -> float:
    """Geometric mean of the ratios to the best baseline, ``mean_ratio``; nan where one has none."""
    values = [_float(row["ratio"]) for row in rows]
    return math.nan if any(map(math.isnan, values)) else mean_ratio(values)


def _choices(name: str, rows: Sequence[Mapping[str, str]]) -> list[str]:
    trials = sorted(int(row["trials"]) for row in rows)
    return [
        f"`{name}`",
        number(_mean(rows), ".3f"),
        str(sum(int(row["diverged"]) for row in rows)),
        *(_counted(row[key] for row in rows) for key in ("schedule", "knob")),
        f"{trials[0]} to {trials[-1]}",
    ]


def _counted(values: Iterable[str]) -> str:
    counts = collections.Counter(value for value in values if value)
    return ", ".join(f"{value} {count}" for value, count in counts.most_common()) or "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def written(page: str, name: str, text: str) -> str:
    """RESULTS.md with the tables of one suite between its marks."""
    begin, end = f"<!-- suite_{name}: made by suite_results.py -->", f"<!-- end of suite_{name} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        raise L2OError(f"RESULTS.md: expected the lines {begin!r} and {end!r} once each, in this order")
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


def main(argv: Sequence[str] | None = None, here: Path = HERE, root: Path = ROOT) -> int:
    """The program; exit code 2 and one line where something is not as expected."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="an evaluation's; none: only the tables")
    folder, results, page = parser.parse_args(argv).folder, here / "results", here / "RESULTS.md"
    try:
        if folder:
            evaluation = load_evaluation(folder / "evaluation.h5")
            suite = SUITE.fullmatch(evaluation.config.get("problem", ""))
            if not suite or "code" not in evaluation.config:
                raise L2OError(f"{folder}: expected an evaluation of --problem suite:NAME by this version")
            results.mkdir(exist_ok=True)
            text = results_csv(evaluation, made_by(evaluation, root))
            atomic_write(results / f"suite_{suite[1]}.csv", text)
        for path in sorted(results.glob("suite_*.csv")):
            name = path.stem.removeprefix("suite_")
            atomic_write(page, written(page.read_text(encoding="utf-8"), name, tables(name, *read(path))))
            print(path)
    except L2OError as error:
        print(f"suite_results.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
