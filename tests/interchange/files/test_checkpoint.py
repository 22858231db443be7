"""Checkpoints: round trip, the last two, falling back, crashes."""

import os
import warnings

import numpy as np
import pytest

from common.errors import L2OError
from common.run.storage import StorageError
from interchange.files.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from interchange.files.hdf5 import write_hdf5
from interchange.files.reader import Tree, VersionError
from interchange.files.schema import CHECKPOINT
from interchange.inspect import __main__ as inspect


def arrays(step=0):
    """What a run of a small teacher keeps."""
    generator = np.random.default_rng(step)
    found = {f"{group}/lstm_0/w": generator.normal(size=(28, 6)) for group in ("phi", "meta_m", "meta_v")}
    return found | {
        "theta/layer_0/w": generator.normal(size=(64, 30)).astype("f4"),
        "state/t": np.array(step),
        "state/empty": np.zeros((0, 2)),
        "state/flags": np.array([True, False]),
        "state/nan": np.array([np.nan, -0.0, np.inf, 5e-324]),
    }


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def names(folder):
    return sorted(os.listdir(folder / "checkpoint"))


def test_round_trip_is_exact(tmp_path):
    meta = {"epoch": 3, "step": 7, "lr": 0.1 + 0.2, "config": "ab", "nested": {"done": [1, None, True]}}
    path = save_checkpoint(tmp_path, arrays(), meta)
    assert path == tmp_path / "checkpoint" / "checkpoint-00000001.h5"
    found, found_meta = load_checkpoint(tmp_path)
    assert found_meta == meta and set(found) == set(arrays())
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def save(folder, count):
    """Checkpoints of steps 0 to count - 1, and the last one's path."""
    return [save_checkpoint(folder, arrays(step), {"step": step}) for step in range(count)][-1]


def test_the_last_two_are_kept(tmp_path):
    assert not has_checkpoint(tmp_path)
    save(tmp_path, 12)
    assert names(tmp_path) == ["checkpoint-00000011.h5", "checkpoint-00000012.h5"]
    assert load_checkpoint(tmp_path)[1] == {"step": 11} and has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, {}, {}, keep=1)
    assert names(tmp_path) == ["checkpoint-00000013.h5"]


def test_the_old_one_goes_only_after_the_new_one_is_there(tmp_path, monkeypatch):
    save(tmp_path, 2)
    monkeypatch.setattr(os, "fsync", raising(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left"):
        save_checkpoint(tmp_path, arrays(), {"step": 2})
    assert names(tmp_path) == ["checkpoint-00000001.h5", "checkpoint-00000002.h5"]
    assert load_checkpoint(tmp_path)[1] == {"step": 1}


@pytest.mark.parametrize("damage", ["empty", "short", "byte", "other"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, damage):
    newest = save(tmp_path, 2)
    data = bytearray(newest.read_bytes())
    place = data.find(arrays(1)["phi/lstm_0/w"].tobytes()[:32])
    data[place + 5] ^= 4
    other = newest.read_bytes().replace(b"l2o-check", b"l2o-chick")
    newest.write_bytes({"empty": b"", "short": data[:5000], "byte": data, "other": other}[damage])
    with pytest.warns(UserWarning, match=r"checkpoint-00000002\.h5: .*; trying the checkpoint before it"):
        found, meta = load_checkpoint(tmp_path)
    assert meta == {"step": 0}
    np.testing.assert_array_equal(found["phi/lstm_0/w"], arrays(0)["phi/lstm_0/w"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(tmp_path)
        save_checkpoint(tmp_path, arrays(2), {"step": 2})
        assert load_checkpoint(tmp_path)[1] == {"step": 2}
    kept = ["checkpoint-00000001.h5", "checkpoint-00000002.h5", "checkpoint-00000002.h5.damaged"]
    assert names(tmp_path) == kept  # the damaged one does not push out the good one


def test_none_or_all_damaged_is_an_error(tmp_path):
    with pytest.raises(L2OError, match="expected a checkpoint, got none; start the run afresh"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, {}, {})
    (tmp_path / "checkpoint" / "checkpoint-00000001.h5").write_bytes(b"x")
    with pytest.warns(UserWarning), pytest.raises(L2OError, match="got 1 damaged ones; start"):
        load_checkpoint(tmp_path)


def test_meta_that_is_no_mapping_is_damage_another_version_or_no_permission_is_none(tmp_path, monkeypatch):
    newest = save(tmp_path, 2)
    write_hdf5(newest, Tree({}, {"": {"meta_json": "{}"}}), CHECKPOINT.format, "2.0.0")
    with pytest.raises(VersionError, match="update this project"):
        load_checkpoint(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="Permission denied"):
        patch.setattr(os, "open", raising(PermissionError(13, "Permission denied")))
        load_checkpoint(tmp_path)
    assert newest.exists()
    write_hdf5(newest, Tree({}, {"": {"meta_json": "[]"}}), CHECKPOINT.format, CHECKPOINT.version)
    with pytest.warns(UserWarning, match="meta_json: expected an object, got list"):
        assert load_checkpoint(tmp_path)[1] == {"step": 0}


def test_what_json_cannot_hold_is_refused(tmp_path):
    for meta in ({"a": float("nan")}, {"a": object()}, {1: 2}):
        with pytest.raises(L2OError, match="JSON"):
            save_checkpoint(tmp_path, {}, meta)
    assert not has_checkpoint(tmp_path)


def test_foreign_files_are_left_alone(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("checkpoint-1.h5", "checkpoint-00000007.h5.bak", "notes"):
        (folder / name).write_text("x")
    save(tmp_path, 4)
    assert len(names(tmp_path)) == 5 and load_checkpoint(tmp_path)[1] == {"step": 3}


def test_inspect_describes(tmp_path, capsys):
    path = save_checkpoint(tmp_path, arrays(), {"epoch": 3})
    assert inspect.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "l2o-checkpoint 1.0.0" in out and "epoch: 3" in out and "theta/layer_0/w [64, 30] float32" in out
