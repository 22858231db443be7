"""The house, computed from the source: imports inside a package, circles, sizes of folders and files."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Folders of each package from the bottom up: a folder imports from those before it. "" is the ground floor,
# files at the package's root that import nothing above it; "roof" are the other files there, entry points.
FLOORS = {
    "common": ("", "data", "tables", "kernels", "run", "roof"),
    "interchange": (
        "", "language", "dialects", "evaluation", "files", "emit", "rule", "search", "meta", "report",
        "distill", "commands", "convert", "sanity", "analysis", "paper", "inspect", "roof",
    ),
    "torch_impl": ("", "problems", "networks", "optimizers", "meta", "recording", "paper", "roof"),
    "tf_impl": ("", "problems", "networks", "optimizers", "meta", "recording", "paper", "roof"),
}  # fmt: skip
GROUND = {
    "common": {
        "errors", "extras", "files", "lazy", "machine", "metrics", "reference", "registry", "rng", "training",
    },
    "interchange": {"backend", "protocols", "rollout"},
    "torch_impl": {"tensors", "threads"},
    "tf_impl": {"tensors"},
}  # fmt: skip
MODULES, TEST_MODULES = 14, 25  # of a folder
LINES, STATEMENT_LINES = 300, 50  # of a file, of a function
LONG_FUNCTIONS = {
    "common/tables/layers.py: _specs": "one case a kind of layer",
    "interchange/commands/tune.py: _tune": "one worker's part, step by step; its record is a third of it",
    "interchange/meta/schedule.py: _check": "a table of settings that do not go together",
    "interchange/search/child.py: run_engine": "a child's whole life: start, wait, kill, read",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES_OF = {
    module_name(path): path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """Modules among ``known`` that a file imports anywhere but for types only, their packages not counted."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return set(visit(tree)) & known


GRAPH = {
    name: imports(ast.parse(path.read_text("utf-8")), set(MODULES_OF)) for name, path in MODULES_OF.items()
}


def floor(module: str) -> int:
    package, *rest = module.split(".")
    if not rest or rest[0] in GROUND[package]:
        return 0
    folder = rest[0] if (ROOT / package / rest[0]).is_dir() else "roof"
    return FLOORS[package].index(folder)


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports of a higher folder of the same package, but those of its lazy ``__init__``."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if "." in name and other.split(".")[0] == name.split(".")[0] and floor(other) > floor(name)
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def folders_of(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph of folders inside packages that the one of modules makes."""

    def home(module: str) -> str:
        package = module.split(".")[0]
        return f"{package}/{FLOORS[package][floor(module)]}"

    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        same = {home(other) for other in others if other.split(".")[0] == name.split(".")[0]}
        if "." in name:
            found.setdefault(home(name), set()).update(same - {home(name)})
    return found


def test_no_folder_imports_a_higher_one():
    assert upward(GRAPH) == []


def test_no_files_import_each_other_in_a_circle():
    graph = {name: others for name, others in GRAPH.items() if "." in name}
    assert circle(graph) == []


def test_no_folders_import_each_other_in_a_loop():
    assert circle(folders_of(GRAPH)) == []


def test_every_folder_has_its_floor_and_every_floor_a_folder():
    for package, floors in FLOORS.items():
        folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
        assert folders == set(floors) - {"", "roof"}, package
        assert all((ROOT / package / f"{name}.py").is_file() for name in GROUND[package])


def test_a_folder_can_be_looked_over():
    counts = {}
    for top in (*FLOORS, "tests"):
        for folder in [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]:
            counts[folder] = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
    over = {
        folder.relative_to(ROOT).as_posix(): count
        for folder, count in counts.items()
        if count > (TEST_MODULES if "tests" in folder.relative_to(ROOT).parts else MODULES)
    }
    assert over == {}


def long_functions(tree: ast.Module) -> list[str]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
    return [node.name for node in nodes if node.end_lineno - node.lineno + 1 > STATEMENT_LINES]


def test_no_file_is_long_and_long_functions_are_few_and_each_has_its_reason():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in MODULES_OF.values()}
    assert not [name for name, text in texts.items() if text.count("\n") > LINES]
    found = {f"{name}: {f}" for name, text in texts.items() for f in long_functions(ast.parse(text))}
    assert found == set(LONG_FUNCTIONS)
    assert len(LONG_FUNCTIONS) <= 5 and all(LONG_FUNCTIONS.values())


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, ""),
        ({"a": {"b"}, "b": {"a"}}, "ab"),
        ({"x": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a"}}, "abc"),
        ({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}, ""),
    ],
)
def test_circles_are_found(graph, found):
    assert set(circle(graph)) == set(found)


def test_upward_imports_and_loops_between_folders_are_found():
    low, high = "interchange.language.parse", "interchange.rule.rule"
    assert upward({high: {low}}) == [] and len(upward({low: {high}})) == 1
    assert upward({"torch_impl.tensors": {"torch_impl.backend"}}) != []
    # No two of these files import each other, but their folders do.
    graph = {low: {"interchange.rule.gallery"}, high: {"interchange.language.operators"}}
    assert circle(graph) == [] and circle(folders_of(graph)) != []


def test_imports_inside_functions_count_and_those_for_types_do_not():
    known = {"common.rng", "common.errors", "common"}
    lazily = "def f():\n    from common.rng import rng"
    assert imports(ast.parse(lazily), known) == {"common.rng"}
    assert imports(ast.parse("from common import rng, errors"), known) == {"common.rng", "common.errors"}
    assert imports(ast.parse("if TYPE_CHECKING:\n    import common.rng"), known) == set()
