"""The doctor: versions as installed, engines with what they need."""

import json
import sys

import numpy as np

from common import kernels
from common.extras import install
from interchange import doctor
from interchange.search import ENGINES
from interchange.search.pysr import missing


def test_json_has_versions_and_engines(capsys):
    assert doctor.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["compiled"] == kernels.missing()
    assert said["versions"]["numpy"] == np.__version__
    assert said["engines"]["pysr"] == missing() and said["engines"]["linear"] == ""
    assert set(said["engines"]) == set(ENGINES)


def test_what_is_not_installed_is_said_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "")
    monkeypatch.setitem(sys.modules, "pyoperon", None)
    told = f"needs pyoperon, which is not installed: {install('operon')}"
    assert doctor.engines()["operon"] == told
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "numpy             -" in lines
    assert any(line.startswith("linear            runs here: ") for line in lines)
