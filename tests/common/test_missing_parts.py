"""What every command answers where a package is not installed: one line with the command that installs it."""

import importlib.util
import json

import numpy as np
import pytest

from common.extras import EXTRAS, MissingPartError, install, missing, require
from common.run.doors import COMMANDS
from interchange.emit import TARGETS
from interchange.files.trajectories import Trajectories, save_trajectories
from interchange.rule.rule import Rule
from tests.helpers.commands import user_run
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
    "paper": "--scale smoke",
}  # fmt: skip


# Many commands in one process: the exit code and what stderr has, of each.
MANY = """
import contextlib, io, json, sys
blocked, lines = map(json.loads, sys.argv[1:])
for name in blocked:
    sys.modules[name] = None
from common.run.doors import l2o
found = []
for words in lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = l2o(words)
    found.append((code, err.getvalue()))
print(json.dumps(found))
"""
RUN = ["rule show", "rule check adam", "inspect {rule}", "doctor"]
RUN += [f"export adam --to {target}" for target in TARGETS if target != "onnx"]
REFUSED = {  # a command without any optional package -> the extra that it asks for
    "distill {rec}": "operon",
    "distill {rec} --engine operon": "operon",
    "distill {rec} --engine pysr": "pysr",
    "distill {rec} --engine linear --select rollout": "torch",
    "distill {rec} --engine linear --select rollout --backend tf": "tf",
    "distill {rec} --engine linear --restarts 2 --cluster dask": "dask",
    "distill {rec} --engine linear --restarts 2 --cluster ray": "ray",
    "analysis sgd --trajectories {rec} --out {out}": "report",
    "export adam --to onnx -o {out}": "onnx",
    "export teacher:rp_s --to onnx -o {out}": "onnx",
    "torch train": "torch",
    "tf train": "tf",
}


def test_without_any_optional_package_the_shared_commands_run_or_say_what_they_need(tmp_path):
    steps = np.arange(30.0)[:, None]
    g = np.sin(steps + np.arange(4.0))
    runs = {f"{k}": user_run(f"{k}", g[..., None], g, -0.5 * g) for k in range(3)}
    split = {name: (run,) for name, run in zip(("train", "valid", "test"), runs, strict=True)}
    places = {"rec": tmp_path / "trajectories.h5", "out": tmp_path / "out", "rule": tmp_path / "rule.json"}
    Rule.named("adam").save(places["rule"])
    save_trajectories(places["rec"], Trajectories({"g": "g"}, runs, split))
    lines = [line.format(**places).split() for line in (*RUN, *REFUSED)]
    found = json.loads(said(MANY, json.dumps(list(EXTRAS)), json.dumps(lines)))
    found = [(code, without_heartbeat(err)) for code, err in found]
    for line, (code, err) in zip(RUN, found, strict=False):
        assert (code, err) == (0, ""), (line, err)
    for (line, extra), (code, err) in zip(REFUSED.items(), found[len(RUN) :], strict=True):
        assert (code, err.count("\n")) == (2, 1) and install(extra) in err, (line, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rule.json", "trajectories.h5"]


def answer(blocked: str, *words: str) -> tuple[int, str]:
    process = started(BLOCKED, blocked, *words)
    _, err = process.communicate(timeout=120)
    return process.returncode, without_heartbeat(err)


def without_heartbeat(err: str) -> str:
    """What a slow machine adds is left out."""
    return "".join(line for line in err.splitlines(keepends=True) if ": at work, " not in line)


@pytest.mark.parametrize(
    ("backend", "blocked", "extra"),
    [("torch", '["torch"]', "torch"), ("tf", '["tensorflow", "keras"]', "tf")],
)
def test_without_a_framework_each_of_its_commands_says_how_to_get_it(backend, blocked, extra, tmp_path):
    from interchange.rule.front import write_front

    write_front(tmp_path / "front", [Rule.named("sgd")])
    for command in COMMANDS[f"{backend}_impl"]:
        words = WORDS[command].format(front=tmp_path / "front").split()
        out = ["--out", str(tmp_path / command)]
        code, err = answer(blocked, backend, command, *words, *out)
        assert (code, err.count("\n")) == (2, 1), (command, err)
        assert install(extra) in err and not (tmp_path / command).exists()


def test_the_next_command_is_of_a_backend_that_is_installed(tmp_path):
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\nfrom pathlib import Path\n"
        "from interchange.distill import run\nfrom interchange.rule.rule import Rule\n"
        "print(run._following(Rule.named('sgd'), run.DistillConfig(backend=sys.argv[2]), Path('rules')))"
    )
    installed = [name for name in ("torch", "tensorflow") if importlib.util.find_spec(name)]
    for framework, backend, other in (("torch", "torch", "tf"), ("tensorflow", "tf", "torch")):
        if len(installed) == 2:
            assert said(code, framework, backend) == f"python -m {other}_impl.select rules"
            assert said(code, framework, other) == f"python -m {other}_impl.select rules"


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
