"""``python -m interchange.convert``: equations, tables of samples, and trajectories as tables."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from interchange.convert import tables
from interchange.convert.tables import export_npy, import_npy
from interchange.files.trajectories import Run, Samples, Trajectories, load_trajectories, save_trajectories
from interchange.inspect import __main__ as inspect
from interchange.rule.front import read_front
from interchange.rule.rule import Rule
from tests.helpers.commands import call, user_run

CONVERT = "interchange.convert"
HALL = "Complexity|MSE|Equation\n1|0.5|x0\n4|0.125|mult(tanh(x1), -0.5)\n6|0.25|plus(square(x0), sqrtm(x1))\n"


@pytest.fixture
def hall(tmp_path) -> Path:
    (tmp_path / "hall.csv").write_text(HALL)
    return tmp_path / "hall.csv"


@pytest.fixture
def table(tmp_path) -> Path:
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(40, 4)))
    return tmp_path / "table.npy"


@pytest.fixture
def made(capsys) -> Callable[..., str]:

    def run(words: str) -> str:
        code = call(f"{CONVERT} {words}")
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def make_run(number: int, steps: int, dtype="f4", diverged: bool = False) -> Run:
    """A run of 2 features and 3 coordinates whose every value tells run, step, coordinate and feature."""
    step, coordinate, feature = np.mgrid[1 : steps + 1, :3, :2]
    x = (1000 * number + 100 * coordinate + step + 0.5 * feature).astype(dtype)
    return user_run(f"{number:06d}", x, x[..., 0], -x[..., 0], scale=0.1, diverged=diverged)


def make(*runs: Run) -> Trajectories:
    return Trajectories({"a": "g", "b": ""}, {run.name: run for run in runs})


def test_a_hall_of_fame_becomes_a_front_and_its_best(hall, tmp_path, made):
    out = tmp_path / "rules"
    line = made(f"{hall} --out {out} --scale -0.01 --feature x0=g 'x1=lag(g, 1)'")
    assert line == f"{out}: 3 rules; best.json has the lowest loss, 0.125, in 4 nodes\n"
    front, best = read_front(out), Rule.load(out / "best.json")
    assert [rule.complexity for rule in front] == [1, 4, 5] and best == front[1]
    assert best.scale == -0.01 and best.constants == {"c0": -0.5} and best.state_floats == 1
    rows = (out / "front.csv").read_text().splitlines()
    assert rows[2] == "rule_001.json,4,0.125,,,,,tanh(x1) * c0"
    assert best.provenance["line"] == 3 and best.provenance["file"] == "hall.csv"


def test_a_folder_stands_for_the_hall_of_fame_in_it(hall, tmp_path, made):
    hall.rename(tmp_path / "hall_of_fame.csv")
    assert "3 rules" in made(f"{tmp_path} --out {tmp_path / 'rules'}")


def test_a_front_is_replaced_only_on_demand_and_whole(hall, tmp_path, made, refused):
    out = tmp_path / "rules"
    made(f"{hall} --out {out}")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert "unknown" in refused(f"{CONVERT} {hall} --dialect pysr-2 --strict --out {out}")  # the input first
    message = refused(f"{CONVERT} {hall} --out {out}")
    assert "front.csv is there already; replace it with --overwrite" in message
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "lines.txt").write_text("((-0.5) * X1)\n(X1 ^ 2)\n")
    line = made(f"{tmp_path / 'lines.txt'} --out {out} --overwrite")
    assert "2 rules; no best.json, because" in line and not (out / "best.json").exists()
    assert [rule.complexity for rule in read_front(out)] == [2, 3] and len(list(out.glob("rule_*"))) == 2


def test_a_table_becomes_samples_and_comes_back(table, tmp_path, made):
    h5, back = tmp_path / "table.h5", tmp_path / "back.npy"
    words = f"{table} --names g0 g1 mean_g --feature g1=lag(g,1) --scale 0.01 --out {h5}"
    assert "Samples(40 rows x 3 columns, float64)" in made(words)
    found, given = load_trajectories(h5), np.load(table)
    assert found.features == {"g0": "", "g1": "lag(g, 1)", "mean_g": ""} and found.runs == {}
    np.testing.assert_array_equal(found.samples.x, given[:, :-1])
    np.testing.assert_array_equal(found.samples.y, given[:, -1])
    assert found.samples.scale == 0.01 and found.samples.column_scale.tolist() == [1.0, 1.0, 1.0]
    assert found.config["file"] == "table.npy" and len(found.config["table_sha256"]) == 64
    assert made(f"{h5} --out {back}") == f"{back}: 40 rows of 4 columns, the last the target\n"
    np.testing.assert_array_equal(np.load(back), given)
    text = inspect.describe(str(h5))
    assert "feature g1 = lag(g, 1)" in text
    assert "samples: 40 rows of 3 columns, float64, scale 0.01, y from" in text


@pytest.mark.parametrize("kind", ["<f4", ">f8", "fortran", "version 2"])
def test_tables_of_every_layout_are_read(kind, tmp_path):
    values = np.arange(12.0).reshape(4, 3)
    path = tmp_path / "t.npy"
    if kind == "version 2":
        with path.open("wb") as file:
            np.lib.format.write_array(file, values, version=(2, 0))
    else:
        np.save(path, np.asfortranarray(values) if kind == "fortran" else values.astype(kind))
    found = import_npy(path)
    assert list(found.features) == ["x0", "x1"] and found.samples.x.dtype.isnative
    np.testing.assert_array_equal(found.samples.x, values[:, :-1])
    np.testing.assert_array_equal(found.samples.y, values[:, -1])


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(shape: str, dtype: str = "<f8") -> bytes:
    """A file of one number whose header claims another shape or type."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)


