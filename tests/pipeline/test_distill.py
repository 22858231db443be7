"""``python -m interchange.distill``: from a recording to a front of rules; how it is steered and fails."""

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from common.extras import install
from common.run.cli import Progress
from common.run.lock import RunLock
from interchange.commands.record import RecordConfig
from interchange.distill import config as distill_config
from interchange.distill import jobs as searching
from interchange.distill import rollouts
from interchange.distill import run as distilling
from interchange.distill.config import DistillConfig
from interchange.distill.jobs import LiveLine
from interchange.distill.refit import score
from interchange.distill.run import distill
from interchange.distill.sequences import make_task
from interchange.files.hdf5 import read_hdf5, write_hdf5
from interchange.files.schema import TRAJECTORIES
from interchange.files.trajectories import Samples, Trajectories, load_trajectories, save_trajectories
from interchange.language import expression as ex
from interchange.language.expression import to_text
from interchange.language.operators import TEMPORAL
from interchange.language.parse import parse
from interchange.rule.choice import knee, shortest_within
from interchange.rule.front import FRONT_COLUMNS, read_front
from interchange.rule.rule import Rule
from interchange.search import Task, child
from interchange.search.samples import sequences
from tests.helpers.commands import csv_rows

pytest.importorskip("torch")

from torch_impl.record import record

KNOWN = Rule.from_text(
    "c0 * tanh(c1 * g) + c2 * ema(g, c3)",
    {"c0": -0.6, "c1": 4.0, "c2": -5.0, "c3": 0.8},
    {"m": "ema(g, 0.95)"},
    scale=0.01,
)
EVALUATIONS, LARGEST = 10_000, 20  # not seconds: what a search finds in these hangs on the machine's load
DISTILL = "interchange.distill"
EMA, CLIPPED = "-2.0 * ema(clip_g, 0.5)", "-2.0 * clip_g"
NO_OPERON = "pyoperon is not installed"


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recording")
    KNOWN.save(folder / "known.json")
    source, out = f"rule:{folder / 'known.json'}", str(folder / "trajectories.h5")
    settings = {"runs": 5, "steps": 40, "samples": 8_000, "seed": 2, "quiet": True}
    return record(RecordConfig(source=source, problem="quadratic", out=out, **settings))


def distilled_from(file: Path, **settings) -> tuple[list[Rule], Rule]:
    return distill(DistillConfig(trajectories=str(file), **{"threads": 1, "quiet": True} | settings))


@pytest.fixture(scope="module")
def distilled(recording) -> tuple[Path, list[Rule], Rule]:
    pytest.importorskip("pyoperon", reason=NO_OPERON)
    settings = {"evaluations": EVALUATIONS, "max_size": LARGEST, "seed": 1}
    return recording.parent / "rules", *distilled_from(recording, **settings)


@pytest.fixture
def found(monkeypatch) -> Callable[..., None]:
    """found(TEXT, ...) lets every search end at once with these equations."""
    pytest.importorskip("pyoperon", reason=NO_OPERON)

    def texts(*equations: str) -> None:
        nodes = [parse(text) for text in equations]
        monkeypatch.setattr(searching, "run_engine", lambda *_, **__: nodes)

    return texts


def test_a_known_rule_is_found_again(recording, distilled):
    folder, front, best = distilled
    data = sequences(load_trajectories(recording), "test")
    assert score(best, data) > 0.95 and score(best, data) == best.provenance["r2"]["test"]
    assert best.scale == KNOWN.scale
    assert max(rule.provenance["r2"]["valid"] for rule in front) == front[-1].provenance["r2"]["valid"]
    assert best == shortest_within(front) == Rule.load(folder / "best.json")


def test_the_best_is_the_shortest_rule_within_a_hundredth_of_the_highest_r2():
    front = front_of((1, 0.2), (5, 0.961), (9, 0.969), (21, 0.97))
    assert shortest_within(front).complexity == 5
    assert shortest_within(front_of((1, 0.2), (5, 0.959), (9, 0.969), (21, 0.97))).complexity == 9
    # Where hardly anything is left it may leave three times as much.
    assert shortest_within(front_of((1, 0.2), (5, 0.9996), (9, 0.9998), (21, 0.9999))).complexity == 9


def test_the_front_grows_in_size_and_in_r2(distilled):
    folder, front, _ = distilled
    rows = csv_rows(folder / "front.csv")
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
    for name in sorted(names):
        rule = Rule.load(folder / name)  # where a missing hash is a warning
        kept = rule.provenance.keys() - {"exact"}
        assert kept == {"engine", "seed", "trajectories_sha256", "rule_sha256", "r2"}
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
    monkeypatch.setattr(distilling, "search_front", lambda *_: pytest.fail("searched"))
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
    monkeypatch.setitem(sys.modules, "pyoperon", None)
    message = refused(f"{DISTILL} {recording} --engine operon --out {tmp_path / 'rules'} --quiet")
    assert f"engine 'operon' needs pyoperon, which is not installed: {install('operon')}" in message
    assert not list(tmp_path.iterdir())


