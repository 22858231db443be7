"""What a teacher with structure leaves in files, in both frameworks: recordings, state, exports."""

import numpy as np

from common.tables.teachers import TEACHERS, initial_weights
from interchange.commands.record import RecordConfig
from interchange.distill.structure import update_r2
from interchange.files.trajectories import load_trajectories
from interchange.files.weights import save_weights
from interchange.files.whole import views_of
from interchange.rule.rule import Rule

TEACHER = TEACHERS["rp_s_m"]


def saved_teacher(folder, row=TEACHER):
    save_weights(folder / "teacher.h5", row, {n: 2.0 * w for n, w in initial_weights(row, 1).items()}, "test")
    return folder / "teacher.h5"


def recorded(impl, folder, teacher, **settings):
    given = {"source": f"teacher:{teacher}", "problem": "digits-mlp", "out": str(folder / "seen.h5")}
    given |= {"runs": 3, "steps": 8, "samples": 480, "dtype": "float64", "quiet": True} | settings
    return load_trajectories(impl.module("record").record(RecordConfig(**given)))


def test_a_recording_has_a_run_of_whole_matrices_beside_the_others(impl, tmp_path):
    teacher = saved_teacher(tmp_path)
    data = recorded(impl, tmp_path, teacher)
    assert sorted(data.runs) == ["000000", "000001", "000002", "000003"]
    assert [name for part in data.split.values() for name in part] == sorted(data.runs)[:3]
    *sampled, whole = data.runs.values()
    assert all(run.y.shape == (8, 20) and run.params_views is None for run in sampled)
    assert [view.shape for view in views_of(whole)] == [(64, 30), (30, 20), (20, 10)]
    assert whole.y.shape == (8, 64 * 30 + 30 * 20 + 20 * 10) and np.abs(whole.y).max() < 1.0
    rule = Rule.from_text("-0.3 * m_tilde", features=data.features, scale=0.01)
    assert update_r2(rule, data) < 1.0
    none = recorded(impl, tmp_path, saved_teacher(tmp_path, TEACHERS["rp_s"]), overwrite=True)
    assert len(none.runs) == 3
    all_whole = recorded(impl, tmp_path, saved_teacher(tmp_path), overwrite=True, whole_tensors=True)
    assert len(all_whole.runs) == 3
