"""The report: balanced, self-contained, escaped, and it says what happened."""

import dataclasses
import math
import re

import numpy as np
import pytest

from common.metrics import LOSS_FLOOR, summarise
from interchange.report import demo_page as report
from interchange.rule.rule import Rule
from tests.helpers.pages import Page

EVIL = '<script>alert("1")</script>&\'"'
RULE = Rule.from_text("c0 * m_tilde + lag(sign(g), 3)", {"c0": -0.625})


def card(name, rule=RULE):
    return report.RuleCard(name=name, rule=rule, constants={"c0": (-0.5, -0.625)}, r2=0.96125)


def data(name="adam", **changes):
    steps = np.arange(1, 31.0)
    curves = {n: np.stack([k / steps, (k + 1) / steps]) for k, n in enumerate((name, "rule", "teacher"), 1)}
    same = {
        "problem": name,
        "outcome": "ok",
        "floats_per_parameter": 2,
        "settings": {"lr": 0.125, "schedule": "cosine", "knob": {"beta1": 0.95}},
        "trials": 7,
    }
    rows = [
        {"optimizer": n, "seed": seed, "losses": losses, "ms_per_step": len(n)} | same
        for n, runs in curves.items()
        for seed, losses in enumerate(runs)
    ]
    front = [
        report.FrontRow(rule=Rule.from_text(text), r2_train=0.9, r2_valid=0.8, r2_test=r2)
        for text, r2 in (("-g", 0.71), ("-sign(g) * 0.5", 0.75))
    ]
    chosen = {"rule": RULE, "r2_train": 0.9, "r2_valid": 0.8, "r2_test": 0.94, "chosen": True}
    front.append(report.FrontRow(**chosen, rollout_loss=0.25, tasks=16, behind=0.0125))
    fields = {
        "teacher": {"name": name, "lstm": (7, 8)},
        "training_seconds": 12.34,
        "metrics": [{"epoch": k, "loss": 3.0 - k, "validation": None} for k in (1, 2)],
        "front": front,
        "rules": [card("distilled"), card(f"tuned {name}")],
        "summary": summarise(rows, horizons=(10, 30)),
        "curves": curves,
        "commands": [f"python -m {name} --seed 0"],
        "versions": {name: "1.2.3"},
        "protocol": [name],
        "timings": {name: 4.56},
        "usage": "import rule",
    }
    fields |= {"title": name, "problem": name, "problem_lines": {name: name}, "exports": {name: name}}
    return report.ReportData(**(fields | changes))


@pytest.fixture(scope="module")
def page():
    return report.render(data())


@pytest.mark.parametrize("name", ["adam", EVIL])
def test_page_is_balanced_and_self_contained(name):
    page = report.render(data(name))
    read = Page(page)
    assert not read.open
    for attribute, value in read.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"):
            assert value.startswith("#")
        if attribute != "xmlns":
            assert not re.search(r"https?:|//", value or "")
    assert "script" not in read.tags and "iframe" not in read.tags
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    ids = [value for attribute, value in read.attributes if attribute == "id"]
    assert len(ids) == len(set(ids))


def test_hostile_text_is_escaped_and_shown():
    page = report.render(data(EVIL, usage=EVIL))
    assert "<script" not in page
    # title, eyebrow, problem twice, its line, teacher, export twice, usage, version ...
    assert Page(page).said.count(EVIL) >= 13
    assert report.render(data("a\x00b\ud800")).encode(errors="replace")