def test_an_empty_result_is_an_error_that_says_what_to_do(recording, tmp_path, found):
    found("1.0")
    for given, budget in (({}, "--time"), ({"evaluations": 100}, "--evaluations")):
        with pytest.raises(L2OError, match=f"no rule of at most 40 nodes was found; raise {budget} or --max"):
            distilled_from(recording, out=str(tmp_path), **given)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("y", np.nan, "y: expected finite targets, got nan at"),
        ("x", np.inf, "x: expected finite features, got inf"),
    ],
)
def test_a_broken_recording_is_one_line_and_nothing_is_written(
    name, value, told, recording, tmp_path, refused
):
    """Its content, that is, with hashes that fit; damaged files are in tests/security."""
    file = tmp_path / "broken.h5"
    tree = read_hdf5(recording, TRAJECTORIES.format, TRAJECTORIES.version)
    path = next(path for path in tree.arrays if path.endswith(f"/{name}"))
    tree.arrays[path] = tree.arrays[path].copy()
    tree.arrays[path].flat[3] = value
    write_hdf5(file, tree, TRAJECTORIES.format, TRAJECTORIES.version)
    message = refused(f"{DISTILL} {file} --time 1 --quiet")
    assert told in message and str(file) in message
    assert list(tmp_path.iterdir()) == [file]


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
    pytest.importorskip("pyoperon", reason=NO_OPERON)
    seen = []

    def engine(name, task, *others, **more):
        seen.append(task.rows.shape)
        return child.run_engine(name, task, *others, **more)

    monkeypatch.setattr(searching, "run_engine", engine)
    front, best = distilled_from(table, evaluations=EVALUATIONS, max_size=15, seed=1)
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
    found("-1.0 * g", "-1.0 * tanh(3.0 * g) - 4.0 * ema(g, 0.9)")
    front, best = distilled_from(recording, out=str(tmp_path), select="rollout")
    losses = [rule.provenance["loss"]["valid"] for rule in front]
    assert best.provenance["loss"]["valid"] == min(losses) and len(front) > 1
    assert Rule.load(tmp_path / "best.json") == best
    assert [rule.provenance["loss"] for rule in read_front(tmp_path)] == [r.provenance["loss"] for r in front]
    assert front[0].provenance["loss"]["problem"] == "quadratic"


@pytest.fixture
def config_of(of_dm, tmp_path) -> Callable[..., DistillConfig]:
    """A configuration for the recording of dm, small and quiet but for what is given."""
    pytest.importorskip("pyoperon", reason=NO_OPERON)
    settings = {"max_size": 15, "threads": 2, "quiet": True, "overwrite": True, "out": str(tmp_path)}
    return lambda **given: DistillConfig(**{"trajectories": of_dm} | settings | given)


@pytest.fixture(scope="module")
def of_dm(tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("dm") / "trajectories.h5")
    settings = {"runs": 5, "steps": 30, "samples": 2_000, "seed": 1, "quiet": True}
    return str(record(RecordConfig(source="teacher:dm", problem="quadratic", out=out, **settings)))


def task_of(config: DistillConfig, share: float = 1.0) -> Task:
    trajectories = load_trajectories(config.trajectories)
    return make_task(trajectories, sequences(trajectories, "train"), config, share)


@pytest.mark.slow  # the engine's own sameness is tested more often
def test_a_seed_and_a_number_of_evaluations_give_the_same_rules_again(config_of):
    """Whatever the clock says: the second run has three times the seconds, which neither needs."""

    def texts(seconds: float, seed: int) -> list[str]:
        front, _ = distill(config_of(engine="auto", evaluations=2_000, max_size=9, time=seconds, seed=seed))
        return [f"{to_text(rule.expression)} {rule.constants}" for rule in front]  # to the last bit

    first = texts(40.0, 3)
    assert first == texts(120.0, 3) and first != texts(40.0, 4)


def test_restarts_are_searches_with_other_seeds_whose_equations_are_joined(config_of, monkeypatch):
    seen = []

    def engine(name, task, *others):
        seen.append((task.seed, task.threads))
        return [parse(f"-{len(seen)}.5 * ema(clip_g, 0.5)" if len(seen) < 3 else CLIPPED)]

    monkeypatch.setattr(searching, "run_engine", engine)
    monkeypatch.setattr(rollouts, "cores", lambda: 1)  # in this process
    front, _ = distill(config_of(restarts=3, seed=7, threads=0))
    assert seen[0] == (7, 1) and len({seed for seed, _ in seen}) == 3
    assert [rule.complexity for rule in front] == [3, 5]  # one form of the first two, and the third's


