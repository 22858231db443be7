"""Who may import whom and what nobody may call: read from the source, then from a fresh interpreter."""

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator

import pytest

from tests.helpers.processes import ROOT, said


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Top-level modules a package may import beside itself and the standard library.

    Attributes:
        always: anywhere in a file.
        lazily: inside functions only, by module, each with the reason.
        places: modules allowed in one file or below one folder only, by path; inside functions or not.
    """

    always: frozenset[str]
    lazily: dict[str, str] = dataclasses.field(default_factory=dict)
    places: dict[str, frozenset[str]] = dataclasses.field(default_factory=dict)


BOUNDARIES = {
    "common": Boundary(
        always=frozenset({"numpy"}),
        lazily={
            "rich": "progress bars are drawn on terminals only",
            "joblib": "only sweeps over many jobs need it",
            "dask": "an extra: sweeps over many machines",
            "distributed": "an extra: sweeps over many machines",
            "ray": "an extra: sweeps over many machines",
            "sklearn": "only the embedded digits are read from it",
            "scipy": "only intervals need it",
        },
    ),
    "interchange": Boundary(
        always=frozenset({"common", "numpy", "h5py", "sympy"}),
        lazily={
            "joblib": "only sweeps over many jobs need it",
            "matplotlib": "an extra, and slow to import",
            "onnx": "an extra",
            "onnxruntime": "an extra",
            "scipy": "slow to import",
            "sklearn": "slow to import",
        },
        places={
            "interchange/search/": frozenset({"pyoperon", "pysr", "juliapkg"}),
            "interchange/emit/jax_operators.py": frozenset({"jax"}),
        },
    ),
    "torch_impl": Boundary(
        always=frozenset({"common", "interchange", "numpy", "torch"}),
        places={"torch_impl/optimizers/packaged.py": frozenset({"pytorch_optimizer"})},
    ),
    "tf_impl": Boundary(always=frozenset({"common", "interchange", "numpy", "tensorflow", "keras"})),
}

# Imports by computed name, which reading the source cannot follow.
COMPUTED = {
    "common/tables/baselines.py": "asks whether an optimizer's package is there; does not import it",
    "common/extras.py": "asks whether a package of the extras is there; does not import it",
    "common/lazy.py": "modules of the package that offers their names",
    "common/run/doors.py": "the command that is named, from the table in the file",
    "common/run/parallel.py": "asks whether the cluster's package is there; does not import it",
    "interchange/commands/__init__.py": "the backend whose command it is, when it is called",
    "interchange/commands/estimate.py": "the command that is tried, in a child process of its own",
    "interchange/commands/forecast.py": "the backend that is tried, in a child process of its own",
    "interchange/emit/__init__.py": "its own modules, from the table of targets",
    "interchange/emit/source.py": "looks up a module's file to copy operators from; does not import it",
    "interchange/search/__init__.py": "asks whether the engine's package is there; does not import it",
    "interchange/search/auto.py": "the genetic engine it goes on with, from the table beside it",
    "interchange/search/child.py": "the engine asked for and the package it needs, from the tables beside it",
    "interchange/search/regressor.py": "the regressor the user names, in the search's child only",
    "tf_impl/__init__.py": "its own optimizers, and Keras' own loader once Keras is imported",
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import: top-level module ("" where the name is computed), line, and whether it runs on import."""

    module: str
    line: int
    eager: bool


def find_imports(tree: ast.Module, package: str) -> list[Import]:
    """Every import of a file, those inside functions and by ``importlib`` too."""
    found = []

    def visit(node: ast.AST, eager: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            eager = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            eager = False
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name.split(".")[0], node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = package if node.level else (node.module or "").split(".")[0]
            found.append(Import(module, node.lineno, eager))
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "find_spec", "__import__"):
            found.append(Import(_literal_start(node), node.lineno, eager))
        for child in ast.iter_child_nodes(node):
            visit(child, eager)

    visit(tree, True)
    return found


def called(node: ast.Call) -> str:
    """The last part of what is called: ``find_spec`` for ``importlib.util.find_spec(...)``."""
    return ast.unparse(node.func).rpartition(".")[2]


def _literal_start(node: ast.Call) -> str:
    first = node.args[0] if node.args else None
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""
    return text.split(".")[0]


