"""The API's pages are made anew and hold every public name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("interchange", "torch_impl", "tf_impl")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str):
    module = importlib.import_module(package)
    silent = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert module.__all__ and not silent


@pytest.mark.slow
def test_make_reference_writes_a_page_of_every_module(tmp_path: Path):
    words = ["make", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", f"REFERENCE={tmp_path}"]
    said = subprocess.run([*words, "reference"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    for package in ("common", *PACKAGES):
        for path in (ROOT / package).rglob("*.py"):
            if path.name not in ("__init__.py", "__main__.py"):
                page = (tmp_path / path.relative_to(ROOT)).with_suffix(".html")
                assert page.is_file() and path.stem in page.read_text("utf-8")
    pages = "".join((tmp_path / f"{package}.html").read_text("utf-8") for package in PACKAGES)
    for package in PACKAGES:
        assert all(name in pages for name in importlib.import_module(package).__all__)
