"""Rules of a table judged by rows they were not fitted on: cross-validation (Stone 1974).

Rows of a table may come from any place; a few large ones can make most of a validation block's variance, so
that one block tells little. Every row is left out once.
"""

import dataclasses

import numpy as np

from common.metrics import r2
from interchange.refit import predict, refit
from interchange.rule import Rule
from interchange.samples import Sequences

FOLDS = 5
_ITERATIONS = 5  # of a refit, which starts from the constants fitted on all rows


def left_out(rule: Rule, data: Sequences) -> np.ndarray:
    """[rows]: what the rule gives for each row of ``data`` [1, rows] with constants fitted without it.

    Every fifth row is one fold.
    """
    fold = np.arange(data.target.shape[1]) % FOLDS
    found = np.empty(len(fold))
    for number in range(FOLDS):
        inside = fold == number
        fitted = refit(rule, data.part(np.flatnonzero(~inside)), iterations=_ITERATIONS)
        found[inside] = predict(fitted, data.part(np.flatnonzero(inside))).reshape(-1)
    return found


def cross_validated(rule: Rule, data: Sequences) -> Rule:
    """The rule with the R2 of left-out rows as its ``valid`` one."""
    value = r2(data.target.reshape(-1), left_out(rule, data))
    scores = rule.provenance["r2"] | {"valid": value}
    return dataclasses.replace(rule, provenance=rule.provenance | {"r2": scores})
