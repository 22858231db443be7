"""The most natural first use: one's own optimizer, recorded and distilled."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from interchange import Rule
from interchange.rule.compare import compare
from interchange.rule.safety import singular

ROOT = Path(__file__).parents[2]


def example(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's example that distills, run in a folder of its own."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "distill(" in block]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "example.py"
    path.write_text(block)
    spec = importlib.util.spec_from_file_location("example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorder_example_yields_adam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    ran = example("torch_impl/README.md", tmp_path, monkeypatch)
    text, same = compare(ran.best, Rule.named("adam"))
    assert same, text
    assert not any(map(singular, ran.front))
