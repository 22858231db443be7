"""The two backends offer the same interface: read from their source, so neither framework is needed."""

import ast
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch_impl", "tf_impl")

# File -> public name -> why the two differ there; "*" is all of the file.
EXEMPT = {
    "optimizers/optimizers.py": {
        "SymbolicOptimizer.__init__": "torch takes params and lr, Keras learning_rate",
        "SymbolicOptimizer.add_param_group": "Keras has no parameter groups",
        "SymbolicOptimizer.rule": "in torch that of the first group, in Keras an attribute",
        "LearnedOptimizer.__init__": "torch takes params and lr, Keras learning_rate",
    },
    "optimizers/baselines.py": {
        "build": "Keras optimizers make their state before their first step",
        "Lion.__init__": "torch takes params and lr, Keras learning_rate",
        "Lion.step": "Keras optimizers are stepped by apply, which their base class has",
        "ScheduleFree.__init__": "torch takes params and lr, Keras learning_rate",
        "ScheduleFree.step": "Keras optimizers are stepped by apply, as Lion's",
    },
    "problems/tasks.py": {
        "ProblemTask.value_and_gradient": "TensorFlow has one graph, torch autograd",
        "ProblemTask.work": "torch's threads depend on it (torch_impl/threads.py)",
        "ProblemTask.stacked": "TensorFlow's graph has the gradient in it",
        "ProblemTask.given": "the arguments of a graph; torch has none",
        "ProblemTask.keep": "what a graph returns; torch's buffers are changed in place",
    },
    "problems/modules.py": {
        "ModuleTask.given": "the arguments of a graph; torch has none",
        "ModuleTask.keep": "what a graph returns; torch's buffers are changed in place",
    },
    "networks/compiled.py": {
        "Steps": "torch's tensors are changed in place, all in one call",
        "Steps.__init__": "as Steps",
        "Steps.again": "as Steps",
        "Steps.step": "as Steps",
        "step_fresh": "TensorFlow's tensors are values, Keras steps one after the other",
        "transformed": "TensorFlow has graphs, torch transforms of functions",
        "threads": "torch's is torch_impl/threads.py",
    },
    "tensors.py": {
        "view": "torch's tensors have addresses",
        "on_host": "torch's tensors know their device's type",
    },
    "meta/unroll.py": {"pulled_back": "TensorFlow's tapes themselves say 0 where there is no derivative"},
    "rollout.py": {"descend": "TensorFlow's graph of a step is over parameters and optimizer"},
    "optimizers/base.py": {"*": "torch and Keras give optimizers different bodies; the class's name is one"},
    "optimizers/guard.py": {"GuardedOptimizer.__init__": "torch's mode is a setting of every group"},
    "recording/hooks.py": {"*": "torch has step hooks, Keras optimizers are wrapped"},
    "recording/recorder.py": {
        "Recorder": "torch has step hooks, Keras fit",
        "Recorder.loss": "torch has closures, Keras fit",
    },
}
EXEMPTIONS = {(file, name): reason for file, rows in EXEMPT.items() for name, reason in rows.items()}

