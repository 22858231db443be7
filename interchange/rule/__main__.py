"""``python -m interchange.rule``: show or explain a rule, compare two, check one before trusting it."""

import dataclasses
import os
import sys
from collections.abc import Sequence

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import check, option
from common.run.shell import called
from interchange.language.expression import names, to_text
from interchange.language.simplify import simplified
from interchange.rule.compare import compare
from interchange.rule.diagnose import descent, domain_scan
from interchange.rule.gallery import NAMED
from interchange.rule.nearest import nearest
from interchange.rule.rule import Rule, zero_update
from interchange.rule.safety import repaired, singular
from interchange.rule.words import counted, floats, size

_PROG = "python -m interchange.rule"
ACTIONS = ("show", "explain", "diff", "check")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """What to do with which rules."""

    action: str = option("", "what to do", choices=lambda: ACTIONS, empty=True)
    rules: tuple[str, ...] = option((), "rule files, or names of the gallery; show alone lists the gallery")
    rehash: bool = option(False, "check: write the file's hash anew, after a change by hand")

    def __post_init__(self) -> None:
        check(self)
        if self.rehash and self.action != "check":
            raise L2OError("--rehash: expected with check only; leave it out")
        if self.action == "diff" and len(self.rules) != 2:
            raise L2OError(f"diff: expected two rules, got {len(self.rules)}; name the files to compare")
        if self.action in ("check", "explain") and not self.rules:
            raise L2OError(f"RULE is missing; see {called(_PROG)} --help")


def show(rule: Rule) -> str:
    """Everything a reader wants of a rule: equation, constants, features, size, source."""
    lines = [f"{rule.name}:  u = {rule.scale:g} * ({to_text(rule.expression)})"]
    decays = rule.decay_constants
    for name, value in rule.constants.items():
        lines.append(f"  {name} = {value!r}{'  (decay)' * (name in decays)}")
    for name, tree in rule.features.items():
        lines.append(f"  {name} = {'not defined over g' if tree is None else to_text(tree)}")
    shorter = simplified(rule)
    if shorter is not rule:
        lines.append(f"  simplified, {shorter.complexity} nodes:  {to_text(shorter.expression)}")
    lines.append(f"  {size(rule)}")
    lines.append(f"  {rule.latex()}")
    for key in ("source", "note", "engine", "r2", "r2_update", "loss"):
        if key in rule.provenance:
            lines.append(f"  {key}: {_short(rule.provenance[key])}")
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def findings(rule: Rule) -> list[str]:
    """What ``check`` has to say, one line each: zeros, zero gradient, domain, jumps, descent."""
    if rule.undefined:
        return []
    lines = []
    if where := singular(rule):
        remedy = "keep its terms bounded" if repaired(rule) is None else "add eps to what it divides by"
        lines.append(f"NOT SAFE: {where}; {remedy}")
    if moves := zero_update(rule):
        lines.append(f"moves weights at zero gradient: by up to {moves:.3g} x lr; center=True subtracts it")
    domain = domain_scan(rule)
    lines += [str(fault) for fault in domain.faults] or ["finite for every gradient of float32 and float64"]
    if domain.jumps:
        shown = ", ".join(f"{g:g}" for g in domain.jumps[:6]) + ", ..." * (len(domain.jumps) > 6)
        lines.append(f"jumps at g = {shown}")
    cosines = descent(rule)
    verdict = "descends" if min(cosines.values()) > 0.0 else "DOES NOT DESCEND"
    values = ", ".join(f"{cosine:.3f}" for cosine in cosines.values())
    lines.append(f"{verdict}: E cos(u, -g) = {values} at correlation {', '.join(map(str, cosines))}")
    return lines


def explain(rule: Rule) -> str:
    """The equation with its definitions, and the hand-made optimizers it is nearest to."""
    matches = nearest(rule)
    lines = [str(rule), ""]
    width = max(len(match.name) for match in matches)
    for match in matches:
        values = {name: f"{value:.6g}" for name, value in match.rule.constants.items()}
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        lines.append(f"  {match.name:<{width}}  R2 {match.r2:8.4f}  {shown}")
    best = matches[0]
    share = (
        f"explains {100.0 * best.r2:.1f} % of its updates"
        if best.r2 > 0.0
        else "explains none of its updates"
    )
    if "theta" in names(rule.expression):
        lines.append("  all at theta = 0: weight decay does not count")
    return "\n".join([*lines, f"  nearest: {best.name}, which {share}"])


def _gallery() -> str:
    lines = []
    for name, row in NAMED.items():
        rule = Rule.named(name)
        nodes = counted(rule.complexity, "node")
        lines.append(f"{name:<13} {nodes:>8}  {floats(rule):<24}  {row.source}")
    return "\n".join(lines)


def _body(config: RuleConfig) -> int:
    if config.action == "show":
        print("\n\n".join(show(Rule.load(path)) for path in config.rules) or _gallery())
        return 0
    if config.action == "explain":
        print("\n\n".join(explain(Rule.load(path)) for path in config.rules))
        return 0
    if config.action == "diff":
        text, same = compare(*map(Rule.load, config.rules))
        print(text)
        return 0 if same else 1
    unsafe = False
    for path in config.rules:
        rule = Rule.load(path, verify=not config.rehash)
        unsafe = unsafe or bool(singular(rule))
        if config.rehash:
            rule.save(path)
        print(f"{path}: {size(rule)}" + ", hash verified" * os.path.exists(path))
        for line in findings(rule):
            print(f"  {line}")
    return 1 if unsafe else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code: 1 where diff finds a difference, or check an unsafe rule."""
    return run_command(
        RuleConfig,
        _body,
        argv,
        prog=_PROG,
        description="Show a rule; explain it: definitions and the nearest hand-made optimizers; compare two "
        "(exit code 1 if they differ); or check one: its hash, where it is not finite (exit code 1 for "
        "gradients of 0 or of usual size) or jumps, what it does at zero gradient, whether it descends.",
        positional=("action", "rules"),
        required=("action",),
    )


if __name__ == "__main__":
    sys.exit(main())
