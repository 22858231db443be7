"""Trajectory files: round trip, contract, damage."""

import dataclasses
from collections.abc import Callable

import h5py
import numpy as np
import pytest

import interchange
from common.errors import L2OError
from interchange.files.hdf5 import chunk_shape
from interchange.files.trajectories import Run, Samples, Trajectories, load_trajectories, save_trajectories
from interchange.inspect import __main__ as inspect
from tests.helpers.recordings import make_run


def make(*runs: Run, **changes) -> Trajectories:
    """Trajectories of the given runs, or of two."""
    runs = runs or (make_run(), make_run("000001", random=1, dtype="f8"))
    fields = {
        "features": {"m_tilde": "ema(g, 0.9)", "measured": ""},
        "runs": {run.name: run for run in runs},
        "split": {"train": tuple(run.name for run in runs[:1]), "test": tuple(run.name for run in runs[1:])},
        "config": {"steps": 12},
        "seed": 3,
        "created_by": "test 1.0",
    }
    return Trajectories(**fields | changes)


def test_round_trip(tmp_path):
    given = make(
        make_run(theta=np.ones((12, 5), "f4"), weight=np.full((12, 5), 0.5)), make_run("b", dtype="f8")
    )
    digest = save_trajectories(tmp_path / "t.h5", given)
    found = load_trajectories(tmp_path / "t.h5")
    assert found.sha256 == digest == save_trajectories(tmp_path / "again.h5", found)
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "t.h5").read_bytes()
    assert "12 steps x 5 coordinates x 2 features, float32, ok" in repr(found.runs["000000"])
    assert "2 runs, 120 rows, features m_tilde, measured; train 1, test 1" in repr(found)
    for name in ("features", "split", "config", "seed", "created_by"):
        assert getattr(found, name) == getattr(given, name)
    assert list(found.features) == ["m_tilde", "measured"] and list(found.runs) == ["000000", "b"]
    for name, run in given.runs.items():
        for field in dataclasses.fields(Run):
            one, other = getattr(run, field.name), getattr(found.runs[name], field.name)
            if isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one, other)
            else:
                assert one == other and type(one) is type(other), field.name
        for key, kind in {"x": run.x.dtype, "loss": "f8", "step": "i8", "param_index": "i4"}.items():
            assert getattr(found.runs[name], key).dtype == kind
    assert found.runs["b"].theta is None


