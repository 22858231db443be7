"""Pareto fronts: a folder of rule files and one table."""

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.run.kinds import FRONT, RULE, kind
from common.run.places import inside
from common.run.storage import JSON_LIMIT, atomic_write, read_file
from interchange.language.checks import RuleError
from interchange.language.expression import to_text
from interchange.rule.rule import Rule, other_kind
from interchange.rule.words import readable, update_r2

BEFORE_STRUCTURE = ("file", "complexity", "loss", "tasks", "behind", "r2", "expression")
FRONT_COLUMNS = (*BEFORE_STRUCTURE[:-1], "r2_update", "expression")


class Front(list[Rule]):
    """A Pareto front, shortest rule first: a list that shows itself as a table."""

    def __str__(self) -> str:
        width = max((len(str(rule.complexity)) for rule in self), default=1)
        return "\n".join(
            f"{rule.complexity:{width}d} nodes  {_r2(rule):>7}  u = {readable(rule)}" for rule in self
        )

    def _repr_html_(self) -> str:
        """The table with equations, in notebooks."""
        rows = "".join(
            f"<tr><td>{rule.complexity}</td><td>{_r2(rule)}</td><td>{rule.mathml()}</td></tr>"
            for rule in self
        )
        return f"<table><thead><tr><th>nodes</th><th>R² valid</th><th>rule</th></tr></thead>{rows}</table>"


def _r2(rule: Rule) -> str:
    """R2 on the validation runs; of a rule with a structure the body's / the update's."""
    scores = rule.provenance.get("r2")
    both = [scores.get("valid") if isinstance(scores, dict) else None, update_r2(rule)]
    return " / ".join(f"{value:.4f}" for value in both if value is not None)


def write_front(folder: str | os.PathLike[str], rules: Sequence[Rule]) -> None:
    """Write a Pareto front: ``rule_000.json``, ... in the given order, and ``front.csv``.

    Rules of a longer front that was there before are removed.

    The columns loss, tasks and behind are ``valid``, ``tasks`` and ``behind`` of ``provenance["loss"]``; r2
    is ``provenance["r2"]["valid"]``, r2_update ``provenance["r2_update"]["valid"]``. Empty where absent.
    """
    for stale in Path(folder).glob("rule_*.json"):
        if re.fullmatch(r"rule_\d{3,6}\.json", stale.name) and int(stale.stem[5:]) >= len(rules):
            stale.unlink()
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(FRONT_COLUMNS)
    for index, rule in enumerate(rules):
        file = f"rule_{index:03d}.json"
        rule.save(Path(folder, file))
        pairs = (("loss", "valid"), ("loss", "tasks"), ("loss", "behind"), ("r2", "valid"))
        scores = [_score(rule.provenance.get(key), part) for key, part in (*pairs, ("r2_update", "valid"))]
        rows.writerow([file, rule.complexity, *scores, to_text(rule.expression)])
    atomic_write(Path(folder, "front.csv"), table.getvalue().encode())


def front_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the front that is meant: itself, ``rules`` in a run folder, or that of ``front.csv``."""
    found = (other_kind(path) or (kind(path) == RULE and RULE)) if Path(path).is_file() else ""
    if found and found != FRONT:
        raise RuleError(f"{path}: expected a front of rules, got {found}; name the folder with front.csv")
    return inside(path, "a front of rules", "front.csv", "rules/front.csv").parent


def read_front(folder: str | os.PathLike[str]) -> Front:
    """The rules of a folder written by ``write_front``, in its order; ``front_folder`` finds it."""
    path = Path(folder, "front.csv") if not Path(folder).exists() else front_folder(folder) / "front.csv"
    text = read_file(path, JSON_LIMIT).decode(errors="replace")
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise RuleError(f"{path}: expected a front's table, got {error}; write the front again") from None
    if not rows or tuple(rows[0]) not in (FRONT_COLUMNS, BEFORE_STRUCTURE):
        raise RuleError(f"{path}: expected the columns {', '.join(FRONT_COLUMNS)}; is it a front's table?")
    rules = Front()
    for line, row in enumerate(rows[1:], 2):
        if not row or not re.fullmatch(r"rule_\d{3,6}\.json", row[0]):
            raise RuleError(f"{path} line {line}: expected a file name such as rule_000.json in column file")
        rules.append(Rule.load(path.with_name(row[0])))
    return rules


def _score(value: Any, part: str) -> Any:
    if not isinstance(value, dict):  # one number, of a hall of fame
        return value if value is not None and part == "valid" else ""
    value = value.get(part)
    return "" if value is None else value
