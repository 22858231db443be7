"""Teacher weight files."""

import configparser
import dataclasses
import json
import os
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import L2OError
from common.run.cli import parser_for
from common.run.storage import canonical_json
from common.tables.baselines import parse_spec
from common.tables.teachers import TEACHERS, TeacherRow, initial_weights
from interchange.files.checkpoint import save_checkpoint
from interchange.files.weights import SHIPPED, Teacher, load_weights, save_weights
from interchange.inspect import __main__ as inspect
from interchange.meta.config import TrainConfig

ROOT = Path(__file__).parents[3]


def saved(path: Path, kind: str = "rp_s", created_by: str = "x", **changes) -> Path:
    """A file of a teacher's first weights, its row changed."""
    teacher = dataclasses.replace(TEACHERS[kind], **changes)
    save_weights(path, teacher, initial_weights(TEACHERS[kind], 0), created_by)
    return path


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_was_saved_is_read(tmp_path, name, dtype):
    teacher = TEACHERS[name]
    weights = {key: array.astype(dtype) for key, array in initial_weights(teacher, 1).items()}
    digest = save_weights(tmp_path / "t.h5", teacher, weights, "torch_impl 1.0, torch 2.13")
    found = load_weights(tmp_path / "t.h5")
    assert found.row == teacher and found.sha256 == digest
    assert found.created_by == "torch_impl 1.0, torch 2.13"
    assert list(found.weights) == list(teacher.weight_shapes())
    for key, array in weights.items():
        assert found.weights[key].dtype == dtype
        np.testing.assert_array_equal(found.weights[key], array)
    assert name in repr(found) and digest[:12] in repr(found)


def test_a_run_folder_stands_for_its_teacher(tmp_path):
    saved(tmp_path)
    assert (tmp_path / "teacher.h5").is_file()
    assert load_weights(str(tmp_path)).row.name == "rp_s"
    with pytest.raises(L2OError, match=r"cannot read .*other"):
        load_weights(tmp_path / "other")
    (tmp_path / "other").mkdir()
    with pytest.raises(L2OError, match=r"cannot read .*other/teacher\.h5"):
        load_weights(tmp_path / "other")


def test_the_row_is_plain_json_exact_and_of_this_format(tmp_path):
    changes = {"eps": 1e-300, "beta1": 0.1 + 0.2, "name": "ünï", "source": "two\nlines"}
    row = load_weights(saved(tmp_path / "t.h5", **changes)).row
    assert row == dataclasses.replace(TEACHERS["rp_s"], **changes)
    with h5py.File(tmp_path / "t.h5") as file:
        assert TeacherRow.from_dict(json.loads(file.attrs["teacher_json"])) == row
        assert file["lstm_0/w_hidden"].shape == (28, 7)
    with pytest.raises(L2OError, match="expected a teacher, got a checkpoint"):
        load_weights(save_checkpoint(tmp_path, {}, {}))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("out/b"), r"missing \['out/b'\]"),
        (lambda w: w.update(extra=np.zeros(3)), r"unknown \['extra'\]"),
        (lambda w: w.update({"out/b": np.zeros(2)}), r"out/b: expected shape \(1,\)"),
        (lambda w: w.update({"out/b": np.zeros(1, "f2")}), "float32 or float64"),
        (lambda w: w.update({"out/b": np.zeros(1, int)}), "float32 or float64"),
        (lambda w: w.update({"out/b": np.array([np.nan])}), "finite weights, got nan .*; take an earlier"),
        (lambda w: w.update({"lstm_0/bias": np.full(28, np.inf)}), "/lstm_0/bias: expected finite"),
    ],
)
def test_wrong_weights_are_refused(tmp_path, change, message):
    weights = initial_weights(TEACHERS["rp_s"], 0)
    change(weights)
    with pytest.raises(L2OError, match=message):
        save_weights(tmp_path / "t.h5", TEACHERS["rp_s"], weights, "x")
    assert not (tmp_path / "t.h5").exists()


STRANGE = {
    "lstm": ([8], [], [-7], [10**12], "7", None, [1] * 100_000),
    "inputs": (["none", "such"], 3, [], ["g", 3], ["g_tilde", "g_tilde"]),
    "pre": (-1, "6", 6.0),
    "output": ("relu",),
    "scale": ("big",),
    "name": (3,),
    "surprise": (1,),
}
EDITS = [
    {"gate_order": "ifog"},
    *({"teacher_json": t} for t in ("", "[]", "{}", "3", "null", '{"name": NaN}')),
]
EDITS += [
    {"teacher_json": canonical_json(TEACHERS["rp_s"].to_dict() | {key: value})}
    for key, values in STRANGE.items()
    for value in values
]


@pytest.mark.filterwarnings("ignore:.*no sha256")
@pytest.mark.parametrize("attributes", EDITS, ids=lambda edit: str(edit)[:30])
def test_a_strange_row_or_another_order_of_gates_is_refused(tmp_path, attributes):
    with h5py.File(saved(tmp_path / "t.h5"), "a") as file:
        del file.attrs["sha256"]
        file.attrs.update(attributes)
    message = "gate_order: expected ifgo; got 'ifog'" if "gate_order" in attributes else r"t\.h5"
    with pytest.raises(L2OError, match=message):
        load_weights(tmp_path / "t.h5")


