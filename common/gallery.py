"""The gallery: every problem, suite, teacher, baseline, feature and data set, as a page made from the tables.

``python -m common.gallery`` prints it; ``common/GALLERY.md`` is its output, and a test keeps it so.
"""

import collections
import itertools
import math
import sys
from collections.abc import Iterable, Iterator

from common.data.datasets import DATASETS
from common.tables.baselines import BASELINES, Baseline
from common.tables.features import FEATURES
from common.tables.layers import Layer
from common.tables.problems import PROBLEMS, Problem, parameter_specs
from common.tables.suites import SUITES
from common.tables.teachers import TEACHERS, TeacherRow

_HEAD = """# Gallery

Made from the tables by `python -m common.gallery > common/GALLERY.md`; a new row appears here by itself.
"""
_PROBLEMS = """
## Problems

`--problem NAME` in every command. Classifiers minimise the mean cross-entropy of a mini-batch; `--dataset`
puts other data in the place of a row's own: a data set below, `synthetic`, an `.npz` of yours. Images with a
star are varied at every step: cut out of a black rim, mirrored. Functions are
the mean over 128 draws of A, b and c ~ N(0, 1), one x of 10 numbers each; where a condition number is given,
A is U diag(s) V^T with random rotations, |s|^2 = 10 and A^T A of that condition. Sums, `simple`, and
those with n = 2 or fixed A and b say so.
"""
_SUITES = """
## Suites

`--problem suite:NAME` of `evaluate`: a fixed list of problems, each at its own horizon in steps. What is
shipped was trained and tuned on no other problem of a suite than those marked so.
"""
_BASELINES = """
## Baselines

`name[:key=value,...]` wherever an optimizer is named; torch.optim's formulas, with Lion and Schedule-Free
AdamW beside them. Those of `pytorch_optimizer` need `python -m pip install -e ".[optimizers]"`.
`evaluate --knob` tunes the knob beside the learning rate. Any of them, and any teacher or rule, also takes
`weight_decay` (decoupled), `l2` (added to the gradient) and `schedule`.
"""
_TEACHERS = """
## Teachers

`--teacher NAME` of `train`; `--inputs`, `--scale` and `--weights` change a row. Every teacher works
coordinate by coordinate; floats are what its LSTM cells keep per optimized parameter, its features come on
top.
"""


def page() -> str:
    """The whole page, Markdown."""
    parts = [
        _HEAD,
        _PROBLEMS,
        _table(("problem", "data", "parameters", "layers", "what"), map(_problem, PROBLEMS.values())),
        _SUITES,
        _table(("suite", "problem", "steps", "trained on"), _suites()),
        _TEACHERS,
        _table(
            ("teacher", "inputs", "network", "update", "weights", "floats", "source"),
            map(_teacher, TEACHERS.values()),
        ),
        "\n## Features\n\nInputs of teachers and rules, in the rule language over the gradient `g`.\n",
        _table(("feature", "expression"), ((f"`{name}`", f"`{text}`") for name, text in FEATURES.items())),
        _BASELINES,
        _table(
            ("optimizer", "lr (middle of its grid)", "options", "knob", "source"),
            map(_baseline, BASELINES.values()),
        ),
        "\n## Data sets\n\nRead from local files only, but for `digits`, which is embedded.\n",
        _table(
            ("data set", "images", "classes"),
            ((f"`{n}`", "x".join(map(str, s.image_shape)), str(s.num_classes)) for n, s in DATASETS.items()),
        ),
    ]
    return "\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped) + "\n"


def _problem(row: Problem) -> Iterator[str]:
    count = sum(math.prod(spec.shape) for spec in parameter_specs(row))
    kinds = collections.Counter(layer.kind for layer in _flat(row.layers))
    shown = [f"{kinds[kind]} {kind}" for kind in ("conv", "norm", "dense") if kinds[kind]]
    yield f"`{row.name}`"
    yield f"`{row.dataset}`{' *' * row.varied}" if row.dataset else "-"
    yield f"{count:,}"
    yield ", ".join(shown) or "-"
    yield row.note


def _flat(layers: Iterable[Layer]) -> Iterator[Layer]:
    for layer in layers:
        yield layer
        for node in layer.nodes:
            for _, inner in node:
                yield from _flat(inner)


def _suites() -> Iterator[tuple[str, ...]]:
    for name, entries in SUITES.items():
        for problem, group in itertools.groupby(entries, lambda entry: entry.problem):
            group = list(group)
            steps = ", ".join(f"{entry.steps:,}" for entry in group)
            yield f"`suite:{name}`", f"`{problem}`", steps, "yes" if group[0].trained_on else "no"


def _teacher(row: TeacherRow) -> Iterator[str]:
    weights = sum(math.prod(shape) for shape in row.weight_shapes().values())
    cells = [f"Linear {row.pre} + ELU"] * bool(row.pre) + [f"LSTM {size}" for size in row.lstm]
    yield f"`{row.name}`"
    yield ", ".join(f"`{name}`" for name in row.inputs)
    yield ", ".join([*cells, "Linear 1"])
    out = "tanh(out)" if row.output == "tanh" else "out"
    yield f"{row.scale:g} {row.structure}({out})" if row.structure else f"{row.scale:g} {out}"
    yield f"{weights:,}"
    yield str(row.state_floats())
    yield row.source


def _baseline(row: Baseline) -> Iterator[str]:
    only = f" ({row.backends[0]} only)" if len(row.backends) == 1 else ""
    yield f"`{row.name}`"
    yield f"{row.lr:g}"
    yield _options(row.options)
    yield f"`{row.knob}`" if row.knob else "-"
    yield row.source + (f" (torch with `{row.package}`)" if row.package else only)


def _options(options: dict[str, float]) -> str:
    return ", ".join(f"`{name}={value:g}`" for name, value in options.items())


def main() -> int:
    """Print the page."""
    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
