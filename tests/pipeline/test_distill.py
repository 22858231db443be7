"""``python -m interchange.distill``: from a recording to a front of rules, and every way it can fail."""

import csv
import dataclasses
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.registry import Registry
from common.run.storage import RunLock
from interchange.commands.record import RecordConfig
from interchange.distill.config import DistillConfig
from interchange.distill.refit import score
from interchange.distill.run import distill
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.schema import TRAJECTORIES
from interchange.files.trajectories import Samples, Trajectories, load_trajectories, save_trajectories
from interchange.language import expression as ex
from interchange.language.operators import TEMPORAL
from interchange.language.parse import parse
from interchange.rule.front import FRONT_COLUMNS, read_front
from interchange.rule.rule import Rule
from interchange.search import ENGINES, child
from interchange.search.samples import sequences

pytest.importorskip("torch")

from torch_impl.record import record

KNOWN = Rule.from_text(
    "c0 * tanh(c1 * g) + c2 * ema(g, c3)",
    {"c0": -0.6, "c1": 4.0, "c2": -5.0, "c3": 0.8},
    {"m": "ema(g, 0.95)"},
    scale=0.01,
)


SECONDS, LARGEST = 6.0, 20
DISTILL = "interchange.distill"


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Trajectories of a known rule."""
    folder = tmp_path_factory.mktemp("recording")
    KNOWN.save(folder / "known.json")
    source, out = f"rule:{folder / 'known.json'}", str(folder / "trajectories.h5")
    settings = {"runs": 5, "steps": 40, "samples": 8_000, "seed": 2, "quiet": True}
    return record(RecordConfig(source=source, problem="quadratic", out=out, **settings))


def distilled_from(file: Path, **settings) -> tuple[list[Rule], Rule]:
    return distill(DistillConfig(trajectories=str(file), **{"threads": 1, "quiet": True} | settings))


@pytest.fixture(scope="module")
def distilled(recording) -> tuple[Path, list[Rule], Rule]:
    """The folder, the front and the best rule of one search."""
    pytest.importorskip("pyoperon", reason="pyoperon is not installed: pip install symbolic-l2o[operon]")
    return recording.parent / "rules", *distilled_from(recording, time=SECONDS, max_size=LARGEST, seed=1)


@pytest.fixture
def found(monkeypatch) -> Callable[..., None]:
    """found(TEXT, ...) lets every search end at once with these equations."""

    def texts(*equations: str) -> None:
        nodes = [parse(text) for text in equations]
        monkeypatch.setattr("interchange.distill.jobs.run_engine", lambda *_, **__: nodes)

    return texts


def test_a_known_rule_is_found_again(recording, distilled):
    _, front, best = distilled
    data = sequences(load_trajectories(recording), "test")
    assert score(best, data) > 0.95 and score(best, data) == best.provenance["r2"]["test"]
    assert best.scale == KNOWN.scale
    assert max(rule.provenance["r2"]["valid"] for rule in front) == front[-1].provenance["r2"]["valid"]


def test_the_best_is_the_shortest_rule_within_a_hundredth_of_the_highest_r2(distilled):
    folder, front, best = distilled
    limit = front[-1].provenance["r2"]["valid"] - 0.01
    assert best == next(rule for rule in front if rule.provenance["r2"]["valid"] >= limit)
    assert Rule.load(folder / "best.json") == best


def test_the_front_grows_in_size_and_in_r2(distilled):
    folder, front, _ = distilled
    with (folder / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == FRONT_COLUMNS and len(rows) == len(front) > 2
    sizes, r2 = [int(row["complexity"]) for row in rows], [float(row["r2"]) for row in rows]
    assert sizes == sorted(set(sizes)) and sizes[-1] <= LARGEST
    assert r2 == sorted(set(r2)) and r2[0] > 0.0
    for row, rule in zip(rows, read_front(folder), strict=True):
        assert (int(row["complexity"]), float(row["r2"])) == (rule.complexity, rule.provenance["r2"]["valid"])


def test_every_rule_file_loads_with_its_hash_and_says_where_it_comes_from(recording, distilled):
    folder, front, _ = distilled
    names = {f"rule_{k:03d}.json" for k in range(len(front))}
    assert {path.name for path in folder.iterdir()} == names | {"front.csv", "best.json", "lock"}
    trajectories = load_trajectories(recording)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing hash is a warning
        rules = [Rule.load(folder / name) for name in sorted(names)]
    for rule in rules:
        assert rule.provenance.keys() == {"engine", "seed", "trajectories_sha256", "rule_sha256", "r2"}
        assert rule.provenance["engine"] == f"auto (pyoperon {version('pyoperon')})"
        assert rule.provenance["seed"] == 1
        assert rule.provenance["trajectories_sha256"] == trajectories.sha256
        assert rule.provenance["rule_sha256"] == KNOWN.sha256
        assert rule.provenance["r2"].keys() == {"train", "valid", "test"}
        assert list(rule.constants) == [f"c{k}" for k in range(len(rule.constants))]
        assert set(rule.features) <= {"g", "m"} and None not in rule.features.values()
        assert rule.features.get("m") in (None, KNOWN.features["m"])


def test_a_folder_with_a_front_is_replaced_only_on_demand(distilled, recording, refused):
    folder, *_ = distilled
    before = {path: path.read_bytes() for path in folder.iterdir()}
    message = refused(f"{DISTILL} {recording} --quiet")
    assert f"--out {folder} holds a front; replace it with --overwrite" in message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_second_search_for_a_folder_ends_at_once_and_leaves_it_alone(
    recording, tmp_path, refused, monkeypatch
):
    folder = tmp_path / "rules"
    monkeypatch.setattr("interchange.distill.run.search_front", lambda *_: pytest.fail("searched"))
    with RunLock(folder):
        assert f"{folder} is in use by pid" in refused(f"{DISTILL} {recording} --out {folder}")
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_overwriting_leaves_no_rule_of_the_front_before(distilled, recording, tmp_path, found):
    """A shorter front over a longer one: its last files would belong to no front."""
    folder = tmp_path / "rules"
    shutil.copytree(distilled[0], folder)
    found("-1.0 * g")
    front, _ = distilled_from(recording, out=str(folder), overwrite=True)
    assert len(front) < len(distilled[1])
    assert len(list(folder.glob("rule_*.json"))) == len(front) == len(read_front(folder))


ENGINE = """
import os, sys, time
class SymbolicRegressor:
    def __init__(self, **settings):
        self.settings = settings
    def fit(self, rows, target):
        {body}