@pytest.mark.parametrize("lstm", [(), (0,), (3, 0)])
def test_a_teacher_without_a_cell_is_refused(tmp_path, lstm):
    teacher = dataclasses.replace(TEACHERS["rp_s"], lstm=lstm)
    weights = {name: np.zeros(shape) for name, shape in teacher.weight_shapes().items()}
    save_weights(tmp_path / "t.h5", teacher, weights, "x")
    with pytest.raises(L2OError, match="layer sizes must be positive"):
        load_weights(tmp_path / "t.h5")


def test_inspect_describes(tmp_path, capsys):
    assert inspect.main([str(saved(tmp_path / "t.h5", created_by="me 1.0"))]) == 0
    out = capsys.readouterr().out
    assert "(verified)" in out and "created by me 1.0" in out
    assert "inputs: m_tilde, g_tilde" in out and "lstm_0/w_input [28, 6] float64" in out


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_teacher_is_its_row_unchanged_and_made_by_its_command(name, capsys):
    """Its hash is checked on reading; a file without one would pass with a warning, here an error."""
    found = Teacher.named(name)
    assert found.row == TEACHERS[name] and found.sha256 and found.created_by.startswith("symbolic-l2o")
    start = initial_weights(found.row, 0)
    assert {array.dtype.name for array in found.weights.values()} == {"float32"}
    assert max(np.abs(array - start[key]).max() for key, array in found.weights.items()) > 0.1
    path = ROOT / "interchange" / "shipped" / f"{name}.h5"
    assert inspect.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert f"made by {SHIPPED[name]}\n" in out and "(verified)" in out
    python, m, module, *flags = shlex.split(SHIPPED[name])
    assert (python, m, module) == ("python", "-m", "torch_impl.train")
    asked = vars(parser_for(TrainConfig, prog="", description="").parse_args(flags))
    assert asked["teacher"] == name and asked["problem"] == "mnist-mlp"


def test_the_shipped_files_are_the_table_and_are_packaged():
    files = sorted((ROOT / "interchange" / "shipped").glob("*.h5"))
    assert [path.stem for path in files] == sorted(SHIPPED)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["interchange"].split()
    packaged = {path for pattern in patterns for path in (ROOT / "interchange").glob(pattern)}
    assert packaged >= {*files, ROOT / "interchange" / "shipped" / "rnnprop_tuned.json"}


@pytest.mark.parametrize("name", ["rp_x", "../shipped/rp_s", "", "/etc/passwd", "rp_s.h5"])
def test_an_unknown_shipped_teacher_lists_the_known_ones(name):
    with pytest.raises(L2OError, match=r"unknown shipped teacher .*known: rp_s, rnnprop, dm"):
        Teacher.named(name)


def test_a_name_stands_for_a_shipped_teacher_where_no_path_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = parse_spec("teacher:rp_s,lr=0.5").target
    shipped = load_weights(target)
    assert shipped.sha256 == Teacher.named("rp_s").sha256 == load_weights(Path("rp_s")).sha256
    with pytest.raises(L2OError, match=r"cannot read rp_t: .*name a shipped teacher: rp_s, rnnprop, dm$"):
        load_weights("rp_t")
    saved("rp_s", created_by="mine")
    assert os.path.isfile("rp_s") and load_weights("rp_s").created_by == "mine"
    assert Teacher.named("rp_s").sha256 == shipped.sha256
    os.mkdir("dm")
    with pytest.raises(L2OError, match=r"cannot read dm/teacher\.h5"):
        load_weights("dm")


def test_attributes_that_a_user_added_are_left_out_with_a_warning(tmp_path):
    path = saved(tmp_path / "t.h5")
    expected = load_weights(path)
    with h5py.File(path, "a") as file:
        file.attrs["note"] = "best so far"
        file["out"].attrs["layers"] = 2
    with pytest.warns(UserWarning, match=r"attributes that were added .* /: note, /out: layers"):
        found = load_weights(path)
    assert found.sha256 == expected.sha256 and found.row == expected.row
    with h5py.File(path, "a") as file:
        file.attrs["created_by"] = "somebody"
    with pytest.raises(L2OError, match="its content has not the SHA-256"):
        load_weights(path)


def test_step_sizes_and_their_record_are_read_again(tmp_path):
    teacher = load_weights(saved(tmp_path / "t.h5"))
    assert teacher.step_sizes == {} and b"step_sizes" not in (tmp_path / "t.h5").read_bytes()
    sized = dataclasses.replace(teacher, step_sizes={"layer_0/w": 0.1}, tuned={"problem": "digits-mlp"})
    digest = sized.save(tmp_path / "s.h5")
    found = load_weights(tmp_path / "s.h5")
    assert (found.step_sizes, found.tuned, found.sha256) == (sized.step_sizes, sized.tuned, digest)
    assert "  step size layer_0/w = 0.1" in inspect.describe(str(tmp_path / "s.h5"))
    with pytest.raises(L2OError, match=r"expected numbers above 0 by names, got -1\.0"):
        dataclasses.replace(teacher, step_sizes={"layer_0/w": -1.0}).save(tmp_path / "x.h5")
    assert not (tmp_path / "x.h5").exists()
