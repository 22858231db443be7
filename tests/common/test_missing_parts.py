"""What every command answers where a package is not installed: one line with the command that installs it."""

import pytest

from common.extras import EXTRAS, MissingPartError, install, missing, require
from common.run.doors import COMMANDS
from tests.helpers.processes import said, started

# A module that is None in sys.modules cannot be imported, and is not found.
BLOCKED = """
import json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from common.run.doors import l2o
code = l2o(sys.argv[2:])
sys.exit(code)
"""
WORDS = {
    "train": "--epochs 1", "record": "sgd --problem quadratic", "select": "{front}", "tune": "psi",
    "evaluate": "--problem quadratic", "optimize": "sgd --problem quadratic", "demo": "", "convert": "x.pth",
}  # fmt: skip


def answer(blocked: str, *words: str) -> tuple[int, str]:
    process = started(BLOCKED, blocked, *words)
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines(keepends=True) if ": at work, " not in line]  # a slow machine
    return process.returncode, "".join(lines)


@pytest.mark.parametrize(
    ("backend", "blocked", "extra"),
    [("torch", '["torch"]', "torch"), ("tf", '["tensorflow", "keras"]', "tf")],
)
def test_without_a_framework_each_of_its_commands_says_how_to_get_it(backend, blocked, extra, tmp_path):
    from interchange.rule.front import write_front
    from interchange.rule.rule import Rule

    write_front(tmp_path / "front", [Rule.named("sgd")])
    for command in COMMANDS[f"{backend}_impl"]:
        words = WORDS[command].format(front=tmp_path / "front").split()
        out = ["--out", str(tmp_path / command)]
        code, err = answer(blocked, backend, command, *words, *out)
        assert (code, err.count("\n")) == (2, 1), (command, err)
        assert install(extra) in err and not (tmp_path / command).exists()


def test_names_of_a_package_whose_framework_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    from torch_impl import SymbolicOptimizer\n"
        "except ImportError as error:\n    print(error)"
    )
    assert (
        said(code) == f"torch_impl.SymbolicOptimizer needs torch, which is not installed: {install('torch')}"
    )


def test_without_pyoperon_without_matplotlib_and_without_a_rollouts_backend(tmp_path):
    code, err = answer('["pyoperon"]', "torch", "demo", "--out", str(tmp_path / "demo"))
    assert code == 2 and err.count("\n") == 1 and install("operon") in err
    code, err = answer('["matplotlib"]', "torch", "demo", "--out", str(tmp_path / "demo"))
    assert code == 2 and err.count("\n") == 1 and install("report") in err
    assert not (tmp_path / "demo").exists()


def test_without_onnx_and_without_a_compiler(tmp_path):
    code, err = answer('["onnx"]', "export", "adam", "--to", "onnx", "-o", str(tmp_path / "a.onnx"))
    assert code == 2 and err.count("\n") == 1 and install("onnx") in err
    words = ["torch", "optimize", "rnnprop_tuned", "--problem", "quadratic", "--steps", "3", "--quiet"]
    process = started(BLOCKED, "[]", *words, "--out", tmp_path / "run", CC="no-such-compiler")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == ""  # the framework's own operations do the same, slower


def test_the_command_is_quoted_and_names_the_checkout(tmp_path, monkeypatch):
    assert all(install(extra).endswith(f'[{extra}]"') for extra in EXTRAS.values())
    assert missing("numpy") == missing(None) == "" and missing("torch.nn").startswith("needs torch, ")
    monkeypatch.chdir(tmp_path)
    assert '-e "/' in install("torch")
    with pytest.raises(MissingPartError, match="a demo needs ray"):
        monkeypatch.setitem(__import__("sys").modules, "ray", None)
        require("a demo", "ray")
