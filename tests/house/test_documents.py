"""The pages: examples run, commands are ones the programs take, links and citations lead somewhere."""

import ast
import configparser
import fnmatch
import importlib.util
import itertools
import json
import re
import shlex
import subprocess

import pytest

from interchange.rule.rule import Rule
from tests.helpers.commands import ROOT, configuration

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.splitlines()
PAGES = {name: (ROOT / name).read_text("utf-8") for name in TRACKED if name.endswith(".md")}
PACKAGES = ("common", "interchange", "torch_impl", "tf_impl")
README_LENGTH = 10_000  # characters
LANGUAGES = {"python", "sh", "math", "json", "toml", ""}  # "" is what a program printed

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(page, *match) for page, text in PAGES.items() for match in FENCE.findall(text)]
ROWS = "CONTRIBUTING.md"  # its Python blocks are rows of tables, to be put where they belong
EXAMPLES = [(page, body) for page, language, body in BLOCKS if language == "python" and page != ROWS]
TRAINERS = ("lightning", "accelerate", "transformers", "timm")  # nothing installs them
LINES = [(page, line) for page, language, body in BLOCKS if language == "sh" for line in body.splitlines()]
INLINE = [
    (page, found) for page, text in PAGES.items() for found in re.findall(r"`(python -m [^`\n]+)`", text)
]
COMMANDS = [
    (page, *found.groups())
    for page, line in [*LINES, *INLINE]
    if (found := re.search(r"(?:python|torchrun .*) -m ((?:interchange|torch_impl|tf_impl)\S*) ?(.*)$", line))
    and "..." not in line
]
SCRIPTS = [
    (page, *found.groups())
    for page, line in LINES
    if (found := re.match(r"python (tests/\S+\.py) ?(.*)$", line))
]
FORMULAS = [
    (page, formula)
    for page, text in PAGES.items()
    for formula in [
        *(body for where, language, body in BLOCKS if where == page and language == "math"),
        *re.findall(r"\$([^$\n]+)\$", re.sub(r"`[^`]*`", "", FENCE.sub("", text))),
    ]
]
CITED = re.compile(r"\b(MATH|FORMATS)\.md[,)]?\s+section\s+(\d)(?:, (Numbers))?")
HOME = {"MATH": "common/MATH.md", "FORMATS": "interchange/FORMATS.md"}


def number(items: list) -> list[str]:
    return [f"{item[0]}-{k}" for k, item in enumerate(items)]


def trainer_of(block: str) -> str:
    """The package of somebody's trainer that an example needs; "" for none."""
    found = re.search(rf"^(?:from|import) ({'|'.join(TRAINERS)})\b", block, re.MULTILINE)
    return found[1] if found else ""


THEIRS = (pytest.mark.slow, pytest.mark.filterwarnings("ignore"))


@pytest.mark.parametrize(
    ("page", "block"),
    [pytest.param(*one, marks=THEIRS if trainer_of(one[1]) else ()) for one in EXAMPLES],
    ids=number(EXAMPLES),
)
def test_a_python_example_runs(page, block, tmp_path, monkeypatch):
    if trainer := trainer_of(block):
        pytest.importorskip(trainer, reason=f"{trainer} is not installed")
    if "tf_impl" in block:
        pytest.importorskip("torch")  # first, where both are there
        pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", script)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(("page", "module", "words"), COMMANDS, ids=number(COMMANDS))
def test_a_command_is_one_its_program_takes(page, module, words, monkeypatch):
    assert configuration(module, shlex.split(words.partition(" > ")[0], comments=True), monkeypatch)


@pytest.mark.parametrize(("page", "script", "words"), SCRIPTS, ids=number(SCRIPTS))
def test_a_script_of_the_tests_has_the_flags_a_page_gives_it(page, script, words):
    """As far as its text says: an argument of its parser, or a keyword that becomes one."""
    source = (ROOT / script).read_text("utf-8")
    flags = [word[2:] for word in shlex.split(words, comments=True) if word.startswith("--")]
    known = [rf"\"--{flag}\"|\b{flag.replace('-', '_')}\b *[:=]" for flag in flags]
    assert [flag for flag, pattern in zip(flags, known, strict=True) if not re.search(pattern, source)] == []


