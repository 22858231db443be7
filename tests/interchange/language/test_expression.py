"""Trees and their text."""

import random

import pytest

from common.errors import L2OError
from interchange.language import expression as ex
from interchange.language.operators import OPERATORS
from interchange.language.parse import ParseError, parse


def random_tree(rng: random.Random, levels: int) -> ex.Node:
    if levels == 0 or rng.random() < 0.1:
        values = [0.0, -0.0, 1.0, -2.5, 1e-300, -1e300, 0.1, 1 / 3]
        return (
            ex.name(rng.choice(["g", "m_tilde", "c0"]))
            if rng.random() < 0.6
            else ex.number(rng.choice(values))
        )
    op = rng.choice(["add", "sub", "mul", "div", "neg"] * 3 + list(OPERATORS))
    args = [random_tree(rng, levels - 1) for _ in range(OPERATORS[op].arity)]
    if op == "lag":
        args[1] = ex.number(rng.randint(0, 100))
    if op in ("ema", "ema_hat"):
        args[1] = rng.choice([ex.number(0.95), ex.number(1e-9), ex.name("c1")])
    return ex.call(op, *args)


@pytest.mark.parametrize("seed", range(300))
def test_text_reads_back_as_the_same_tree(seed):
    tree = random_tree(random.Random(seed), 6)
    assert parse(ex.to_text(tree)) == tree
    assert str(parse(str(tree))) == str(tree)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("(a - b) - c", "a - b - c"),
        ("a - (b - c)", "a - (b - c)"),
        ("a * (b / c)", "a * (b / c)"),
        ("(a * b) + c", "a * b + c"),
        ("-(a * b)", "-(a * b)"),
        ("-a * b", "-a * b"),
        ("a*-2", "a * -2.0"),
        ("neg(2)", "neg(2.0)"),
        ("--a", "--a"),
        ("lag(x, 3)", "lag(x, 3)"),
        ("1e-8", "1e-08"),
        ("0.1", "0.1"),
    ],
)
def test_text_has_the_fewest_parentheses(text, canonical):
    assert ex.to_text(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "count", "levels"),
    [
        ("x", 1, 1),
        ("-2.0", 1, 1),
        ("-x", 2, 2),
        ("neg(2.0)", 1, 2),
        ("a + b * c", 5, 3),
        ("lag(x, 3)", 3, 2),
        ("c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3)", 12, 5),
    ],
)
def test_complexity_and_depth(text, count, levels):
    assert (ex.complexity(parse(text)), ex.depth(parse(text))) == (count, levels)


def test_names_come_once_in_order_and_substitution_replaces_them_only():
    assert ex.names(parse("b * a + b / c")) == ("b", "a", "c")
    tree = parse("a + ema(b, c)")
    assert ex.substitute(tree, {"b": parse("g * g"), "c": ex.number(0.9)}) == parse("a + ema(g * g, 0.9)")
    assert ex.substitute(tree, {"z": ex.number(1.0)}) is tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tanh(a, b)", "tanh takes 1 argument, got 2"),
        ("max(a)", "max takes 2 arguments, got 1"),
        ("sqr(a)", "did you mean 'sqrt'"),
        ("a == 2", "of comparisons one of < > <= >="),
        ("tanh", "is an operator"),
        ("lag(x, 1.0)", "literal integer"),
        ("lag(x, 101)", "literal integer"),
        ("lag(x, -1)", "literal integer"),
        ("lag(x, n)", "literal integer"),
        ("ema(x, 1)", "0 < b < 1"),
        ("ema(x, -0.5)", "0 < b < 1"),
        ("ema(x, a * b)", "0 < b < 1"),
    ],
)
def test_messages_name_the_fault(text, message):
    with pytest.raises(ParseError, match=message.replace("(", r"\(")):
        parse(text)


REFUSED = {
    "a literal that is not finite": (lambda: ex.number(float("inf")), "finite"),
    "a literal that is no number": (lambda: ex.number(float("nan")), "finite"),
    "a decay substituted": (lambda: ex.substitute(parse("ema(x, b)"), {"b": ex.number(1.0)}), r"0 < b < 1"),
    "a name nobody knows": (
        lambda: parse("m_tild + g", ["m_tilde", "g"]),
        r"'m_tild' \(did you mean 'm_tilde'\?\); known: m_tilde, g"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_tree_is_refused(make, message):
    with pytest.raises(L2OError, match=message):
        make()


def test_limits_are_exact():
    assert ex.depth(parse("tanh(" * 99 + "x" + ")" * 99)) == 100
    with pytest.raises(ParseError, match="100 levels"):
        parse("tanh(" * 100 + "x" + ")" * 100)
    half = "+".join(["a"] * 63)  # 125 nodes, 63 levels
    quarter = f"max({half}, {half})"  # 251
    parse(f"max(max({quarter}, {quarter}), max({quarter}, -({'+'.join(['a'] * 60)})))")
    with pytest.raises(ParseError, match="1000 nodes"):
        parse(f"max(max({quarter}, {quarter}), max({quarter}, {quarter}))")
    with pytest.raises(ParseError, match="10000 characters"):
        parse("a" + " " * 10_000)
