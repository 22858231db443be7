"""The report: balanced, self-contained, escaped, and it says what happened."""

import dataclasses
import math
import re

import numpy as np
import pytest

from common.metrics import summarise
from interchange.report import demo_page as report
from tests.helpers.pages import Page

EVIL = '<script>alert("1")</script>&\'"'
MATH = '<math xmlns="http://www.w3.org/1998/Math/MathML"><msub><mi>u</mi><mi>t</mi></msub></math>'


def card(name, math_=MATH, text="c0 * m_tilde"):
    numbers = {"constants": {"c0": (-0.5, -0.625)}, "r2": 0.96125, "complexity": 24, "state_floats": 3.0}
    return report.RuleCard(name=name, mathml=math_, latex=r"c_0 \tilde m", text=text, **numbers)


def data(name="adam", mathml=MATH, text="c0 * m_tilde", **changes):
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
        report.FrontRow(
            complexity=c, r2_train=0.9, r2_valid=0.8, r2_test=0.7 + c / 100, mathml=mathml, text=text
        )
        for c in (1, 5, 24)
    ]
    front[2] = dataclasses.replace(front[2], chosen=True, rollout_loss=0.25)
    fields = {
        "teacher": {"name": name, "lstm": (7, 8)},
        "training_seconds": 12.34,
        "metrics": [{"epoch": k, "loss": 3.0 - k, "validation": None} for k in (1, 2)],
        "front": front,
        "rules": [dataclasses.replace(card("rule", mathml, text), complexity=23), card(name, mathml, text)],
        "features": {name: mathml},
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
    page = report.render(data(name, text=name))
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
    page = report.render(data(EVIL, text=EVIL, usage=EVIL))
    assert "<script" not in page
    # title, eyebrow, problem twice, its line, teacher, feature, export twice, usage, version ...
    assert Page(page).said.count(EVIL) >= 15
    assert report.render(data("a\x00b\ud800")).encode(errors="replace")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "<math>",
        "<mi>x</mi>",
        "<math><script>x</script></math>",
        "<math><mi onclick='x'>x</mi></math>",
        "<math href='https://example.org'><mi>x</mi></math>",
        "<math><annotation-xml encoding='text/html'><mi>x</mi></annotation-xml></math>",
        "<math xmlns:h='http://www.w3.org/1999/xhtml'><h:mi>x</h:mi></math>",
        "<!DOCTYPE math><math><mi>x</mi></math>",
        "<!DOCTYPE m [<!ENTITY a 'b'>]><math><mi>&a;</mi></math>",
        "<math><mi>&nosuchentity;</mi></math>",
        "<math style='position: fixed'><mi>x</mi></math>",
    ],
)
def test_bad_mathml_falls_back_to_text(source):
    assert report.safe_mathml(source, "a < b") == '<code class="formula">a &lt; b</code>'
    assert "<math" not in report.render(data(mathml=source))


def test_good_mathml_passes():
    shown = report.safe_mathml(
        '<math display="block"><mo>&InvisibleTimes;</mo><mspace/><mi>&lt;</mi></math>', ""
    )
    assert shown == '<math display="block"><mo>\u2062</mo><mspace></mspace><mi>&lt;</mi></math>'
    assert report.safe_mathml(MATH, "") == "<math><msub><mi>u</mi><mi>t</mi></msub></math>"


def test_what_the_page_says(page):
    text = Page(page).said
    sentence = "The 24-node rule reaches loss 0.131 at step 30 where its teacher reaches 0.185 and tuned adam"
    # Geometric means over seeds of (k + 1/2) * (1/11 + ... + 1/30) / 20.
    assert f"{sentence} reaches 0.0754." in text
    order = [
        text.index(t) for t in ("The rule", "How well", "Simpler", "How it was made", "Use it", "Do it again")
    ]
    assert order == sorted(order)
    wanted = ("0.9613", "−0.625", "meta-tuned", "12.3 s", "4.6 s", "7, 8", "1.2.3", "R² on held-out runs")
    wanted += ("python -m adam --seed 0", "ms/step", "floats/parameter", "95 % interval", "0.2500")
    assert [part for part in wanted if part not in text] == []
    assert page.count("<svg") == 5  # curves, two horizons, front, training
    assert page.count("<math") == 1 + 1 + 3
    assert "(7, 8)" not in text and "<dd>24</dd>" in page
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
    assert adam[8] == rule[8] == star.format("4.00") and cells(page, "teacher")[8] == "7.00"
    assert rule[0] == "<strong>rule</strong>" and adam[0] == "adam"
    # Two seeds, 0.1066 and 0.1599: half the difference of their logarithms, times t(1) = 12.706, both ways.
    assert rule[2:8] == ["0.009933 to 1.716", "none", "0.125", "cosine", "beta1=0.95", "7"]
    head = re.findall(r'<th scope="col">(.*?)</th>', page)
    columns = [
        "optimizer",
        "loss",
        "95 % interval",
        "diverged",
        "learning rate",
        "schedule",
        "knob",
        "trials",
    ]
    assert head[3:13] == [*columns, "ms/step", "floats/parameter"]
    assert cells(page, "24 ?")[1:5] == ["0.9000", "0.8000", "0.9400", "0.2500"]
    assert "the chosen rule has 24 nodes and R2 0.940" in page


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
    assert "★" in cells(page, "rule")[8]


def test_an_empty_report_is_still_a_page(tmp_path):
    nothing = dict.fromkeys(("metrics", "front", "rules", "summary", "commands", "protocol"), ())
    empty: dict = {}
    nothing |= dict.fromkeys(("features", "curves", "exports", "timings", "versions", "teacher"), empty)
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
    assert 'name="viewport"' in page and page.count("<table>") == page.count('role="region"') == 4