def test_extras_to_install_are_there():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = re.findall(r"-e \"\.\[([\w,]+)\]", "".join(PAGES.values()))
    assert asked and {extra for each in asked for extra in each.split(",")} <= set(
        config["options.extras_require"]
    )


def test_a_file_shown_as_json_is_a_rule():
    shown = [body for _, language, body in BLOCKS if language == "json"]
    assert shown and all(Rule.from_json(body).constants for body in shown)


def fault(formula: str) -> str:
    """What would keep a formula from being drawn; "" for nothing."""
    bare = re.sub(r"\\[{}]", "", formula)
    depths = list(itertools.accumulate({"{": 1, "}": -1}.get(letter, 0) for letter in bare))
    if min(depths) < 0 or depths[-1]:
        return "braces"
    for pair in (("begin", "end"), ("left", "right")):
        if len({len(re.findall(rf"\\{word}(?![a-z])", bare)) for word in pair}) == 2:
            return " without ".join(pair)
    # Outside blocks GitHub takes a backslash before punctuation for Markdown's own and drops it.
    return "" if "\n" in formula or not re.search(r"\\[^A-Za-z\s]", formula) else "backslash"


def test_formulas_can_be_drawn():
    assert len(FORMULAS) > 50
    assert [(page, formula) for page, formula in FORMULAS if fault(formula)] == []
    broken = ("x_{t", "x}{", r"\begin{a} x", r"\left( x )", r"s\,x")
    assert [bool(fault(formula)) for formula in broken] == [True] * 5 and not fault(
        r"h \leftarrow \{x\}" + "\n"
    )


def test_a_row_to_add_is_python():
    rows = [body for page, language, body in BLOCKS if language == "python" and page == ROWS]
    assert len(rows) >= 5
    for body in rows:
        ast.parse(f"{{{body}}}" if body.startswith('"') else body)


def test_make_knows_the_targets():
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    asked = {found[1] for _, line in LINES if (found := re.match(r"make ([\w-]+)", line))}
    assert asked and asked <= known


def test_the_pages_have_examples_and_commands():
    assert len(EXAMPLES) >= 10 and len(COMMANDS) >= 60
    assert {language for _, language, _ in BLOCKS} <= LANGUAGES


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower().replace("`", "")) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


def broken_links(page: str, text: str) -> list[str]:
    """Links of a page to files and headings that are not there; those to other sites are not looked at."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(page, PAGES[page]) == []


def test_broken_links_are_seen():
    text = "[a](nowhere.md) [b](README.md#not-there) [c](CONTRIBUTING.md) [d](https://example.com/x)"
    assert broken_links("README.md", text) == ["nowhere.md", "README.md#not-there"]


def test_every_section_that_is_cited_exists():
    missing = set()
    for name in TRACKED:
        if name.endswith((".py", ".md", ".c", ".h")):
            # A citation may be broken over two lines of a comment or docstring.
            text = re.sub(r"\s*\n\s*(?:#|//|\*)?\s*", " ", (ROOT / name).read_text("utf-8"))
            for document, section, part in CITED.findall(text):
                page = PAGES[HOME[document]]
                start = re.search(rf"^## {section}\. .*$", page, re.MULTILINE)
                if not start or (part and f"{part}" not in page[start.end() :].partition("\n## ")[0]):
                    missing.add((name, document, section, part))
    assert not missing


def test_notebooks_hold_no_outputs():
    names = [name for name in TRACKED if name.endswith(".ipynb")]
    assert names
    for name in names:
        notebook = json.loads((ROOT / name).read_text("utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), name
        said = "\n".join(line for cell in notebook["cells"] for line in cell["source"] if cell not in code)
        assert broken_links(name, said) == []


def test_the_readme_is_short():
    assert len(PAGES["README.md"]) <= README_LENGTH


def test_pages_and_pictures_are_in_the_wheel():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = {key: value.split() for key, value in config["options.package_data"].items()}
    outside = []
    for name in TRACKED:
        top, *rest = name.split("/")
        if top in PACKAGES and name.endswith((".md", ".svg")):
            inside = patterns["*"] + patterns.get(".".join(name.split("/")[:-1]), [])
            if not any(fnmatch.fnmatch(rest[-1], pattern) for pattern in inside):
                outside.append(name)
    assert outside == []
