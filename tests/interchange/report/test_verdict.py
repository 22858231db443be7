"""What a comparison says: that tuning did harm, and what the seeds leave open."""

import math
from types import SimpleNamespace

from common.metrics import SummaryRow, summarise
from interchange.report.verdict import headline, trials_note, verdict

ROLES = {"rule": "rule", "tuned": "tuned rule"}


def table(**levels: list[float]) -> list[SummaryRow]:
    rows = [
        {
            "optimizer": name.replace("_", " "), "problem": "a", "seed": seed, "losses": [9.0, value],
            "outcome": "ok", "ms_per_step": 1.0, "floats_per_parameter": 1.0,
        }
        for name, values in levels.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return summarise(rows, (1, 2), window=1)


def said(**levels: list[float]) -> str:
    return verdict(table(**levels), ROLES, 7)


def test_headline():
    roles = ROLES | {"teacher": "rp"}
    levels = {"rp": [0.1], "rule": [0.2], "adam": [0.15], "sgd": [0.3]}
    sentence = "The 7-node rule reaches loss 0.200 at step 2 where its teacher reaches 0.100 and tuned adam"
    assert headline(table(**levels), roles, 7) == f"{sentence} reaches 0.150."
    diverges = "The 7-node rule, meta-tuned, diverges before step 2 where its"
    assert headline(table(**levels, tuned_rule=[math.inf]), roles, 7).startswith(diverges)
    solved = table(rule=[0.0], rp=[0.0])
    assert "reaches loss ≤ 9.31e−10 at step 2 where its teacher reaches ≤ 9.31e−10" in headline(
        solved, roles, 7
    )
    assert headline(table(rule=[0.2])[:1], roles, 7) == "The 7-node rule reaches loss 9.00 at step 1."
    assert headline(table(rp=[0.1]), roles, 7) == headline([], roles, 7) == ""


def test_it_says_that_tuning_made_a_rule_worse():
    worse = said(rule=[1.0, 1.0, 1.0], tuned_rule=[2.0, 2.1, 1.9], adam=[9.0, 9.0, 9.0])
    assert "Tuning made it worse here, beyond doubt: 2.00 (1.76 to 2.26) times the loss before." in worse
    perhaps = said(rule=[1.0, 2.0, 1.0], tuned_rule=[2.0, 1.0, 2.0], adam=[9.0, 9.0, 9.0])
    assert "Tuning made it worse here: " in perhaps
    better = said(rule=[2.0, 2.0, 2.0], tuned_rule=[1.0, 1.1, 1.0], adam=[9.0, 9.0, 9.0])
    assert "worse" not in better and "do not tell" not in better
    assert "Tuning changed nothing." in said(rule=[1.0, 2.0], tuned_rule=[1.0, 2.0])


def test_it_says_where_the_seeds_do_not_tell():
    text = said(rule=[1.0, 1.0, 1.0], tuned_rule=[0.5, 2.0, 0.9], adam=[1.0, 1.0, 1.0])
    assert "3 seeds do not tell it from adam: 0.965 (0.171 to 5.44) times its loss." in text


def test_more_trials_than_asked_for_are_explained():
    rows = [SimpleNamespace(trials=trials) for trials in (7, 5, 0)]
    assert trials_note(rows, 5).startswith("up to 7 trials instead of 5: ")
    assert trials_note(rows, 7) == trials_note(rows, 0) == trials_note([], 5) == ""
