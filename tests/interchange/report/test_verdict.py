"""What a comparison says: that tuning did harm, and what the seeds leave open."""

from types import SimpleNamespace

from common.metrics import summarise
from interchange.report.verdict import trials_note, verdict

ROLES = {"rule": "rule", "tuned": "tuned rule"}


def said(**levels: list[float]) -> str:
    rows = [
        {
            "optimizer": name.replace("_", " "), "problem": "a", "seed": seed, "losses": [9.0, value],
            "outcome": "ok", "ms_per_step": 1.0, "floats_per_parameter": 1.0,
        }
        for name, values in levels.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return verdict(summarise(rows, (2,), window=1), ROLES, 7)


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
