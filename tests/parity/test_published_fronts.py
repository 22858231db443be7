"""The ICLR 2022 code's published fronts: read whole, with the published sizes and errors."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from interchange.convert.hall_of_fame import import_hall_of_fame
from interchange.language.compiler import compile_program
from interchange.language.expression import Node
from interchange.rule.rule import Rule

# File -> number of rules, smallest and largest.
FRONTS = {
    "rnnprop_a_published_front.csv": (141, 55, 303),
    "rnnprop_b_published_front.csv": (87, 1, 214),
    "adam_published_front.csv": (20, 1, 20),
}
TOLERANCE = 2e-5  # the published errors come from float32


@pytest.fixture
def folder(data_dir) -> Path:
    """The folder with the fronts and their regression data."""
    if not (data_dir / "sr" / "rnnprop_a.npy").is_file():
        pytest.skip(f"no sr/rnnprop_a.npy in {data_dir}; put it there or set L2O_DATA")
    return data_dir / "sr"


@functools.cache
def table(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns by variable [1, rows] and the target, of the rows the fronts were found on."""
    data = np.load(folder / "rnnprop_a.npy", allow_pickle=False)
    data = data[: int(0.85 * len(data))]
    columns = {f"g{k}": data[None, :, k] for k in range(5)}
    columns |= {"mean_g": data[None, :, 21], "mean_g2": data[None, :, 22]}
    columns |= {"t_column": data[None, :, 23] / 1e4}
    return columns, data[None, :, 28]


@functools.cache
def rules(folder: Path) -> list[Rule]:
    return import_hall_of_fame(folder / "rnnprop_a_published_front.csv")


def errors(folder: Path, values) -> np.ndarray:
    """Relative difference of the mean squared error from the published one, per rule."""
    _, target = table(folder)
    found = [np.mean((value - target) ** 2) for value in values]
    return np.abs(np.array(found) / [rule.provenance["loss"] for rule in rules(folder)] - 1.0)


@pytest.mark.parametrize("file", FRONTS)
def test_every_rule_is_read_and_counted_as_published(file, folder):
    found = import_hall_of_fame(folder / file)
    count, smallest, largest = FRONTS[file]
    published = [line.split("|")[:2] for line in (folder / file).read_text().splitlines()[1:] if line.strip()]
    assert len(found) == count == len(published)
    assert [rule.complexity for rule in found] == [int(size) for size, _ in published]
    assert [rule.provenance["loss"] for rule in found] == [float(loss) for _, loss in published]
    assert (found[0].complexity, found[-1].complexity) == (smallest, largest)
    assert {rule.provenance["dialect"] for rule in found} == {"pysr-0.3"}


def by_numpy(rule: Rule, columns: dict[str, np.ndarray]) -> np.ndarray:
    return rule.evaluate({name: columns[name] for name in rule.features})


def by_torch(rule: Rule, columns: dict[str, np.ndarray]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from torch_impl.networks.lowering import Lowered

    inputs = {name: torch.from_numpy(columns[name].copy()) for name in rule.features} | rule.constants
    (out,), state = Lowered(compile_program([rule.expression])).step(inputs, (), 1)
    assert out.dtype == torch.float64 and state == ()
    return out.numpy()


@pytest.mark.parametrize("run", [by_numpy, by_torch])
def test_a_rule_has_its_published_error(run, folder):
    columns, _ = table(folder)
    assert errors(folder, [run(rule, columns) for rule in rules(folder)]).max() < TOLERANCE


def unsigned(node: Node) -> Node:
    """The tree with every ``pow`` as ``powabs``."""
    op = "powabs" if node.op == "pow" else node.op
    return dataclasses.replace(node, op=op, args=tuple(map(unsigned, node.args)))


def test_the_errors_tell_one_meaning_from_another(folder):
    """``pow`` without the sign of its base, or another scale of t, is found out."""
    columns, _ = table(folder)
    other = [dataclasses.replace(rule, expression=unsigned(rule.expression)) for rule in rules(folder)]
    values = [by_numpy(rule, columns) for rule in other]
    assert errors(folder, values).max() > 100 * TOLERANCE
    inputs = columns | {"t_column": columns["t_column"] * 1e4}
    values = [by_numpy(rule, inputs) for rule in rules(folder)]
    with np.errstate(all="ignore"):
        assert not errors(folder, values).max() < 100 * TOLERANCE