# Files of one backend only -> why the other has none.
ALONE = {
    "torch_impl/convert.py": "the ICLR code's checkpoints are torch's",
    "torch_impl/threads.py": "TensorFlow sets its threads once, before the first operation",
    "torch_impl/optimizers/groups.py": "Keras has no parameter groups; its optimizers know layers",
    "torch_impl/optimizers/ways.py": "torch's tensors come in groups and in shards",
    "torch_impl/optimizers/packaged.py": "the package is torch's",
    "torch_impl/optimizers/decay.py": "Keras' optimizers here have it in their base class",
    "torch_impl/optimizers/average.py": "TensorFlow's is in the graph of a step",
    "torch_impl/optimizers/resuming.py": "what torch's own load_state_dict loses",
    "tf_impl/optimizers/loading.py": "what Keras' own load_own_variables takes without a look",
    "tf_impl/optimizers/layers.py": "torch has parameter groups; Keras' optimizers see variables only",
    "tf_impl/loops.py": "a rollout's step as one graph; torch has no graphs to keep",
    "tf_impl/optimizers/torch_formulas.py": "optimizers that Keras lacks or has otherwise than torch",
    "tf_impl/problems/direct.py": "calls of a graph without Keras' or TensorFlow's wrapping",
    "tf_impl/problems/products.py": "torch multiplies every dtype on every processor",
    "tf_impl/problems/graphs.py": "loss and gradient as graphs, kept by problem",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a caller sees of one public name.

    Attributes:
        kind: ``function``, ``class``, ``constant``, or a method's decorator such as ``property``.
        parameters: with their defaults as source text, without annotations.
        doc: first line of the docstring.
    """

    kind: str
    parameters: str = ""
    doc: str = ""


def interface(path: Path) -> dict[str, Entry]:
    """Public functions, classes, their methods, and constants of a file; ``Class.method`` for methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return dict(_entries(tree.body, "", methods=False))


def _entries(body: list[ast.stmt], prefix: str, *, methods: bool) -> Iterator[tuple[str, Entry]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _public(node.name) or (methods and node.name in ("__init__", "__call__")):
                yield prefix + node.name, _function(node)
        elif isinstance(node, ast.ClassDef) and _public(node.name):
            yield prefix + node.name, Entry("class", doc=_doc(node))
            yield from _entries(node.body, f"{prefix}{node.name}.", methods=True)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and _public(target.id):
                    yield prefix + target.id, Entry("constant")
        elif isinstance(node, ast.If | ast.Try):
            yield from _entries(node.body, prefix, methods=methods)


def _public(name: str) -> bool:
    return not name.startswith("_")


def _doc(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Entry:
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    kind = next((k for k in ("property", "classmethod", "staticmethod") if k in decorators), "function")
    for parameter in ast.walk(node.args):
        if isinstance(parameter, ast.arg):
            parameter.annotation = None
    # ``torch.float32`` and ``tf.float32`` are the same default.
    return Entry(kind, re.sub(r"=(torch|tf)\.", "=", ast.unparse(node.args)), _doc(node))


def differences(one: Path, other: Path) -> dict[tuple[str, str], str]:
    """(file, public name) -> how the files that both folders have differ there."""
    found = {}
    for path in sorted(one.rglob("*.py")):
        name = path.relative_to(one)
        if not (other / name).is_file():  # ``alone`` has these
            continue
        left, right = interface(path), interface(other / name)
        for entry in sorted(left.keys() | right.keys()):
            told = _difference(left.get(entry), right.get(entry), one.name, other.name)
            if told:
                found[name.as_posix(), entry] = told
    return found


def _difference(left: Entry | None, right: Entry | None, one: str, other: str) -> str:
    if left is None or right is None:
        return f"missing in {one if left is None else other}"
    for what in ("kind", "parameters", "doc"):
        if getattr(left, what) != getattr(right, what):
            return f"{what}: {getattr(left, what)!r} in {one}, {getattr(right, what)!r} in {other}"
    return ""


def complaints(
    found: Mapping[tuple[str, str], str], exempt: Collection[tuple[str, str]]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Differences that are not exempt, one line each, and exemptions nothing needs any more."""
    lines = [
        f"{file}: {name}: {told}"
        for (file, name), told in found.items()
        if (file, name) not in exempt and (file, "*") not in exempt
    ]
    files = {file for file, _ in found}
    return lines, [key for key in exempt if key not in found and not (key[1] == "*" and key[0] in files)]


def alone(one: Path, other: Path) -> set[str]:
    """Files that only one of the folders has, each with its folder's name."""
    files = [{path.relative_to(folder) for path in folder.rglob("*.py")} for folder in (one, other)]
    only = [(one, files[0] - files[1]), (other, files[1] - files[0])]
    return {f"{folder.name}/{name.as_posix()}" for folder, names in only for name in names}


@pytest.fixture(scope="module")
def backends() -> tuple[Path, Path]:
    folders = tuple(ROOT / name for name in BACKENDS)
    for folder in folders:
        if not folder.is_dir():
            pytest.skip(f"there is no {folder.name} yet to compare with")
    return folders


def test_the_backends_offer_the_same(backends):
    assert complaints(differences(*backends), EXEMPTIONS)[0] == []


def test_every_exemption_is_still_needed(backends):
    assert complaints(differences(*backends), EXEMPTIONS)[1] == []


def test_every_file_has_a_twin_or_a_reason(backends):
    assert alone(*backends) == set(ALONE) and all(ALONE.values())


def test_exemptions_are_about_files_and_names_that_exist():
    for (file, name), reason in EXEMPTIONS.items():
        assert reason
        assert name == "*" or any(name in interface(ROOT / backend / file) for backend in BACKENDS)


SOURCE = '''"""A module."""

RATE = 1.0
_PRIVATE = 2.0


def step(theta, grads, *, lr=0.1, **options):
    """One update.

    Details may differ.
    """


class Optimizer:
    """Holds the state."""

    def __init__(self, rule, lr=1.0):
        self.rule = rule

    @property
    def size(self):
        """Number of floats."""

    def _inner(self, a):
        """Hidden."""
'''


@pytest.fixture
def pair(tmp_path):
    """Two equal packages; call it with (old, new) texts to change the second one."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "module.py").write_text(SOURCE)

    def change(old: str = "", new: str = "") -> dict[tuple[str, str], str]:
        assert old in SOURCE
        (other / "module.py").write_text(SOURCE.replace(old, new, 1))
        return differences(one, other)

    return change


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("Details may differ", "They do"),
        ("_PRIVATE = 2.0", "_OTHER = 3.0"),
        ("RATE = 1.0", "RATE = make()"),
        ("def _inner(self, a)", "def _outer(self, b)"),
        ("grads, *", "grads: Tensor, *"),
        ("self.rule = rule", "pass"),
    ],
)
def test_equal_interfaces_raise_no_complaint(pair, old, new):
    assert pair(old, new) == {}


@pytest.mark.parametrize(
    ("old", "new", "name", "told"),
    [
        ("grads,", "gradients,", "step", "parameters"),
        ("lr=0.1", "lr=0.2", "step", "parameters"),
        ("*, lr=0.1", "lr=0.1", "step", "parameters"),
        (", **options", "", "step", "parameters"),
        ("One update.", "An update.", "step", "doc"),
        ("Holds the state.", "Holds state.", "Optimizer", "doc"),
        ("rule, lr=1.0", "rule, learning_rate=1.0", "Optimizer.__init__", "parameters"),
        ("    @property\n", "", "Optimizer.size", "kind"),
        ("    @property\n    def size(self)", "    def _size(self)", "Optimizer.size", "missing in other"),
        ("RATE = 1.0\n", "", "RATE", "missing in other"),
        ("RATE = 1.0\n", "RATE = 1.0\nMORE = 2\n", "MORE", "missing in one"),
    ],
)
def test_each_difference_is_found(pair, old, new, name, told):
    found = pair(old, new)
    assert list(found) == [("module.py", name)]
    assert found["module.py", name].startswith(told)


def test_a_missing_function_and_a_renamed_one_are_found(pair):
    assert set(pair("def step", "def update")) == {("module.py", "step"), ("module.py", "update")}


def test_files_of_one_side_only_are_told_and_not_compared(pair, tmp_path):
    (tmp_path / "one" / "below").mkdir()
    (tmp_path / "one" / "below" / "alone.py").write_text("def f(): ...")
    assert pair() == {}
    assert alone(tmp_path / "one", tmp_path / "other") == {"one/below/alone.py"}
    assert alone(tmp_path / "other", tmp_path / "one") == {"one/below/alone.py"}


def test_an_exemption_of_a_whole_file_silences_it_and_goes_stale(pair):
    found = pair("lr=0.1", "lr=0.2")
    assert complaints(found, [("module.py", "*")]) == ([], [])
    assert complaints({}, [("module.py", "*")]) == ([], [("module.py", "*")])


def test_exemptions_silence_their_name_only_and_go_stale(pair):
    found = pair("lr=0.1", "lr=0.2")
    assert complaints(found, [("module.py", "step")]) == ([], [])
    lines, stale = complaints(found, [("module.py", "Optimizer")])
    assert len(lines) == 1
    assert stale == [("module.py", "Optimizer")]
