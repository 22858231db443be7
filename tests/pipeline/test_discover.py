"""How distillation is steered: budgets, restarts, questions to the teacher, live line, Ctrl-C, choice."""

import contextlib
import dataclasses
import re
import subprocess
from collections.abc import Callable

import pytest

from common.errors import L2OError
from common.run.cli import Progress
from interchange.commands.record import RecordConfig
from interchange.distill import jobs as searching
from interchange.distill import rollouts
from interchange.distill import sequences as discover
from interchange.distill.config import DistillConfig
from interchange.distill.jobs import LiveLine
from interchange.distill.run import distill
from interchange.files.trajectories import load_trajectories
from interchange.language.expression import to_text
from interchange.language.parse import parse
from interchange.rule.choice import knee, shortest_within
from interchange.rule.rule import Rule
from interchange.search import Task, samples

pytest.importorskip("torch")
pytest.importorskip("pyoperon", reason="pyoperon is not installed: pip install symbolic-l2o[operon]")

from torch_impl.record import record

EMA, CLIPPED = "-2.0 * ema(clip_g, 0.5)", "-2.0 * clip_g"


@pytest.fixture
def config_of(recording, tmp_path) -> Callable[..., DistillConfig]:
    """A configuration for the recording, small and quiet but for what is given."""
    settings = {"max_size": 15, "threads": 2, "quiet": True, "overwrite": True, "out": str(tmp_path)}
    return lambda **given: DistillConfig(**{"trajectories": recording} | settings | given)


@pytest.fixture
def found(monkeypatch) -> Callable[..., None]:
    """found(TEXT, ...) lets every search end at once with these equations."""

    def texts(*equations: str) -> None:
        monkeypatch.setattr(searching, "run_engine", lambda *_: [parse(text) for text in equations])

    return texts


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> str:
    """Trajectories of the shipped teacher dm."""
    out = str(tmp_path_factory.mktemp("recording") / "trajectories.h5")
    settings = {"runs": 5, "steps": 30, "samples": 2_000, "seed": 1, "quiet": True}
    return str(record(RecordConfig(source="teacher:dm", problem="quadratic", out=out, **settings)))


def task_of(config: DistillConfig, share: float = 1.0) -> Task:
    """What the engine would be asked."""
    trajectories = load_trajectories(config.trajectories)
    return discover.make_task(trajectories, samples.sequences(trajectories, "train"), config, share)


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
    monkeypatch.setattr("interchange.distill.rollouts.cores", lambda: 1)  # in this process
    front, _ = distill(config_of(restarts=3, seed=7, threads=0))
    assert seen[0] == (7, 1) and len({seed for seed, _ in seen}) == 3
    assert [rule.complexity for rule in front] == [3, 5]  # one form of the first two, and the third's


def test_cores_and_time_are_shared_out_among_restarts(recording, monkeypatch):
    config = DistillConfig(trajectories=recording, quiet=True)
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
    monkeypatch.setattr("interchange.distill.config.check_cluster", lambda name: None)
    config = dataclasses.replace(config, threads=2, cluster="dask:tcp://there:8786")
    searching.search_all([task] * 8, config)
    assert seen == [(2, task.time, 1000)] * 8  # machines of their own


def test_the_budget_goes_to_the_engine(recording):
    config = DistillConfig(trajectories=recording, memory=1.5, evaluations=1_001, time=100.0, max_size=33)
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


def test_the_live_line_is_printed_while_the_engine_searches(config_of, capsys):
    distill(config_of(engine="auto", time=12.0, quiet=False))
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
    rules = []
    for nodes, r2 in points:
        text = " + ".join(["g"] * ((nodes + 1) // 2))
        rules.append(Rule("front", parse(text), {}, provenance={"r2": {"valid": r2}}))
        assert rules[-1].complexity == nodes
    return rules


def test_the_knee_is_where_the_front_bends(config_of, tmp_path, monkeypatch):
    front = front_of((1, 0.2), (5, 0.8), (9, 0.9), (21, 0.95), (41, 0.97))
    assert knee(front).complexity == 9 and shortest_within(front).complexity == 41
    assert knee(front[:2]) == front[1] and knee(front[:1]) == front[0]
    worse = front_of((51, 0.2), (61, -3.0))  # what is worth less than a shorter one does not count
    assert knee([*front, *worse]) == front[2]
    monkeypatch.setattr("interchange.distill.run.search_front", lambda *_: front)
    _, best = distill(config_of(select="knee"))
    assert best == front[2] == Rule.load(tmp_path / "best.json")


def test_a_memory_too_small_says_so(config_of):
    with pytest.raises(L2OError, match=r"needed more than its 0\.01 GiB of memory; give it more"):
        distill(config_of(memory=0.01, time=5.0))