def test_layout_on_disk(tmp_path):
    coordinates = 1000
    run = make_run(steps=400, coordinates=5)
    wide = {name: np.repeat(getattr(run, name), coordinates // 5, axis=1) for name in ("x", "g", "y")} | {
        name: np.repeat(getattr(run, name), coordinates // 5) for name in ("param_index", "flat_index")
    }
    save_trajectories(tmp_path / "t.h5", make(dataclasses.replace(run, **wide)))
    with h5py.File(tmp_path / "t.h5") as file:
        assert file.attrs["format"] == "l2o-trajectories" and file.attrs["format_version"] == "1.0.0"
        x = file["runs/000000/x"]
        assert x.chunks == (65, 1000, 2) and x.shuffle and x.compression == "lzf" and x.fletcher32
        assert file["runs/000000/coord/flat_index"].dtype == "i4"
        assert file["features/names"].asstr()[:].tolist() == ["m_tilde", "measured"]


@pytest.mark.parametrize("shape", [(300, 1000, 2), (10, 10**6, 4), (5,), (10**7,), (1, 1, 10**7), (0, 3)])
def test_chunks_are_small_and_cover(shape):
    chunk = chunk_shape(shape, 4)
    assert len(chunk) == len(shape) and np.prod(chunk) * 4 <= 512 << 10 and min(chunk) >= 1
    if np.prod(shape) * 4 > 1 << 20:
        assert np.prod(chunk) * 4 >= 128 << 10


def with_value(array, place, value):
    changed = array.copy()
    changed[place] = value
    return changed


RUN = make_run()
FAULTS = {
    "nan target": (
        {"y": with_value(RUN.y, (3, 2), np.nan)},
        r"/runs/000000/y: .*targets, got nan at step 3, coo",
    ),
    "inf target": ({"y": with_value(RUN.y, (3, 2), np.inf)}, r"end the run before it diverges"),
    "nan feature": ({"x": with_value(RUN.x, (3, 2, 1), np.nan)}, r"/x: .*at step 3, coordinate 2, feature 1"),
    "nan weight": ({"weight": np.full((12, 5), np.nan)}, "weight"),
    "steps from 0": ({"step": np.arange(12)}, "expected 1, 2"),
    "gap": ({"step": with_value(RUN.step, 5, 9)}, "without gaps"),
    "short y": ({"y": RUN.y[:-1]}, "along step"),
    "narrow g": ({"g": RUN.g[:, :-1]}, "along coordinate"),
    "flat y": ({"y": RUN.y[:, 0]}, r"expected axes \[step, coordinate\]"),
    "features": ({"x": RUN.x[..., :1]}, "along feature"),
    "short loss": ({"loss": RUN.loss[:-1]}, "along step"),
    "short index": ({"flat_index": RUN.flat_index[:-1]}, "along coordinate"),
    "index": ({"param_index": RUN.param_index + 1}, "param_index: expected 0 to 1"),
    "negative index": ({"param_index": RUN.param_index - 1}, "param_index"),
    "element": ({"flat_index": with_value(RUN.flat_index, 4, 3)}, "outside its tensor"),
    "negative element": ({"flat_index": RUN.flat_index - 1}, "outside its tensor"),
    "shapes": ({"params_shapes": ((4, 2), (-3,))}, "lists of sizes"),
    "one shape": ({"params_shapes": ((4, 2),)}, "along parameter"),
    "too many steps": ({"num_steps": 11}, "at most 11 steps"),
    "integers": ({"y": RUN.y.astype(int)}, "expected floats"),
    "half": ({"x": RUN.x.astype("f2")}, "float16; cast"),
    "source kind": ({"source_kind": "magic"}, "source_kind: expected teacher, rule"),
    "seed": ({"seed": "three"}, "seed: expected int"),
    "seed flag": ({"seed": True}, "seed: expected int"),
    "problem json": ({"problem_json": "{"}, "problem_json: not valid JSON"),
    "json": ({"source_json": "{"}, "source_json: not valid JSON"),
    "name": ({"name": "../x"}, "run name"),
}


def test_gradients_and_losses_may_be_anything(tmp_path):
    """They are what happened; only what a rule is fitted to must be finite."""
    run = make_run(g=with_value(RUN.g, (3, 2), np.inf), loss=with_value(RUN.loss, 11, np.nan), diverged=True)
    save_trajectories(tmp_path / "t.h5", make(run))
    assert np.isnan(load_trajectories(tmp_path / "t.h5").runs["000000"].loss[-1])


def test_no_runs_no_split_and_the_budget(tmp_path):
    save_trajectories(tmp_path / "t.h5", make(runs={}, split={}))
    assert load_trajectories(tmp_path / "t.h5").runs == {}
    save_trajectories(tmp_path / "t.h5", make())
    with pytest.raises(L2OError, match="more than the 1000 bytes"):
        load_trajectories(tmp_path / "t.h5", budget=1000)


def make_table(**changes) -> Trajectories:
    """A table of 4 rows and 2 columns."""
    fields = {"x": np.arange(8, dtype="f4").reshape(4, 2), "y": np.linspace(-1.0, 1.0, 4)}
    fields |= {"column_scale": np.array([1.0, 1e-4]), "scale": 0.01}
    return make(runs={}, split={}, samples=Samples(**fields | changes))


def test_a_table_instead_of_runs(tmp_path):
    digest = save_trajectories(tmp_path / "t.h5", make_table())
    found, given = load_trajectories(tmp_path / "t.h5"), make_table()
    assert found.sha256 == digest and found.runs == {} and found.features == given.features
    assert found.samples.scale == 0.01 and found.samples.x.dtype == np.float32
    for name in ("x", "y", "column_scale"):
        np.testing.assert_array_equal(getattr(found.samples, name), getattr(given.samples, name))
    assert repr(found) == "Trajectories(Samples(4 rows x 2 columns, float32), features m_tilde, measured)"
    with h5py.File(tmp_path / "t.h5") as file:
        assert set(file["samples"]) == {"X", "y", "names", "column_scale"}
    save_trajectories(tmp_path / "runs.h5", make())
    assert load_trajectories(tmp_path / "runs.h5").samples is None


SAMPLE_FAULTS = {
    "nan": ({"x": with_value(np.ones((4, 2)), (2, 1), np.nan)}, r"/X: .*got nan at row 2, column 1"),
    "inf target": ({"y": with_value(np.ones(4), 3, np.inf)}, "/samples/y: expected finite targets, got inf"),
    "short y": ({"y": np.ones(3)}, "along row"),
    "another column": ({"x": np.ones((4, 3))}, "along column"),
    "no rows": ({"x": np.ones((0, 2)), "y": np.ones(0)}, "expected at least one row"),
    "column scale": ({"column_scale": np.ones(1)}, "along column"),
    "scale 0": ({"scale": 0.0}, "attribute scale: expected a number other than 0"),
    "scale nan": ({"scale": np.nan}, "attribute scale"),
}  # fmt: skip
AROUND_FAULTS = {
    "no such run": ({"split": {"train": ("000000", "none")}}, r"at most once, got \['none'\]"),
    "a run twice": (
        {"split": {"train": ("000000",), "test": ("000000",)}},
        r"at most once, got \['000000'\]",
    ),
    "one feature": ({"features": {"m_tilde": ""}}, "along feature"),
    "no features": ({"features": {}}, "feature"),
    "another name": ({"runs": {"other": RUN}}, "filed under"),
    "config": ({"config": {"a": float("nan")}}, "JSON"),
    "half a seed": ({"seed": 0.5}, "seed"),
}
REFUSED = {
    **{key: (lambda c=c: make(make_run(**c), make_run("b", random=1)), m) for key, (c, m) in FAULTS.items()},
    **{f"around: {key}": (lambda c=c: make(**c), m) for key, (c, m) in AROUND_FAULTS.items()},
    **{f"table: {key}": (lambda c=c: make_table(**c), m) for key, (c, m) in SAMPLE_FAULTS.items()},
    "no features at all": (lambda: make(make_run(x=np.zeros((12, 5, 0))), features={}), "distinct names"),
    "runs beside a table": (
        lambda: dataclasses.replace(make(), samples=make_table().samples), "expected no runs beside it"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_refused_when_saving(fault, tmp_path):
    given, message = REFUSED[fault]
    with pytest.raises(L2OError, match=message):
        save_trajectories(tmp_path / "t.h5", given())
    assert not (tmp_path / "t.h5").exists()


def without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


# What is done to a good file of runs or of a table -> what reading says.
DAMAGE = {
    r"t\.h5: /runs/000001/y: .* at step 2, coordinate 1 .*; end the run": (
        make, lambda file: file["runs/000001/y"].__setitem__((2, 1), np.nan)
    ),
    "expected the array /runs/000001/y, got none": (make, without("runs/000001/y")),
    "expected the array /runs/000000/params/names, got none": (make, without("runs/000000/params/names")),
    "expected the array /features/names, got none": (make, without("features/names")),
    "/runs/000001: expected the attribute scale, got none": (
        make, lambda file: file["runs/000001"].attrs.pop("scale")
    ),
    "distinct names": (make, lambda file: file["features/names"].__setitem__(1, b"m_tilde")),
    "incomplete": (make, lambda file: file.attrs.__setitem__("complete", False)),
    "/samples: .*expected X, y, names and column_scale": (make_table, without("samples/y")),
    "/samples: .*names as in": (make_table, lambda file: file["samples/names"].__setitem__(1, b"other")),
    "/samples: .*attribute scale: .*got None": (make_table, lambda file: file["samples"].attrs.pop("scale")),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_file_is_refused(message, tmp_path):
    given, damage = DAMAGE[message]
    save_trajectories(tmp_path / "t.h5", given())
    with h5py.File(tmp_path / "t.h5", "a") as file:
        damage(file)
        del file.attrs["sha256"]
    with pytest.warns(UserWarning, match="no sha256"), pytest.raises(L2OError, match=message):
        load_trajectories(tmp_path / "t.h5")


def test_inspect_describes(tmp_path, capsys):
    save_trajectories(tmp_path / "t.h5", make(make_run(outcome="ok \x1b[31m"), make_run("b")))
    assert inspect.main([str(tmp_path / "t.h5")]) == 0
    out = capsys.readouterr().out
    assert "(verified)" in out and "feature m_tilde = ema(g, 0.9)" in out and "\x1b" not in out
    assert "run b: teacher on digits-mlp, seed 0, 12 of 12 steps" in out
    (tmp_path / "t.h5").write_bytes((tmp_path / "t.h5").read_bytes()[:500])
    assert inspect.main([str(tmp_path / "t.h5")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "t.h5" in err


def test_the_package_has_all_its_names_and_no_others():
    for name in interchange.__all__:
        assert getattr(interchange, name) and name in dir(interchange)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = interchange.nothing
