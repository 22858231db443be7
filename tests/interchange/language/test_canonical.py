"""Engine trees as expressions: the same meaning in as few nodes, with constants by name."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interchange.language import expression as ex
from interchange.language.canonical import name_constants, to_node
from interchange.language.execute import compile_program, evaluate
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from interchange.search.dictionary import COLUMNS as GRID
from interchange.search.dictionary import wide_dictionary
from interchange.search.operon import read_tree

FUNCTIONS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "aq": lambda a, b: a / np.sqrt(1.0 + b * b),
    "tanh": np.tanh,
    "square": np.square,
    "abs": np.abs,
}
UNARY = ("tanh", "square", "abs")
COLUMNS = [ex.name("a"), ex.name("b"), ex.call("lag", ex.name("a"), ex.number(2))]
COLUMNS += [ex.call("ema", ex.name("b"), ex.number(0.9))]


def random_tree(generator: random.Random, depth: int, weighted: bool) -> list[Any]:
    """A tree such as an engine gives; ``weighted`` as Operon's, every variable with its own factor."""
    kind = generator.random()
    if depth == 0 or kind < 0.15:
        constant = ["c", generator.choice([generator.gauss(0.0, 2.0), 1.0, -1.0, 2.0, 0.0])]
        if kind < 0.05:
            return constant
        variable = ["x", generator.randrange(len(COLUMNS))]
        return ["mul", ["c", generator.gauss(0.0, 2.0)], variable] if weighted else variable
    op = generator.choice(list(FUNCTIONS))
    return [op, *(random_tree(generator, depth - 1, weighted) for _ in range(1 if op in UNARY else 2))]


def value(tree: list[Any], columns: list[np.ndarray]) -> np.ndarray:
    op, *args = tree
    if op == "c":
        return np.full_like(columns[0], args[0])
    return columns[args[0]] if op == "x" else FUNCTIONS[op](*(value(arg, columns) for arg in args))


def naive(tree: list[Any]) -> ex.Node:
    op, *args = tree
    if op == "c":
        return ex.number(args[0])
    return COLUMNS[args[0]] if op == "x" else ex.call(op, *map(naive, args))


TREES = [
    random_tree(random.Random(seed), depth, weighted)
    for depth in (2, 3, 5)
    for seed in range(150)
    for weighted in (True, False)
]


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(12, 3)) for name in "ab"}


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.01, 0.0), (-2.5, 0.75)])
def test_the_expression_means_what_the_tree_means(scale, offset, features):
    columns = list(evaluate(compile_program(COLUMNS), features))
    for tree in TREES:
        node = to_node(tree, COLUMNS, scale, offset)
        got = evaluate(compile_program([node]), features)[0]
        want = scale * value(tree, columns) + offset
        # Sums in another order: errors relative to the largest of a sum's terms, here the whole's maximum.
        limit = 1e-10 * np.maximum(np.abs(want), np.abs(want).max())
        assert (np.abs(got - want) <= limit + 1e-300).all(), f"{tree} became {node}"


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_expression_never_has_more_nodes_than_the_tree(scale):
    saved = 0
    for tree in TREES:
        node = to_node(tree, COLUMNS, scale)
        plain = naive(tree if scale == 1.0 else ["mul", ["c", scale], tree])
        assert ex.complexity(node) <= ex.complexity(plain), f"{plain} became {node}"
        saved += ex.complexity(plain) - ex.complexity(node)
    assert saved > len(TREES)


A, B = ["x", 0], ["x", 1]
WA, WB = ["mul", ["c", 3.0], A], ["mul", ["c", 2.0], B]


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (["add", WA, ["mul", A, ["c", 4.0]]], "7.0 * a"),
        (["sub", ["add", WA, WB], WA], "2.0 * b"),
        (["sub", WA, WA], "0.0"),
        (["add", ["tanh", WA], ["mul", ["c", 2.0], ["tanh", WA]]], "3.0 * tanh(3.0 * a)"),
        (["add", ["add", ["c", 1.0], A], ["sub", ["c", 3.0], B]], "a - b + 4.0"),
        (["sub", ["c", 0.5], ["abs", A]], "0.5 - abs(a)"),
        (["sub", ["tanh", WA], ["tanh", WB]], "tanh(3.0 * a) - tanh(2.0 * b)"),
        (["mul", WA, WB], "6.0 * (a * b)"),
        (["mul", WA, WA], "9.0 * square(a)"),
        (["square", WA], "9.0 * square(a)"),
        (["abs", ["mul", ["c", -3.0], A]], "3.0 * abs(a)"),
        (["aq", WA, WB], "3.0 * aq(a, 2.0 * b)"),
        (["mul", ["c", 4.0], ["add", WA, ["mul", ["c", 3.0], B]]], "12.0 * (a + b)"),
        (["mul", ["c", 3.0], ["mul", ["c", 5.0], A]], "15.0 * a"),
        (["mul", ["c", 2.0], ["c", 5.0]], "10.0"),
        (["tanh", ["sub", ["c", 0.0], A]], "-1.0 * tanh(a)"),
        (["tanh", ["add", A, WB]], "tanh(2.0 * b + a)"),
    ],
)
def test_factors_are_gathered_and_like_terms_merged(tree, text, features):
    got, want = to_node(tree, COLUMNS), parse(text, ("a", "b"))
    assert ex.complexity(got) == ex.complexity(want), got
    given = evaluate(compile_program([got, want]), features)
    np.testing.assert_allclose(given[0], given[1], rtol=1e-13)


