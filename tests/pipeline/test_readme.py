"""The README's Python examples run as they stand, and its commands are ones the programs take."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from common.run import cli

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = re.findall(r"^python -m (\S+) +(.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
COMMANDS += re.findall(r"`python -m (\S+) +([^`]+)`", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_example_runs(block, tmp_path, monkeypatch):
    if "tf_impl" in block:
        pytest.importorskip("torch")  # first, where both are there
        pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", script)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_a_command_is_one_its_program_takes(module, words, monkeypatch):
    folder = importlib.util.find_spec(module).submodule_search_locations
    main = importlib.import_module(f"{module}.__main__" if folder else module).main
    taken = []

    def stand_in(cls, body, argv, **keywords):
        shape = {k: v for k, v in keywords.items() if k not in ("required", "alone")}
        flags = vars(cli.parser_for(cls, **shape).parse_intermixed_args(argv))
        taken.append(
            cli.resolve(
                cls, {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items() if k != "config"}
            )
        )
        return 0

    shared = re.sub("^(torch|tf)_impl", "interchange.commands", module)
    home = shared if importlib.util.find_spec(shared) and shared != module else main.__module__
    monkeypatch.setattr(importlib.import_module(home), "run_command", stand_in)
    assert main(shlex.split(words, comments=True)) == 0
    assert taken


def test_examples_and_commands_are_found():
    assert len(BLOCKS) >= 2
    assert len(COMMANDS) >= 30