def test_cores_and_time_are_shared_out_among_restarts(of_dm, monkeypatch):
    config = DistillConfig(trajectories=of_dm, quiet=True)
    task = dataclasses.replace(task_of(config), evaluations=1000)
    seen = []

    @contextlib.contextmanager
    def parallel(workers, cluster, *, ordered):
        yield lambda function, jobs: [function(*job) for job in jobs]

    def engine(name, task, *others):
        seen.append((task.threads, task.time, task.evaluations))
        return []

    monkeypatch.setattr(searching, "run_engine", engine)
    monkeypatch.setattr(searching, "parallel", parallel)
    for count, threads, each, share in ((1, 4, 4, 1.0), (2, 4, 2, 1.0), (3, 4, 1, 1.0), (8, 4, 1, 0.5)):
        seen.clear()
        searching.search_all([task] * count, dataclasses.replace(config, threads=threads))
        assert seen == [(each, share * task.time, -(-1000 // count))] * count
    seen.clear()
    monkeypatch.setattr(distill_config, "check_cluster", lambda name: None)
    config = dataclasses.replace(config, threads=2, cluster="dask:tcp://there:8786")
    searching.search_all([task] * 8, config)
    assert seen == [(2, task.time, 1000)] * 8  # machines of their own


def test_the_budget_goes_to_the_engine(of_dm):
    config = DistillConfig(trajectories=of_dm, memory=1.5, evaluations=1_001, time=100.0, max_size=33)
    whole, half = task_of(config), task_of(config, 0.5)
    assert (whole.memory, whole.evaluations, whole.max_size) == (3 << 29, 1_001, 33)
    assert half.evaluations == 501 and half.time == whole.time > 1e5  # the clock is no limit then
    config = dataclasses.replace(config, evaluations=0)
    assert task_of(config, 0.5).time == task_of(config).time / 2.0 < 50.0


def test_the_teacher_is_asked_where_the_rules_of_the_first_search_disagree(config_of, monkeypatch):
    seen = []

    def engine(name, task, *others):
        seen.append((task.target.shape, task.time))
        return [parse(text) for text in (CLIPPED, "-tanh(2.0 * log_g)", "-3.0 * ema(clip_g, 0.5)")]

    monkeypatch.setattr(searching, "run_engine", engine)
    distill(config_of(active=24))
    (first, seconds), (second, _) = seen
    assert second == (first[0], first[1] + 24) and seconds < 15.0


def test_a_recording_that_is_no_teachers_cannot_be_asked(tmp_path, refused):
    settings = {"source": "adam", "problem": "quadratic", "runs": 5, "steps": 10, "samples": 500}
    file = record(RecordConfig(**settings, out=str(tmp_path / "adam.h5"), quiet=True))
    before = sorted(tmp_path.rglob("*"))
    told = refused(f"interchange.distill {file} --active 10 --out {tmp_path / 'rules'} --quiet")
    assert "expected a recording of one teacher, got" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_the_live_line_shows_nodes_and_r2_of_the_front_so_far(config_of):
    line = LiveLine(task_of(config_of()), Progress("search", 1, quiet=True))
    assert line.text == "nothing yet"
    line.update(["no equation (", "g * g * g"])  # the second is worse than the mean
    assert line.text == "nothing yet"
    line.update(["-0.2 * clip_g", "-0.2 * clip_g + 0.0 * g"])
    assert re.fullmatch(r"3:0\.\d{3}", line.text)


def test_the_live_line_is_printed_while_the_engine_searches(config_of, capsys, monkeypatch):
    def engine(name, task, tick, report, stop):
        report(["-0.2 * clip_g"])
        time.sleep(2.5)  # the line is printed once a second
        return [parse(CLIPPED)]

    monkeypatch.setattr(searching, "run_engine", engine)
    distill(config_of(engine="operon", time=12.0, quiet=False))
    err = capsys.readouterr().err
    assert re.search(r"^search: \d/4 .*nodes:R2 .*\d+:0\.\d{3}", err, re.MULTILINE), err


def test_ctrl_c_in_the_refit_keeps_what_is_fitted(config_of, found, monkeypatch, caplog):
    found(CLIPPED, EMA)

    def parallel_that_is_interrupted(kept: int):
        @contextlib.contextmanager
        def parallel(*_, **__):
            def run(function, jobs):
                for _, job in zip(range(kept), jobs, strict=False):
                    yield function(*job)
                raise KeyboardInterrupt

            yield run

        return parallel

    monkeypatch.setattr(searching, "parallel", parallel_that_is_interrupted(1))
    # The second draft, and what it is cut to.
    assert [rule.complexity for rule in distill(config_of())[0]] == [3, 5]
    assert "goes on with what was found" in caplog.text
    monkeypatch.setattr(searching, "parallel", parallel_that_is_interrupted(0))
    with pytest.raises(KeyboardInterrupt):
        distill(config_of())


def test_ctrl_c_in_the_search_keeps_what_every_engine_has_reported(config_of, monkeypatch):
    """Engines run in children watched by threads; only the main thread hears of Ctrl-C."""
    ended = []

    def engine(name, task, tick, live, stop):
        assert stop.wait(30.0)
        ended.append(task.seed)
        if task.seed == 7:
            raise KeyboardInterrupt  # it had nothing yet
        return [parse(EMA)]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(searching, "run_engine", engine)
    monkeypatch.setattr(searching.concurrent.futures, "wait", interrupted)
    front, _ = distill(config_of(restarts=2, seed=7))
    assert len(ended) == 2 and front[-1].complexity == 5
    with pytest.raises(KeyboardInterrupt):  # nothing was found by any
        distill(config_of(restarts=1, seed=7))


def test_one_search_that_fails_does_not_take_the_others_with_it(config_of, monkeypatch, caplog):
    def engine(name, task, *_):
        if task.seed == 7:
            raise L2OError("engine 'auto' needed more than its memory")
        return [parse(EMA)]

    monkeypatch.setattr(searching, "run_engine", engine)
    assert len(distill(config_of(restarts=2, seed=7))[0]) == 2
    assert "goes on with the other searches: engine 'auto' needed more" in caplog.text
    with pytest.raises(L2OError, match="needed more than its memory"):
        distill(config_of(restarts=1, seed=7))


def test_without_two_rules_that_can_disagree_the_search_goes_on_unasked(config_of, found, caplog):
    found(CLIPPED)
    front, _ = distill(config_of(active=8))
    assert len(front) == 1 and "active" not in front[0].provenance
    assert "goes on without active sampling: expected two rules or more" in caplog.text


def test_an_engine_of_ones_own_needs_no_package(config_of, found, tmp_path, monkeypatch):
    """``mine`` is a module that no package installed."""
    (tmp_path / "mine.py").write_text("class Engine: ...")
    monkeypatch.syspath_prepend(tmp_path)
    found(EMA)
    config = config_of(engine="sklearn:mine:Engine", out=str(tmp_path / "rules"))
    assert distill(config)[1].provenance["engine"] == "sklearn:mine:Engine"


def test_rollouts_are_where_the_recording_was(tmp_path, monkeypatch):
    """Recorded on synthetic images: the problem's own need not be there."""
    file = tmp_path / "synthetic.h5"
    settings = {"source": "adam", "problem": "mnist-mlp", "dataset": "synthetic", "runs": 3, "steps": 3}
    record(RecordConfig(**settings, samples=90, batch_size=8, out=str(file), quiet=True))
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    trajectories = load_trajectories(file)
    config = DistillConfig(trajectories=str(file), quiet=True)
    assert rollouts.find_problem(config, trajectories) == "mnist-mlp"
    lines = []

    def run(line, **_):
        lines.append(line)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(rollouts.subprocess, "run", run)
    rollouts.select(config, trajectories, tmp_path)
    assert "--dataset=synthetic:28x28x1:10" in lines[0] and "--batch-size=8" in lines[0]
    rollouts.select(dataclasses.replace(config, dataset="synthetic:28x28x1:5"), trajectories, tmp_path)
    assert [flag for flag in lines[1] if "dataset" in flag][-1] == "--dataset=synthetic:28x28x1:5"


def front_of(*points: tuple[int, float]) -> list[Rule]:
    """Rules of given nodes (odd) and R2 on the validation runs."""
    texts = [" + ".join(["g"] * ((nodes + 1) // 2)) for nodes, _ in points]
    return [
        Rule("front", parse(text), {}, provenance={"r2": {"valid": r2}})
        for text, (_, r2) in zip(texts, points, strict=True)
    ]


def test_the_knee_is_where_the_front_bends(config_of, tmp_path, monkeypatch):
    front = front_of((1, 0.2), (5, 0.8), (9, 0.9), (21, 0.95), (41, 0.97))
    assert knee(front).complexity == 9 and shortest_within(front).complexity == 41
    assert knee(front[:2]) == front[1] and knee(front[:1]) == front[0]
    worse = front_of((51, 0.2), (61, -3.0))  # what is worth less than a shorter one does not count
    assert knee([*front, *worse]) == front[2]
    monkeypatch.setattr(distilling, "search_front", lambda *_: front)
    _, best = distill(config_of(select="knee"))
    assert best == front[2] == Rule.load(tmp_path / "best.json")


def test_a_memory_too_small_says_so(config_of):
    with pytest.raises(L2OError, match=r"needed more than its 0\.01 GiB of memory; give it more"):
        distill(config_of(memory=0.01, time=5.0))