def test_constants_are_named_in_reading_order_and_the_value_stays(features):
    for tree in TREES[::7]:
        node = to_node(tree, COLUMNS, 0.3)
        named, constants = name_constants(node)
        assert list(constants) == [f"c{k}" for k in range(len(constants))]
        used = [name for name in ex.names(named) if name in constants]
        assert sorted(used) == sorted(constants)
        got = evaluate(compile_program([named]), features | constants)[0]
        np.testing.assert_array_equal(got, evaluate(compile_program([node]), features)[0])


def test_a_decay_is_one_constant_per_input_and_value_and_used_for_nothing_else():
    """Equal decays of one input share their state; of two inputs they must be free to part.

    Lag counts stay literals, every other number is named.
    """
    named, constants = name_constants(parse("2.0 * lag(a, 3) + tanh(0.5 * b) - 1.0", ("a", "b")))
    assert ex.to_text(named) == "c0 * lag(a, 3) + tanh(c1 * b) - c2"
    assert constants == {"c0": 2.0, "c1": 0.5, "c2": 1.0}
    text = "ema(a, 0.9) + ema(b, 0.9) + 0.9 * ema(a, 0.9) + ema(a, 0.5) + ema_hat(lag(a, 1), 0.9)"
    named, constants = name_constants(parse(text, ("a", "b")))
    assert ex.to_text(named) == (
        "ema(a, c0) + ema(b, c1) + c2 * ema(a, c0) + ema(a, c3) + ema_hat(lag(a, 1), c4)"
    )
    assert list(constants.values()) == [0.9, 0.9, 0.9, 0.5, 0.9]
    assert Rule("kept", named, constants, dict.fromkeys("ab")).decay_constants == ("c0", "c1", "c3", "c4")


def test_every_column_of_the_dictionary_becomes_a_valid_rule():
    columns = wide_dictionary(["a", "b"])
    tree = ["c", 0.0]
    for k in range(len(columns)):
        tree = ["add", tree, ["mul", ["c", 1.5 + k], ["x", k]]]
    named, constants = name_constants(to_node(tree, columns))
    rule = Rule("all", named, constants, dict.fromkeys("ab"))
    averages = [node for node in ex.walk(named) if node.op in ("ema", "ema_hat")]
    inputs = {(node.args[1].name, node.args[0]) for node in averages}
    assert len(rule.decay_constants) == len(inputs) >= 2 * len(GRID.decays)
    assert max(Counter(name for name, _ in inputs).values()) == 1


def postfix(text: str) -> list[SimpleNamespace]:
    """Nodes spelled as Operon's: a number, a variable with its weight or a kind with its arity."""
    nodes = []
    for word in text.split():
        kind, _, value = word.partition(":")
        if kind in ("x0", "x1"):
            nodes.append(SimpleNamespace(Type="NodeType.Variable", Value=float(value), HashValue=CODES[kind]))
        elif value:
            nodes.append(SimpleNamespace(Type=f"NodeType.{kind}", Arity=int(value)))
        else:
            nodes.append(SimpleNamespace(Type="NodeType.Constant", Arity=0, Value=float(kind)))
    return nodes


X0, X1 = ["mul", ["c", 2.0], ["x", 0]], ["mul", ["c", -3.0], ["x", 1]]
CODES = {"x0": 77, "x1": 99}


@pytest.mark.parametrize(
    ("nodes", "tree"),
    [
        ("x0:2", X0),
        ("0.25", ["c", 0.25]),
        ("x0:2 Tanh:1", ["tanh", X0]),
        ("x1:-3 x0:2 Sub:2", ["sub", X0, X1]),
        ("x1:-3 Tanh:1 x0:2 Aq:2", ["aq", X0, ["tanh", X1]]),
        ("1 x1:-3 x0:2 Add:3", ["add", ["add", X0, X1], ["c", 1.0]]),
        ("3 2 1 Sub:3", ["sub", ["sub", ["c", 1.0], ["c", 2.0]], ["c", 3.0]]),
    ],
)
def test_operon_nodes_are_read_from_postfix_with_the_first_operand_last(nodes, tree):
    assert read_tree(postfix(nodes), {77: 0, 99: 1}) == tree


def test_operon_orders_its_nodes_as_the_reader_expects():
    """Against Operon itself: its own evaluation of x1 - tanh(2 x0) and the reader's."""
    operon = pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    rows = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    data = operon.Dataset(np.column_stack([rows, np.zeros(50, np.float32)]))
    tree = operon.InfixParser.Parse("X2 - tanh(2 * X1)", {v.Name: v.Hash for v in data.Variables})
    want = operon.Evaluate(tree, data, operon.Range(0, 50))
    codes = {v.Hash: int(v.Name[1:]) - 1 for v in data.Variables}
    got = value(read_tree(tree.Nodes, codes), list(rows.T.astype(float)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