def test_what_the_page_says(page):
    text = Page(page).said
    sentence = "The 8-node rule reaches loss 0.131 at step 30 where its teacher reaches 0.185 and tuned adam"
    # Geometric means over seeds of (k + 1/2) * (1/11 + ... + 1/30) / 20.
    assert f"{sentence} reaches 0.0754." in text
    order = [
        text.index(t) for t in ("The rule", "How well", "Simpler", "How it was made", "Use it", "Do it again")
    ]
    assert order == sorted(order)
    wanted = ("0.9613", "−0.625", "meta-tuned", "12.3 s", "4.6 s", "7, 8", "1.2.3", "R² on held-out runs")
    wanted += ("16", "0.0125", "behind")
    wanted += ("python -m adam --seed 0", "ms/step", "floats/parameter", "95 % interval", "0.2500")
    assert [part for part in wanted if part not in text] == []
    known = Rule.from_text("-0.1 * g_tilde")  # every equation of the front has its symbols defined below it
    lone = report.render(data(front=[report.FrontRow(rule=known, r2_train=0.9, r2_valid=0.8, r2_test=0.7)]))
    assert [Page(shown).said.count("g~t=") for shown in (page, lone)] == [0, 1]
    assert page.count("<svg") == 5  # curves, two horizons, front, training
    assert "(7, 8)" not in text
    assert text.count("chosen") == 1 and text.count("tuned") >= 2
    untuned = report.render(data(rules=[card("rule")]))
    assert "distilled" in untuned and ">meta-tuned<" not in untuned
    assert report.render(data()) == page


def cells(page, name):
    line = next(
        line for line in page.splitlines() if re.match(rf'<tr><th scope="row">(<strong>)?{name}<', line)
    )
    return re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line)


def test_best_of_each_column_is_marked_by_more_than_colour(page):
    star = '<strong class="best">{} <abbr title="best of its column">★</abbr></strong>'
    adam, rule = cells(page, "adam"), cells(page, "rule")
    assert adam[1] == star.format("0.07538") and rule[1] == "0.1306"
    assert adam[3] == rule[3] == star.format("4.00") and cells(page, "teacher")[3] == "7.00"
    assert rule[0] == "<strong>rule</strong>" and adam[0] == "adam"
    # Two seeds, 0.1066 and 0.1599: half the difference of their logarithms, times t(1) = 12.706, both ways.
    assert rule[2] == "0.009933 to 1.716"
    head = re.findall(r'<th scope="col">(.*?)</th>', page)
    assert head[7:12] == ["optimizer", "loss", "95 % interval", "ms/step", "floats/parameter"]
    alike = "diverged none, learning rate 0.125, schedule cosine, knob beta1=0.95, trials 7"
    assert f"The same for all: {alike}." in page
    assert cells(page, "8 ?")[1:] == ["0.9000", "0.8000", "0.9400", "0.2500", "16", "0.0125"]
    assert "the chosen rule has 8 nodes and R2 0.940" in page


def test_diverged_rows_are_never_best():
    base = data()
    summary = [
        dataclasses.replace(row, mean=math.inf, low=math.nan, high=math.nan, diverged=1, ms_per_step=0.1)
        if row.optimizer == "adam"
        else row
        for row in base.summary
    ]
    page = report.render(data(summary=summary))
    row = cells(page, "adam")
    assert row[1:4] == ["diverged", "–", "1 of 2"] and "★" not in "".join(row)
    assert "★" in cells(page, "rule")[4]


def test_a_loss_of_zero_is_the_best_of_its_column():
    rows = [
        dataclasses.replace(row, mean=LOSS_FLOOR, low=LOSS_FLOOR, high=LOSS_FLOOR) for row in data().summary
    ]
    assert '<strong class="best">≤ 9.31e−10 ' in report.render(data(summary=rows))


def test_an_empty_report_is_still_a_page(tmp_path):
    nothing = dict.fromkeys(("metrics", "front", "rules", "summary", "commands", "protocol"), ())
    empty: dict = {}
    nothing |= dict.fromkeys(("curves", "exports", "timings", "versions", "teacher"), empty)
    target = tmp_path / "new" / "report.html"
    report.write_report(target, data("a\ud800", **nothing))
    page = target.read_text(encoding="utf-8")
    assert not Page(page).open
    assert re.findall("<h2>(.*?)</h2>", page) == ["How it was made", "Use it", "Do it again"]
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def test_style_serves_dark_narrow_and_print(page):
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert style.count("{") == style.count("}")
    for wanted in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert wanted in style
    assert 'name="viewport"' in page and page.count("<table>") == page.count('role="region"') == 5