def import_faults(tree: ast.Module, path: str) -> list[str]:
    """What a file at ``path``, relative to the root, imports against the table."""
    package = path.split("/")[0]
    boundary = BOUNDARIES[package]
    here = frozenset().union(*(m for place, m in boundary.places.items() if path.startswith(place)))
    faults = []
    for found in find_imports(tree, package):
        name = found.module
        if not name:
            if path not in COMPUTED:
                faults.append(f"{path}:{found.line} imports a computed name; add the file to COMPUTED")
        elif name in sys.stdlib_module_names or name in (boundary.always | here | {package}):
            continue
        elif name not in boundary.lazily:
            faults.append(f"{path}:{found.line} imports {name}, which {package} must not")
        elif found.eager:
            faults.append(f"{path}:{found.line} imports {name} at module level: {boundary.lazily[name]}")
    return faults


UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_ANYWHERE = {"sympify", "parse_expr", "parse_latex", "parse_mathematica", "load_model"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"yaml.load", "yaml.unsafe_load", "joblib.load", "os.system", "builtins.eval", "builtins.exec"}


def unsafe_calls(tree: ast.Module, path: str) -> list[str]:
    """Everything in a file that may run text or files from outside as code."""
    return [f"{path}:{line} uses {what}" for line, what in sorted(set(_unsafe(tree)))]


def _unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            for name in {part for dotted in modules for part in dotted.split(".")} & UNSAFE_IMPORTS:
                yield node.lineno, name
            for name in set(names) & UNSAFE_ANYWHERE:
                yield node.lineno, name
        elif isinstance(node, ast.Name) and node.id in UNSAFE_NAMES | UNSAFE_ANYWHERE:
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and node.attr in UNSAFE_ANYWHERE:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call):
            target = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if target in UNSAFE_CALLS:
                yield node.lineno, target
            if options.get("allow_pickle", "False") != "False":
                yield node.lineno, "allow_pickle"
            if options.get("weights_only", "True") != "True":
                yield node.lineno, "weights_only"
            if target == "torch.load" and "weights_only" not in options:
                yield node.lineno, "torch.load without weights_only"
            if options.get("shell", "False") != "False":
                yield node.lineno, "shell"


