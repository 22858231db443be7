"""Every executable target against the oracle on random rules; as a program it prints the table.

python -m tests.parity.rule_conformance --rules 2000
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from interchange.language.expression import to_text
from interchange.rule.rule import Rule
from tests.parity import random_rules, rule_gradients, rule_runners
from tests.parity.rule_oracle import Expected, K, errors, expect

SEED = 0
GRADIENT_STEPS = slice(None, None, 4)  # each step of a tape costs; the rare troubles are at multiples of 4


@dataclass
class Outcome:
    """Errors of one target in one dtype.

    Attributes:
        rules, elements: compared.
        worst: largest error in units, and of which rule.
        apart: elements counted apart.
    """

    target: str
    dtype: str
    rules: int = 0
    elements: int = 0
    worst: float = 0.0
    where: str = ""
    apart: int = 0
    seconds: float = 0.0

    @property
    def share(self) -> float:
        """What is apart, per cent of all."""
        return 100.0 * self.apart / max(self.elements, 1)

    def add(self, error: float, rule: Rule, elements: int, apart: int) -> None:
        """Count one rule."""
        self.rules, self.elements, self.apart = self.rules + 1, self.elements + elements, self.apart + apart
        if not error <= self.worst:
            constants = " ".join(f"{key}={value!r}" for key, value in rule.constants.items())
            self.worst, self.where = (
                error,
                f"{rule.name}: {rule.scale} * ({to_text(rule.expression)}) {constants}",
            )

    def __str__(self) -> str:
        return (
            f"{self.target:20} {self.dtype:8} {self.rules:6} {self.elements:9} {self.worst:8.2f} "
            f"{self.share:7.2f} {self.seconds / max(self.rules, 1):9.3f}"
            + f"  {self.where}"
            * (self.worst > K)
        )


HEAD = f"{'target':20} {'dtype':8} {'rules':>6} {'elements':>9} {'worst':>8} {'apart %':>7} {'s / rule':>9}"


@lru_cache(2048)
def _rule(index: int) -> Rule:
    return random_rules.random_rule(SEED, index)[0]


def _inputs(rule: Rule, dtype: type, add_theta: bool) -> tuple[np.ndarray, np.ndarray]:
    """g and theta; where the result is theta + u, theta is 0 if the rule can do without, so that u is all."""
    g, theta = random_rules.nasty_inputs(dtype)
    return g, theta if not add_theta or "theta" in rule.program().inputs else np.zeros_like(theta)


@lru_cache(8192)
def _expected(index: int, dtype: type, add_theta: bool) -> Expected:
    return expect(_rule(index), *_inputs(_rule(index), dtype, add_theta), index, add_theta)


@lru_cache(256)
def _case(index: int, features: bool) -> rule_gradients.Case | None:
    g, theta = (a[GRADIENT_STEPS] for a in random_rules.nasty_inputs(np.float64))
    return rule_gradients.case(_rule(index), g, theta, features, index)


def values(target: str, dtype: type, indices: Iterable[int]) -> Outcome:
    """One row of rule_runners on the rules of these numbers."""
    row, outcome = rule_runners.ROWS[target], Outcome(target, np.dtype(dtype).name)
    for index in indices:
        inputs, expected = _inputs(_rule(index), dtype, row.add_theta), _expected(index, dtype, row.add_theta)
        start = time.perf_counter()
        error, apart = errors(row.run(_rule(index), *inputs), expected, row.graph)
        outcome.seconds += time.perf_counter() - start
        outcome.add(float(error.max()), _rule(index), error.size, int(apart.sum()))
        _tidy(index)
    return outcome


def gradients(target: str, indices: Iterable[int]) -> Outcome:
    """One row of rule_gradients; elements are columns, apart are those at a kink or not finite."""
    row, outcome = rule_gradients.ROWS[target], Outcome(f"d {target}", "float64")
    for index in indices:
        case, start = _case(index, row.features), time.perf_counter()
        error = 0.0 if case is None else rule_gradients.errors(row.run(case), case, not row.compiled)
        outcome.seconds += time.perf_counter() - start
        kept = 0 if case is None else case.kept
        outcome.add(error, _rule(index), random_rules.COLUMNS, random_rules.COLUMNS - kept)
        _tidy(index)
    return outcome


def _tidy(index: int) -> None:
    """Thousands of compiled graphs would fill the memory."""
    if index % 50 == 49:
        gc.collect()
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Random rules: every target against the oracle.")
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--targets", nargs="*", default=[*rule_runners.ROWS], help="rows of rule_runners")
    parser.add_argument(
        "--gradients", nargs="*", default=[*rule_gradients.ROWS], help="rows of rule_gradients"
    )
    config = parser.parse_args(argv)
    drafts = sum(1 + random_rules.random_rule(SEED, index)[1] for index in range(config.rules))
    print(f"{config.rules} of {drafts} drafts kept; units of 2 ulp per node, k = {K:g}\n{HEAD}", flush=True)
    for target in config.targets:
        row = rule_runners.ROWS[target]
        for dtype in row.dtypes:
            print(values(target, dtype, range(0, config.rules, row.every)), flush=True)
    for target in config.gradients:
        row = rule_gradients.ROWS[target]
        print(gradients(target, range(0, config.rules, row.every)), flush=True)


if __name__ == "__main__":
    main()
