"""``python -m interchange.sanity --trajectories``: recordings are distilled and judged on test runs."""

import json

import numpy as np
import pytest

from common.errors import L2OError
from interchange.files.trajectories import Trajectories, load_trajectories, save_trajectories
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from interchange.sanity import __main__ as sanity
from interchange.sanity import search as sanity_search
from interchange.sanity import teachers as sanity_teachers
from interchange.sanity.__main__ import Found, SanityConfig
from tests.helpers.commands import call, user_run

TRUTH = Rule.from_text("-(0.5 * ema(g, 0.8) + 0.1 * g)")
SPLIT = {"train": ("000000", "000001", "000002"), "valid": ("000003",), "test": ("000004",)}


@pytest.fixture
def recording(tmp_path):
    """Writes five runs of one known rule on noise, recorded from what ``source`` says."""

    def write(name: str, source: dict, kind: str = "teacher", splits=SPLIT) -> str:
        told, runs = {"source_kind": kind, "source_json": json.dumps(source)}, {}
        for k in range(5):
            g = np.random.default_rng(k).normal(size=(40, 6))
            y = TRUTH.evaluate({"g": g})
            runs[f"{k:06d}"] = user_run(f"{k:06d}", g[..., None], g, y, seed=k, init_seed=k, **told)
        save_trajectories(tmp_path / name, Trajectories({"g": "g"}, runs, splits))
        return str(tmp_path / name)

    return write


def test_a_recording_is_distilled_beside_the_papers_figure(recording, tmp_path, capsys):
    file = tmp_path / "table.json"
    one = recording("a.h5", {"name": "rp_si"})
    other = recording("b.h5", {"name": "adam", "beta1": 0.9, "beta2": 0.9})
    options = f"--engine linear --time 4 --threads 1 --seeds 1 --json {file}"
    assert call(f"interchange.sanity --trajectories {one} {other} {options}") == 0
    out, err = capsys.readouterr()
    assert "2/2" in err and "rp_si, seed 0" in err
    payload = json.loads(file.read_text())
    assert (payload["format"], payload["format_version"], payload["rows"]) == ("l2o-sanity", 1, [])
    first, second = payload["teachers"]
    keys = "teacher problem sha256 r2_25 r2_50 nodes seconds bars passed paper_r2 runs"
    assert set(first) == set(keys.split())
    assert (first["teacher"], first["problem"], second["teacher"]) == ("rp_si", "quadratic", "adam(0.9, 0.9)")
    assert first["r2_25"] > 0.999 and first["r2_50"] >= first["r2_25"] - 1e-6
    assert first["nodes"] <= 9 and 0.0 < first["seconds"] < 30.0
    assert (first["bars"], first["passed"], first["paper_r2"]) == ([0.92, 0.97], [True, True], [0.94, 0.94])
    assert (second["bars"], second["passed"], second["paper_r2"]) == (None, None, [0.25, 0.31])
    sizes = [point["nodes"] for point in first["runs"][0]["front"]]
    assert sizes == sorted(sizes) and max(sizes) <= 50
    head, line, other = out.splitlines()
    assert head.split()[:4] == ["recording", "R2", "<=", "25"]
    assert line.split()[0] == "rp_si" and line.endswith("0.92 met / 0.97 met    0.94 / 0.94")
    assert other.startswith("adam(0.9, 0.9)") and other.split()[-4:] == ["-", "0.25", "/", "0.31"]


def test_with_rules_asked_for_both_tables_are_printed(recording, monkeypatch, capsys):
    monkeypatch.setattr(sanity_search, "find", lambda *_: Found("g", 1.0, 1.0, 3, 1.0, True))
    monkeypatch.setattr(sanity_teachers, "search_front", lambda *_: [scored(5, 0.9, 0.8)])
    file = recording("a.h5", {"name": "dm"})
    assert call(f"interchange.sanity --rules sgd --trajectories {file} --seeds 1") == 0
    above, below = capsys.readouterr().out.split("\n\n")
    assert above.startswith("rule ") and below.startswith("recording ")


