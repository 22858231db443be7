"""What a teacher with structure leaves in files, in both frameworks: recordings, state, exports."""

import numpy as np
import pytest

from common.tables.teachers import TEACHERS, initial_weights
from interchange.commands.record import RecordConfig
from interchange.distill import rollouts
from interchange.distill.config import DistillConfig
from interchange.distill.run import distill
from interchange.distill.structure import Updates, whole
from interchange.files.trajectories import load_trajectories
from interchange.files.weights import save_weights
from interchange.files.whole import views_of
from interchange.rule.rule import Rule
from tests.backends.test_structures import distance, learner_of, task_of

pytestmark = pytest.mark.slow_with(impl=("tf",))
TEACHER = TEACHERS["rp_s_m"]


def saved_teacher(folder, row=TEACHER):
    save_weights(folder / "teacher.h5", row, {n: 2.0 * w for n, w in initial_weights(row, 1).items()}, "test")
    return folder / "teacher.h5"


def recorded(impl, folder, teacher, **settings):
    given = {"source": f"teacher:{teacher}", "problem": "digits-mlp", "out": str(folder / "seen.h5")}
    given |= {"runs": 3, "steps": 8, "samples": 480, "dtype": "float64", "quiet": True} | settings
    return load_trajectories(impl.module("record").record(RecordConfig(**given)))


def test_a_recording_has_runs_of_whole_matrices_beside_the_others(impl, tmp_path):
    teacher = saved_teacher(tmp_path)
    data = recorded(impl, tmp_path, teacher)
    assert sorted(data.runs) == ["000000", "000001", "000002", "000003", "000004"]
    assert [name for part in data.split.values() for name in part] == sorted(data.runs)[:3]
    *sampled, first, last = data.runs.values()
    assert first.seed != last.seed  # rules are chosen by one and reported on another
    assert all(run.y.shape == (8, 20) and run.params_views is None for run in sampled)
    assert [view.shape for view in views_of(last)] == [(64, 30), (30, 20), (20, 10)]
    assert last.y.shape == (8, 64 * 30 + 30 * 20 + 20 * 10) and np.abs(last.y).max() < 1.0
    rule = Rule.from_text("-0.3 * m_tilde", features=data.features, scale=0.01)
    assert Updates(data).r2(rule) != Updates(data).r2(rule, "test") < 1.0
    none = recorded(impl, tmp_path, saved_teacher(tmp_path, TEACHERS["rp_s"]), overwrite=True)
    assert len(none.runs) == 3
    all_whole = recorded(impl, tmp_path, saved_teacher(tmp_path), overwrite=True, whole_tensors=True)
    assert len(all_whole.runs) == 3


@pytest.mark.parametrize("loss", ["sum", "last", "log"])
def test_every_estimator_of_a_distilled_rule_is_its_graphs(impl, loss):
    """Of orth(body), as distillation writes it, the whole rule is differentiated: constants inside."""
    body = Rule.from_text(
        "c0 * tanh(m_tilde / c1) + c2 * ema(g_tilde, c3)",
        {"c0": -0.9, "c1": 0.6, "c2": -0.3, "c3": 0.8},
        TEACHER.expressions(),
        scale=0.01,
    )
    task = task_of(impl)
    network = impl.module("backend").rule_network(whole(body, "orth"), "cpu")
    unroll, forward = impl.module("meta.unroll"), impl.module("meta.forward")
    at = unroll.start(task, network)
    first = impl.whole_graph(task, network, at, 4, loss, second=False)
    assert distance(learner_of(impl, network, loss=loss).first_order(task, at, 4, None)[2], first) < 1e-9
    carried = forward.advance(task, network, forward.start(task, network), 4, loss)[1]
    assert distance(carried, first) < 1e-9
    second = learner_of(impl, network, loss=loss).second_order(task, at, 4)[2]
    assert distance(second, impl.whole_graph(task, network, at, 4, loss)) < 1e-9


@pytest.mark.slow
def test_active_sampling_asks_the_teacher_along_the_whole_rules_rollouts(impl, tmp_path, monkeypatch):
    """What is rolled out has the structure; what is fitted has not."""
    if impl.NAME != "torch":
        pytest.skip("rollouts are the command's own business, which tests of record see")
    recorded(impl, tmp_path, saved_teacher(tmp_path), steps=12, samples=1440, dtype="float32")
    seen, run = [], rollouts._run

    def watched(config, trajectories, command, what, flags, **more):
        seen.append(Rule.load(what.removeprefix("rule:")).expression.op)
        run(config, trajectories, command, what, flags, **more)

    monkeypatch.setattr(rollouts, "_run", watched)
    settings = {"engine": "linear", "time": 5.0, "threads": 1, "quiet": True, "active": 4}
    config = DistillConfig(trajectories=str(tmp_path / "seen.h5"), **settings)
    front, best = distill(config)
    assert seen and set(seen) == {"orth"}
    assert best.expression.op == "orth" and best.provenance["active"] == 4
    assert {"r2", "r2_update"} <= best.provenance.keys()
    assert all(max(rule.provenance["r2_update"].values()) < 1.0 for rule in front)
