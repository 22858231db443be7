"""Every executable target against the oracle on random rules and on some made by hand."""

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from interchange.language.expression import to_text
from interchange.rule.rule import Rule
from tests.parity import random_rules, rule_gradients, rule_runners
from tests.parity.rule_oracle import Expected, errors, expect

SEED = 0
GRADIENT_STEPS = slice(None, None, 4)  # each step of a tape costs; the rare troubles are at multiples of 4
RNNPROP = Rule.from_text(
    "c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3)",
    {"c0": -0.0098, "c1": 0.61, "c2": -0.0012, "c3": 0.87},
    {
        "m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
        "g_tilde": "g / (sqrt(ema_hat(square(g), 0.95)) + 1e-12)",
    },
    scale=0.1,
)
EVERYTHING = Rule.from_text(
    "c0 * tanh(m_tilde / c1) + c2 * ema(g, c3) * cummax(powabs(g, c1)) - lag(c0, 1) * theta * 0.125",
    {"c0": -0.98, "c1": 0.61, "c2": -0.12, "c3": 0.87},
    {"m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.999)) + 1e-12)"},
    scale=0.1,
)
HAND_MADE = [
    *map(Rule.named, ("adam", "lion", "amsgrad")),
    RNNPROP,
    EVERYTHING,
    *(
        Rule.from_text(text, {"c0": 0.3, "c1": 1.7, "b": 0.9, "b2": 0.99999})
        for text in (
            "cummax(powabs(g, c0) - 2.0) - lag(ema(g, b), 1) * lag(theta, 3) + lag(c0, 2)",
            "sqrt(cumsum(square(g))) * (t / 7.0) - cummax(-abs(g))",
            "c0 * g + 0.3333333333333333 * ema(g, 0.9123456789012345)",
            "ema_hat(g, 0.999) - 2.0 + -theta * greater(g, 0.0)",
            "ema(c0, b2) * ema_hat(g, b2) + ema_hat(abs(g), 0.9999999) + ema(1.0, 0.999)",
            "c0 * lag(g, 3) + lag(c1 * lag(g, 1) * g, 2) - lag(2.0, 1) + lag(lag(g, 1), 1)",
            "ema(ema_hat(c0 * g, b) * lag(ema(g, b2), 2), 0.5) + cumsum(c1 * cummax(g))",
            "max(c0 * g, 0.0) + g * max(c0, 0.3) - theta * min(0.3, c0) + cummax(min(c1 * g, c0))",
            "c0 * lag(t, 2) - cumsum(c0) + ema(3.0, 0.9)",
            "exp(2.0) * max(1.0, 2.0) * g + c0 * c1 + tanh(c0 / 3.0)",
            "c0 / -4.0",
        )
    ),
]  # those of numbers below 0, from the last one on


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

    @property
    def share(self) -> float:
        """What is apart, per cent of all."""
        return 100.0 * self.apart / max(self.elements, 1)

    def add(self, error: float, rule: Rule, elements: int, apart: int) -> None:
        self.rules, self.elements, self.apart = self.rules + 1, self.elements + elements, self.apart + apart
        if not error <= self.worst:
            constants = " ".join(f"{key}={value!r}" for key, value in rule.constants.items())
            self.where = f"{rule.name}: {rule.scale} * ({to_text(rule.expression)}) {constants}"
            self.worst = error


@lru_cache(2048)
def rule_of(index: int) -> Rule:
    return HAND_MADE[index] if index < 0 else random_rules.random_rule(SEED, index)[0]


def _inputs(rule: Rule, dtype: type, add_theta: bool) -> tuple[np.ndarray, np.ndarray]:
    """g and theta; where the result is theta + u, theta is 0 if the rule can do without, so that u is all."""
    g, theta = random_rules.nasty_inputs(dtype)
    return g, theta if not add_theta or "theta" in rule.program().inputs else np.zeros_like(theta)


@lru_cache(8192)
def expected_of(index: int, dtype: type, add_theta: bool) -> Expected:
    rule = rule_of(index)
    return expect(rule, *_inputs(rule, dtype, add_theta), abs(index), add_theta)


@lru_cache(256)
def _case(index: int, features: bool) -> rule_gradients.Case | None:
    g, theta = (a[GRADIENT_STEPS] for a in random_rules.nasty_inputs(np.float64))
    return rule_gradients.case(rule_of(index), g, theta, features, index)


def values(target: str, dtype: type, indices: Iterable[int]) -> Outcome:
    row, outcome = rule_runners.ROWS[target], Outcome(target, np.dtype(dtype).name)
    for index in indices:
        rule = rule_of(index)
        got = row.run(rule, *_inputs(rule, dtype, row.add_theta))
        error, apart = errors(got, expected_of(index, dtype, row.add_theta), row.graph)
        outcome.add(float(error.max()), rule, error.size, int(apart.sum()))
        _tidy(index)
    return outcome


def gradients(target: str, indices: Iterable[int]) -> Outcome:
    """One row of rule_gradients; elements are columns, apart are those at a kink or not finite."""
    row, outcome = rule_gradients.ROWS[target], Outcome(f"d {target}", "float64")
    for index in indices:
        case = _case(index, row.features)
        error = 0.0 if case is None else rule_gradients.errors(row.run(case), case, not row.compiled)
        kept = 0 if case is None else case.kept
        outcome.add(error, rule_of(index), random_rules.COLUMNS, random_rules.COLUMNS - kept)
        _tidy(index)
    return outcome


def _tidy(index: int) -> None:
    """Thousands of compiled graphs would fill the memory."""
    if index % 50 == 49:
        gc.collect()
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
