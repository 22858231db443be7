"""The page of an evaluation."""

import math
import re

import numpy as np
import pytest

from common.metrics import summarise
from interchange.evaluation.profiles import compare
from interchange.files.results import EvaluationRow
from tests.helpers.pages import Page

pytest.importorskip("matplotlib")

from interchange.report import comparison

RULE, EVIL = "rule:runs/a/best.json", "rule:<script>alert(1)<b>.json"
EMPTY: dict[str, str] = {}
LEVELS = {
    RULE: {"one": 0.5, "two": 1.5, "three": math.inf},
    "adam": {"one": 1.0, "two": 1.0, "three": 1.0},
    "sgd:lr=0.1": {"one": 1.02, "two": math.inf, "three": 1.2},
}


def page(levels=LEVELS, trained_on=("one",), absent=EMPTY) -> str:
    runs = []
    for optimizer, problem, level in ((o, p, level) for o in levels for p, level in levels[o].items()):
        lost = math.isinf(level)
        losses = np.linspace(5.0, 1.0 if lost else level, 60)[: 9 if lost else 60]
        settings = {"horizon": 60, "outcome": "diverged" if lost else "ok", "ms_per_step": 0.1}
        settings |= {"floats_per_parameter": 2.0, "trained_on": problem in trained_on}
        settings["settings"] = {"lr": 0.5, "schedule": "cosine", "knob": {"beta1": 0.95}}
        for seed in range(3):
            runs.append(EvaluationRow(optimizer, problem, seed, losses * (1.0 + 0.01 * seed), **settings))
    return comparison.render_comparison(compare(summarise(runs), runs), runs, "suite:<core>", absent)


def cells(text: str, row: str) -> list[str]:
    text = text[text.index("Problem by problem") : text.index("Where they lose")]
    (line,) = (line for line in text.splitlines() if line.startswith(f'<tr><th scope="row">{row}'))
    return re.findall(r"<td>(.*?)</td>", line)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere():
    text = page()
    read = Page(text)
    assert not read.open and read.tags.count("svg") == 2 and "script" not in read.tags
    assert not re.search("https?:", re.sub('xmlns="[^"]*"', "", text))
    assert "Optimizers on suite:<core>" in read.said
    assert "rule best is at least as good as the best baseline on 0 of 2 problems it never saw" in read.said
    assert page() == text


def test_the_headline_names_the_problem_where_only_one_was_not_seen():
    found = {
        name: {p: level for p, level in levels.items() if p != "three"} for name, levels in LEVELS.items()
    }
    said = Page(page(found)).said
    where = "of adam, the best baseline, on two, the only problem here that it never saw"
    assert where in said and "the best baseline, on two" in Page(page(found, trained_on=("one",))).said
    alone = Page(page({name: {"two": levels["two"]} for name, levels in found.items()})).said
    assert "the best baseline, on two" in alone and "never saw" not in alone


def test_every_problem_and_optimizer_has_its_cell_coloured_by_the_ratio():
    """The rule first: half the best baseline's loss, then half more than it, then it diverges."""
    one, two, three = (cells(page(), f"{name}, 60") for name in ("one", "two", "three"))
    assert [re.search('class="(.*?)"', c)[1] for c in one] == ["ahead", "near", "near"]
    assert [re.search('class="(.*?)"', c)[1] for c in two] == ["far", "near", "far"]
    assert "best" in one[1] and re.search(r"× 0\.\d{3}", one[0]) and "3 of 3 diverged" in three[0]


def test_a_loss_of_zero_is_the_best_and_shown_as_a_bound():
    losses = {RULE: np.r_[5.0, np.zeros(59)], "adam": np.linspace(5.0, 1.0, 60), "sgd": np.linspace(5, 2, 60)}
    runs = [
        EvaluationRow(name, "one", seed, run, horizon=60) for name, run in losses.items() for seed in (0, 1)
    ]
    text = comparison.render_comparison(compare(summarise(runs), runs), runs, "one", EMPTY)
    assert '<span class="ahead">≤ 9.31e−10</span>' in text and "Where they lose" not in text
    assert "diverged" not in Page(text).said.replace(comparison._NOTE, "")


def test_where_the_learned_ones_lose_is_listed_worst_first():
    text = page()
    lost = text[text.index("Where they lose") : text.index("Loss curves")]
    assert re.findall(r"<td>(\w+), 60</td>", lost) == ["three", "two"]
    winner = {RULE: dict.fromkeys(("one", "two"), 0.5), "adam": dict.fromkeys(("one", "two"), 1.0)}
    assert "Where they lose" not in page(winner)


@pytest.mark.parametrize("names", [("adam", "sgd:lr=0.1"), (RULE,), (EVIL, "adam")])
def test_baselines_rules_and_hostile_names_have_a_page(names):
    read = Page(page({name: LEVELS.get(name, LEVELS[RULE]) for name in names}))
    assert not read.open and "Problem by problem" in read.said
    assert "script" not in read.tags and ("alert(1)" in read.said) == (EVIL in names)


def test_what_was_chosen_is_listed_and_what_could_not_run_is_named():
    text = page(absent={"soap": "needs <a> package"})
    full = text[text.index("In full") :]
    assert "The same for all: schedule cosine, knob beta1=0.95, trials 0." in full
    assert "cosine</td>" not in full
    assert "<td>needs &lt;a&gt; package</td>" in text and "Not compared" not in page()


def test_labels_are_short_where_that_is_clear():
    names = [RULE, "rule:b/best.json", "rule:b/other.json,schedule=cosine", "teacher:runs/rp", "adam:lr=1"]
    assert list(comparison.labels(names).values()) == [
        RULE, "rule:b/best.json", "rule other,schedule=cosine", "teacher rp", "adam:lr=1",
    ]  # fmt: skip
