"""Equations in a page: broken into pieces that say the same, and every symbol defined."""

import re

import pytest

from interchange.emit.breaking import pieces, width
from interchange.emit.notation import Box, equation
from interchange.emit.targets.to_mathml import mathml
from interchange.report.equation import NARROW, WIDE, equation_block
from interchange.rule.gallery import NAMED
from interchange.rule.rule import Rule
from tests.helpers.pages import Page


def layout_of(name: str) -> Box:
    rule = Rule.named(name)
    return equation(rule.expression, rule.constants, rule.scale)


def letters(*boxes: Box) -> str:
    """What is written, without signs of layout, numbers of roots and fractions among them."""
    text = "".join(re.sub("<[^>]+>", "", mathml(box)) for box in boxes)
    return re.sub(r"[()/^\u2062\u00b7]|1/2", "", text)


@pytest.mark.parametrize("name", NAMED)
def test_pieces_fit_and_say_what_the_equation_says(name):
    whole = layout_of(name)
    parts = pieces(whole, NARROW)
    assert max(map(width, parts)) <= 1.5 * NARROW
    assert letters(*parts) == letters(whole)
    assert pieces(whole, 1e9) == [whole]


def test_sums_break_before_signs_and_functions_keep_their_bracket():
    found = pieces(layout_of("rnnprop_tuned"), NARROW)
    said = [re.sub("<[^>]+>|\u2062", "", mathml(part)) for part in found]
    assert said[0].startswith("ut=") and all(part[0] in "\u2212(/" for part in said[1:])
    assert not any(part.endswith("ema0.8861") for part in said)


def test_every_symbol_is_defined():
    text = "c0 * ema(m_tilde, 0.9) + 0.1 * lag(sign(g_tilde), 3) - 0.01 * theta"
    said = Page(equation_block(Rule.from_text(text, {"c0": -0.5}))).said
    for symbol in ("ut", "t", "gt", "θt", "m~t", "g~t", "emabxt", "ema^bxt", "xt\u22121", "sgnxt"):
        assert symbol in re.sub(r"[()\s]", "", said), symbol
    assert "with the learning rate η" in said
    text = "erf(g) * greater(g, 0.0) / sqrt(rows * numel) + by_matrix(sigmoid(g), g)"
    said = Page(equation_block(Rule.from_text(text))).said
    for meaning in ("the error function", "1 where x is above b", "rows of the matrix view", "of the tensor"):
        assert meaning in said
    assert "exp(-a)" not in said and "a > b" not in said  # in the letters that are shown
    own = Rule.from_text("-0.1 * g", provenance={"include_lr": True})
    assert "learning rate" not in Page(equation_block(own)).said


def test_a_short_equation_is_there_once_and_a_long_one_for_wide_and_narrow_pages():
    short, long = (equation_block(Rule.named(name)) for name in ("sgd", "rnnprop_tuned"))
    assert "on-narrow" not in short and long.count("on-narrow") == long.count("on-wide") == 1
    assert WIDE > NARROW and not Page(long).open