NAN = np.ones((5, 3))
NAN[3, 1] = np.nan
BROKEN = {
    "one axis": (saved(np.ones(5)), "expected [rows, columns + 1], at least [1, 2], got shape (5,)"),
    "three axes": (saved(np.ones((2, 2, 2))), "got shape (2, 2, 2)"),
    "a target alone": (saved(np.ones((5, 1))), "got shape (5, 1)"),
    "no rows": (saved(np.ones((0, 3))), "got shape (0, 3)"),
    "integers": (saved(np.ones((5, 3), int)), "expected float32 or float64, got int64"),
    "half": (saved(np.ones((5, 3), "f2")), "got float16"),
    "objects": (saved(np.array([[1, "a"], [2, None]], object)), "expected float32 or float64, got object"),
    "nan": (saved(NAN), "expected finite numbers, got nan at row 3, column 1 (from 0)"),
    "cut off": (saved(np.ones((5, 3)))[:-8], "expected 120 bytes of numbers, at most 2147483648, got 112"),
    "more than it says": (saved(np.ones((5, 3))) + b"\0", "got 121"),
    "a bomb": (claiming("(10000000000, 1000)"), "expected 80000000000000 bytes of numbers, at most"),
    "negative": (claiming("(-1, -1)"), "got shape (-1, -1)"),
    "no shape": (claiming("'abc'"), "expected a whole .npy file"),
    "code for a shape": (claiming("(__import__('os'), 2)"), "expected a whole .npy file"),
    "no dtype": (saved(np.ones((5, 3))).replace(b"<f8", b",f8"), "expected a whole .npy file"),
    "a header cut off": (saved(np.ones((5, 3)))[:40], "expected a whole .npy file"),
    "another version": (b"\x93NUMPY\x09\x00" + bytes(100), "expected a whole .npy file"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_one_line_and_nothing_is_written(data, message, tmp_path, refused):
    (tmp_path / "t.npy").write_bytes(data)
    found = refused(f"{CONVERT} {tmp_path / 't.npy'} --out {tmp_path / 't.h5'}")
    assert message in found and str(tmp_path / "t.npy") in found
    assert list(tmp_path.iterdir()) == [tmp_path / "t.npy"]


@pytest.mark.parametrize("lags", [1, 2, 4])
def test_trajectories_become_rows_of_lags(lags, tmp_path, made):
    runs = [make_run(1, 5), make_run(2, 4), make_run(3, 5, diverged=True)]
    save_trajectories(tmp_path / "t.h5", make(*runs))
    made(f"{tmp_path / 't.h5'} --out {tmp_path / 't.npy'} --lags {lags}")
    got = np.load(tmp_path / "t.npy")
    want = [
        [run.x[step - lag, k, f] for lag in range(lags) for f in range(2)] + [run.y[step, k]]
        for run in runs[:2]
        for step in range(lags - 1, len(run.step))
        for k in range(3)
    ]
    assert got.dtype == np.float32 and got.shape == (3 * (5 + 4 - 2 * (lags - 1)), 2 * lags + 1)
    np.testing.assert_array_equal(got, np.array(want, "f4"))


def test_the_wider_of_two_types_is_written_and_short_runs_are_left_out(tmp_path):
    trajectories = make(make_run(1, 5), make_run(2, 2, "f8"))
    assert export_npy(trajectories, tmp_path / "t.npy", lags=2) == (15, 5)
    assert np.load(tmp_path / "t.npy").dtype == np.float64
    assert export_npy(trajectories, tmp_path / "t.npy", lags=5) == (3, 11)
    with pytest.raises(L2OError, match="a run of at least 6 steps that did not diverge, got none"):
        export_npy(trajectories, tmp_path / "t.npy", lags=6)
    table = Trajectories({"a": ""}, {}, samples=Samples(np.ones((3, 1)), np.ones(3), np.ones(1)))
    with pytest.raises(L2OError, match="--lags: expected 1 for a table of samples"):
        export_npy(table, tmp_path / "t.npy", lags=2)


def test_a_table_that_would_be_too_large_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_BUDGET", 100)
    with pytest.raises(L2OError, match=r"at most 100 bytes, got shape \(15, 3\)"):
        export_npy(make(make_run(1, 5)), tmp_path / "t.npy")
    assert not list(tmp_path.iterdir())


BAD = {
    "": "SOURCE is missing",
    "table.npy": "--out is missing",
    "none --out x": "cannot read",
    ". --out x": "expected trajectories or a hall of fame, got a folder that holds hall.csv, table.npy",
    "table.npy --names a --out x": "expected 3 distinct names",
    "table.npy --names a b a --out x": "3 distinct names",
    "table.npy --names a b t --out x": "'t' is reserved",
    "table.npy --names a c0 b --out x": "'c0' is kept for",
    "table.npy --names a exp b --out x": "name 'exp'",
    "table.npy --feature b=g --out x": "no column has that name",
    "table.npy --feature x0 --out x": "expected NAME=EXPRESSION",
    "table.npy --feature x0=g+ --out x": "not an expression",
    "table.npy --scale 0 --out x": "--scale: expected a number other",
    "table.npy --lags 2 --out x": "it takes --names, --scale",
    "hall.csv --names a --out x": "it takes --dialect, --scale",
    "hall.csv --dialect pysr --out x": "unknown dialect 'pysr'",
    "hall.csv --dialect pysr-2 --strict --out x": "hall.csv:3: unknown",
    "table.npy --out hall.csv": "is there already; replace it with --overwrite",
    "table.npy --names a --out hall.csv": "expected 3 distinct names",  # the input is looked at first
}


@pytest.mark.parametrize(("words", "message"), BAD.items(), ids=BAD)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    words, message, hall, table, tmp_path, monkeypatch, refused
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(f"{CONVERT} {words}")
    assert {path.name for path in tmp_path.iterdir()} == {"hall.csv", "table.npy"}


def test_columns_are_chosen_and_rows_that_are_not_finite_are_left_out(tmp_path, caplog):
    table = np.array([[1.0, 2.0, 3.0, 9.0], [np.nan, 5.0, 6.0, 9.0], [7.0, np.inf, 8.0, 9.0]])
    np.save(tmp_path / "t.npy", table)
    found = import_npy(tmp_path / "t.npy", columns=(2, 1), target=0, drop_nan=True).samples
    np.testing.assert_array_equal(found.x, [[3.0, 2.0]])
    np.testing.assert_array_equal(found.y, [1.0])
    assert "2 of 3 rows are left out, not finite" in caplog.text
    assert list(import_npy(tmp_path / "t.npy", columns=(2,)).features) == ["x2"]
    for options, message in (
        ({"columns": (4,)}, "expected columns from 0 to 3, got 4"),
        ({"columns": (1, 3)}, "the target 3 not among them"),
        ({"columns": (1, 1)}, "each column once"),
        ({}, "leave such rows out with --drop-nan"),
        ({"columns": (0, 1, 2), "names": ("a",)}, "expected finite numbers"),
    ):
        with pytest.raises(L2OError, match=message):
            import_npy(tmp_path / "t.npy", **options)
