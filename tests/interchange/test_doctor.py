"""The doctor: versions as installed, engines with what they need."""

import json

import numpy as np

from common import kernels
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
    assert doctor.engines()["operon"] == "needs pyoperon: pip install symbolic-l2o[operon]"
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "numpy             -" in lines
    assert any(line.startswith("linear            runs here: ") for line in lines)