"""


FAULTS = {
    "it raises": ("raise ValueError('no such\\nsymbol: foo')", "failed with exit code 1: symbol: foo"),
    "it exits": ("os._exit(7)", "failed with exit code 7: no message"),
    "it crashes": ("os.kill(os.getpid(), 11)", "failed with exit code -11: no message"),
    "it ends early": ("print('half', file=sys.stderr); sys.exit(0)", "failed with exit code 0: half"),
    "it hangs": ("time.sleep(600)", "over its limit and was killed"),
}


@pytest.mark.parametrize(("body", "message"), FAULTS.values(), ids=FAULTS)
def test_an_engine_that_fails_is_one_clear_line(body, message, recording, tmp_path, monkeypatch, refused):
    """A package called as the engine's, ahead of it on the path; the search's child finds it there."""
    (tmp_path / "pyoperon").mkdir()
    (tmp_path / "pyoperon" / "__init__.py").touch()
    (tmp_path / "pyoperon" / "sklearn.py").write_text(ENGINE.format(body=body))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(child, "_GRACE", 1.0 if "sleep" in body else 60.0)
    out = tmp_path / "rules"
    told = refused(f"{DISTILL} {recording} --engine operon --time 1 --out {out} --quiet")
    assert "engine 'operon' " in told and message in told
    assert not out.exists()


def test_without_the_engines_package_the_message_names_the_extra(recording, tmp_path, monkeypatch, refused):
    row = dataclasses.replace(ENGINES["operon"], package="no_such_package_anywhere")
    monkeypatch.setattr("interchange.search.ENGINES", Registry("engine", dict(ENGINES) | {"operon": row}))
    message = refused(f"{DISTILL} {recording} --engine operon --out {tmp_path / 'rules'} --quiet")
    assert "engine 'operon' needs no_such_package_anywhere: pip install symbolic-l2o[operon]" in message
    assert not list(tmp_path.iterdir())


def test_an_empty_result_is_an_error_that_says_what_to_do(recording, tmp_path, found):
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    found("1.0")
    with pytest.raises(L2OError, match="no rule of at most 40 nodes was found; raise --time or --max-size"):
        distilled_from(recording, out=str(tmp_path))


def changed(recording: Path, file: Path, name: str, value: float) -> None:
    """A copy with one value of every run's array ``name`` replaced; hashes fit, nothing else is checked."""
    tree = read_hdf5(recording, TRAJECTORIES.format, TRAJECTORIES.version)
    for path in [path for path in tree.arrays if path.endswith(f"/{name}")]:
        tree.arrays[path] = tree.arrays[path].copy()
        tree.arrays[path].flat[3] = value
    write_hdf5(file, tree, TRAJECTORIES.format, TRAJECTORIES.version)


def truncated(recording: Path, file: Path) -> None:
    file.write_bytes(recording.read_bytes()[:-5000])