def scored(nodes: int, valid: float, test: float) -> Rule:
    """A rule of so many nodes (odd) with R2 as given."""
    text = " + ".join(["g"] * ((nodes + 1) // 2))
    return Rule("r", parse(text, ("g",)), provenance={"r2": {"valid": valid, "test": test}})


def test_the_best_by_validation_is_judged_on_test_runs():
    front = [scored(5, 0.5, 0.96), scored(9, 0.7, 0.6), scored(25, 0.6, 0.99), scored(49, 0.9, 0.94)]
    result = sanity_teachers.summary(front, 3.0)
    assert (result.r2_25, result.r2_50, result.nodes, result.seconds) == (0.6, 0.94, 5, 3.0)
    result = sanity_teachers.summary([scored(27, 0.9, 0.9)], 3.0)
    assert (result.r2_25, result.r2_50, result.nodes) == (None, 0.9, None)


def test_a_seed_without_such_a_rule_counts_as_the_worst(recording):
    trajectories = load_trajectories(recording("a.h5", {"name": "rnnprop"}))
    fronts = [[scored(27, 0.9, 0.96)], [scored(5, 0.9, 0.9)], [scored(9, 0.95, 0.98)]]
    runs = [sanity_teachers.summary(front, 1.0) for front in fronts]
    row = sanity_teachers._row("rnnprop", trajectories, runs)
    assert (row["r2_25"], row["r2_50"], row["nodes"], row["passed"]) == (0.9, 0.96, 27, [True, True])
    row = sanity_teachers._row("rnnprop", trajectories, [runs[0], runs[0], runs[1]])
    assert (row["r2_25"], row["nodes"], row["passed"]) == (None, 27, [False, True])
    line = sanity_teachers.table_text([row]).splitlines()[1]
    assert line.split()[1:3] == ["-", "0.9600"] and "0.88 MISSED / 0.95 met" in line


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ({"name": "dm_raw"}, "teacher", "dm_raw"),
        ({"name": "momentum", "lr": 0.04, "momentum": 0.5}, "baseline", "momentum(0.5)"),
        ({"name": "momentum", "lr": 0.04, "momentum": 0.9}, "baseline", "momentum"),
        ({"rule": "momentum", "constants": {"beta": 0.5}}, "rule", "momentum(0.5)"),
        ({"rule": "adam", "constants": {"beta1": 0.9, "beta2": 0.9}}, "rule", "adam(0.9, 0.9)"),
        ({"rule": "adam", "constants": {"beta1": 0.9, "beta2": 0.99}}, "rule", "adam"),
        ({}, "user", "a"),
    ],
)
def test_a_recording_is_called_what_was_recorded(source, kind, name, recording):
    file = recording("a.h5", source, kind)
    assert list(sanity_teachers.load([file])) == [name]
    first, *others = sanity_teachers.load([file] * 3)
    assert first == name and len(others) == 2


def test_a_recording_that_cannot_be_used_is_one_line(recording, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(sanity, "parallel", lambda *_: pytest.fail("searched"))
    good, few = recording("a.h5", {}), recording("b.h5", {}, splits={"train": ("000000",)})
    (tmp_path / "c.h5").write_bytes(b"no HDF5")
    for bad in (few, str(tmp_path / "c.h5")):
        assert bad in refused(f"interchange.sanity --trajectories {good} {bad}")


def test_rows_do_not_depend_on_which_job_ends_first(recording, monkeypatch):
    files = [recording("a.h5", {"name": "dm"}), recording("b.h5", {"name": "rp_s"})]
    seen = []

    def front(trajectories, config, started):
        seen.append((config.trajectories, config.seed, config.max_size, config.time, config.threads))
        return [scored(5 + 2 * config.seed + 10 * (config.trajectories == "rp_s"), 0.9, 0.96)]

    def backwards(function, jobs):
        return (function(*job) for job in reversed(jobs))

    monkeypatch.setattr(sanity_teachers, "search_front", front)
    config = SanityConfig(trajectories=tuple(files), seeds=2, threads=3, quick=False)
    rows = sanity_teachers.measure(sanity_teachers.load(files), config, backwards)
    assert [row["teacher"] for row in rows] == ["dm", "rp_s"]
    assert [[run["nodes"] for run in row["runs"]] for row in rows] == [[5, 7], [15, 17]]
    assert seen[0] == ("rp_s", 1, 50, 60.0, 3)


def test_a_recording_without_rules_says_which(recording, monkeypatch, capsys):
    def front(*_):
        raise L2OError("no rule was found; raise --time")

    monkeypatch.setattr(sanity_teachers, "search_front", front)
    assert call(f"interchange.sanity --trajectories {recording('a.h5', {'name': 'dm'})} --seeds 2") == 2
    assert "dm, seed 0: no rule was found; raise --time\n" in capsys.readouterr().err