def source_files() -> list[str]:
    return [
        path.relative_to(ROOT).as_posix()
        for package in BOUNDARIES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def read(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", source_files())
def test_a_file_imports_only_what_its_package_may_and_runs_nothing_from_outside(path):
    tree = read(path)
    assert import_faults(tree, path) == [] and unsafe_calls(tree, path) == []


@pytest.mark.parametrize("path", [path for path in COMPUTED if (ROOT / path).is_file()])
def test_files_listed_for_computed_imports_have_some(path):
    assert any(not found.module for found in find_imports(read(path), path.split("/")[0]))


FORBIDDEN = [
    ("common", "import torch"),
    ("common", "import torch.nn as nn"),
    ("common", "from h5py import File"),
    ("common", "import numpy, tensorflow"),
    ("common", "def f():\n    import torch"),
    ("common", "class A:\n    import sklearn"),
    ("common", "try:\n    import matplotlib\nexcept ImportError:\n    pass"),
    ("common", "import interchange.rule"),
    ("common", "f = lambda: importlib.import_module('torch.nn')"),
    ("common", "importlib.import_module(name)"),
    ("common", "import_module(f'torch.{name}')"),
    ("common", "__import__('tensorflow')"),
    ("interchange", "from torch import nn"),
    ("interchange", "def f():\n    from torch_impl.networks.operators import OPERATORS"),
    ("interchange", "def f():\n    import pyoperon"),
    ("interchange", "import onnx"),
    ("interchange/emit/targets", "def f():\n    import jax"),
    ("torch_impl", "def f():\n    import tensorflow as tf"),
    ("torch_impl", "import tf_impl"),
    ("torch_impl", "def f():\n    import triton"),
    ("tf_impl", "from torch_impl.meta.unroll import Unroll"),
    ("tf_impl", "if True:\n    import torch"),
]
ALLOWED = [
    ("common", "import os, numpy as np\nfrom common import rng\nfrom . import rng"),
    ("common", "def f():\n    from sklearn.datasets import load_digits"),
    ("interchange", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
    ("interchange", "import h5py, sympy\nfrom common.rng import rng\ndef f():\n    import onnx"),
    ("interchange/search", "import pyoperon"),
    ("torch_impl", "import torch\nimport interchange.rule"),
    ("tf_impl", "import tensorflow as tf\nimport keras"),
]


@pytest.mark.parametrize(
    ("folder", "code", "count"), [(*row, 1) for row in FORBIDDEN] + [(*row, 0) for row in ALLOWED]
)
def test_forbidden_imports_are_found_and_allowed_ones_are_not_complained_about(folder, code, count):
    assert len(import_faults(ast.parse(code), f"{folder}/a.py")) == count


def test_a_place_may_be_a_single_file():
    tree = ast.parse("import jax.numpy as jnp")
    assert import_faults(tree, "interchange/emit/jax_operators.py") == []
    assert len(import_faults(tree, "interchange/emit/operators.py")) == 1


UNSAFE = [
    "eval(text)", "run = exec", "compile(text, '', 'eval')", "builtins.eval(text)", "sympy.sympify(text)",
    "from sympy import sympify as s", "from sympy.parsing.sympy_parser import parse_expr", "import pickle",
    "from cloudpickle import loads", "def f():\n    import dill as d", "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=flag)", "torch.load(path, weights_only=False)", "torch.load(path)",
    "yaml.load(text)", "keras.models.load_model(path)", "subprocess.run(text, shell=True)", "os.system(text)",
]  # fmt: skip
HARMLESS = [
    "network.eval()", "re.compile(text)", "self.compile(node)", "np.load(path, allow_pickle=False)",
    "torch.load(path, weights_only=True)", "'eval(text)'", "yaml.safe_load(text)",
    "subprocess.run([program], shell=False)",
]  # fmt: skip


@pytest.mark.parametrize(("code", "count"), [(code, 1) for code in UNSAFE] + [(code, 0) for code in HARMLESS])
def test_unsafe_calls_are_found_and_harmless_ones_are_not_complained_about(code, count):
    assert len(unsafe_calls(ast.parse(code), "a.py")) == count


def loaded_after(modules: list[str]) -> set[str]:
    """Top-level modules in ``sys.modules`` of a fresh interpreter that imported ``modules``."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    return set(json.loads(said(code, json.dumps(modules))))


def modules_of(package: str) -> list[str]:
    """All modules of a package but those with a place in the table, which none imports, and ``__main__``."""
    places = tuple(BOUNDARIES[package].places)
    paths = [path for path in source_files() if path.startswith(f"{package}/")]
    paths = [path for path in paths if path.endswith("__init__.py") or not path.startswith(places)]
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]
    return [name for name in names if not name.endswith("__main__")]


FRAMEWORKS = {"torch", "tensorflow", "keras", "jax"}
EXTRAS = {"matplotlib", "sklearn", "rich", "joblib", "dask", "distributed", "ray"}
EXTRAS |= {"pyoperon", "pysr", "onnx", "onnxruntime"}
OTHERS = {"torch_impl", "tf_impl"}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (["common"], FRAMEWORKS | EXTRAS | {"numpy", "h5py", "sympy"}),
        (modules_of("common"), FRAMEWORKS | EXTRAS | OTHERS | {"h5py", "sympy", "interchange"}),
        (["common", "interchange"], FRAMEWORKS | EXTRAS),
        (modules_of("interchange"), FRAMEWORKS | EXTRAS | OTHERS),
        (["torch_impl"], FRAMEWORKS | EXTRAS | {"tf_impl"}),
        (["tf_impl"], FRAMEWORKS),
    ],
    ids=["common", "all of common", "common and interchange", "all of interchange", "torch_impl", "tf_impl"],
)
def test_importing_loads_no_more_than_needed(modules, absent):
    assert loaded_after(modules) & absent == set()


@pytest.mark.parametrize(
    ("package", "own", "others"),
    [
        ("torch_impl", "torch", {"tensorflow", "keras", "tf_impl"}),
        ("tf_impl", "tensorflow", {"torch", "torch_impl"}),
    ],
)
def test_all_of_a_backend_loads_its_own_framework_alone(package, own, others):
    pytest.importorskip(own, reason=f"{own} is not installed")
    loaded = loaded_after(modules_of(package))
    assert own in loaded and loaded & others == set()


@pytest.mark.parametrize("first", ["import torch_impl.train", "from torch_impl.train import main", "pass"])
def test_the_packages_functions_are_functions_whatever_was_imported_before(first):
    pytest.importorskip("torch", reason="needs torch")
    said(f"{first}\nfrom torch_impl import train, tune\nassert callable(train) and callable(tune)")