def flipped(recording: Path, file: Path) -> None:
    data = bytearray(recording.read_bytes())
    target = next(iter(load_trajectories(recording).runs.values())).y
    data[data.index(target[20].tobytes())] ^= 1
    file.write_bytes(data)


BROKEN = {
    "nan in the targets": (lambda a, b: changed(a, b, "y", np.nan), "y: expected finite targets, got nan at"),
    "inf in the features": (lambda a, b: changed(a, b, "x", np.inf), "x: expected finite features, got inf"),
    "truncated": (truncated, "expected a whole HDF5 file"),
    "one bit flipped": (flipped, "its content has not the SHA-256"),
    "empty": (lambda a, b: b.touch(), "expected a whole HDF5 file"),
    "a rule": (lambda a, b: KNOWN.save(b), "expected a whole HDF5 file"),
    "missing": (lambda a, b: None, "No such file"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_recording_is_one_line_and_nothing_is_written(damage, message, recording, tmp_path, refused):
    file = tmp_path / "broken.h5"
    damage(recording, file)
    before = list(tmp_path.iterdir())
    told = refused(f"{DISTILL} {file} --time 1 --quiet")
    assert message in told and str(file) in told
    assert list(tmp_path.iterdir()) == before


def test_runs_that_diverged_leave_too_few(recording, tmp_path, monkeypatch):
    trajectories = load_trajectories(recording)
    (name,) = trajectories.split["test"]
    runs = trajectories.runs | {name: dataclasses.replace(trajectories.runs[name], diverged=True)}
    broken = dataclasses.replace(trajectories, runs=runs)
    monkeypatch.setattr("interchange.files.trajectories.load_trajectories", lambda path: broken)
    with pytest.raises(L2OError, match="split 'test' that did not diverge, got none; record more runs"):
        distilled_from("any", out=str(tmp_path / "rules"))


@pytest.fixture
def table(tmp_path) -> Path:
    """Independent rows of y = 0.5 tanh(2 a) - b."""
    x = np.random.default_rng(0).normal(size=(600, 3))
    y = 0.5 * np.tanh(2.0 * x[:, 0]) - x[:, 1]
    features = {"a": "g", "b": "lag(g, 1)", "noise": ""}
    trajectories = Trajectories(features, {}, samples=Samples(x, y, np.ones(3), 0.1))
    save_trajectories(tmp_path / "table.h5", trajectories)
    return tmp_path / "table.h5"


def test_a_table_of_samples_is_distilled_without_lags_and_averages(table, monkeypatch):
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    seen = []

    def engine(name, task, *others, **more):
        seen.append(task.rows.shape)
        return child.run_engine(name, task, *others, **more)

    monkeypatch.setattr("interchange.distill.jobs.run_engine", engine)
    front, best = distilled_from(table, time=4.0, max_size=15, seed=1)
    assert sorted(set(seen)) == [(382, 3), (383, 3)] and len(seen) == 4  # of 510 rows all but a fold's
    assert best.provenance["r2"]["test"] > 0.99 and best.scale == 0.1
    used = {node.op for rule in front for node in ex.walk(rule.expression)}
    assert not used & TEMPORAL
    assert set(best.features) <= {"a", "b"} and best.program()
    assert best.provenance.keys() == {"engine", "seed", "trajectories_sha256", "r2"}
    x = load_trajectories(table).samples.x
    inputs = {name: x[None, :, k] for k, name in enumerate(("a", "b")) if name in best.features}
    want = 0.1 * (0.5 * np.tanh(2.0 * x[:, 0]) - x[:, 1])
    np.testing.assert_allclose(best.evaluate(inputs)[0], want, atol=0.02)


def test_rollouts_for_a_table_need_a_problem(table, refused):
    message = refused(f"{DISTILL} {table} --select rollout --time 1")
    assert "rollouts need --problem, because the recording names none" in message


def test_selection_by_rollout_takes_the_lowest_loss_of_the_front(recording, tmp_path, found):
    pytest.importorskip("pyoperon", reason="pyoperon is not installed")
    found("-1.0 * g", "-1.0 * tanh(3.0 * g) - 4.0 * ema(g, 0.9)")
    front, best = distilled_from(recording, out=str(tmp_path), select="rollout")
    losses = [rule.provenance["loss"]["valid"] for rule in front]
    assert best.provenance["loss"]["valid"] == min(losses) and len(front) > 1
    assert Rule.load(tmp_path / "best.json") == best
    assert [rule.provenance["loss"] for rule in read_front(tmp_path)] == [r.provenance["loss"] for r in front]
    assert front[0].provenance["loss"]["problem"] == "quadratic"
