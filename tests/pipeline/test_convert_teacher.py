"""Checkpoints of the ICLR 2022 code become teachers."""

import re
from pathlib import Path

import numpy as np
import pytest

from common.tables.teachers import TEACHERS

torch = pytest.importorskip("torch")

from interchange.files.weights import load_weights  # noqa: E402
from torch_impl.convert import canonical, main  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"


def write_pth(folder: Path, name: str, change: dict | None = None) -> Path:
    golden = np.load(GOLDEN / f"{name}.npz")
    state = {key[2:]: torch.from_numpy(golden[key]) for key in golden if key.startswith("w/")}
    path = folder / f"{name}.pth"
    torch.save(state | (change or {}), path)
    return path


@pytest.mark.parametrize("name", ["rp_s", "rp_extra", "dm_raw"])
def test_a_checkpoint_becomes_a_teacher(name, tmp_path, capsys):
    path = write_pth(tmp_path, name)
    assert main([str(path), "--teacher", name, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"teacher: {tmp_path / 'run' / 'teacher.h5'}\n"
    teacher = load_weights(tmp_path / "run")
    assert teacher.row == TEACHERS[name]
    # That these weights compute what the original computed is shown in tests/torch_impl/test_teachers.py.
    expected = canonical({key: value.numpy() for key, value in torch.load(path).items()})
    assert teacher.weights.keys() == expected.keys()
    assert all(np.array_equal(teacher.weights[key], expected[key]) for key in expected)


def test_layer_sizes_are_the_files_and_inputs_may_be_named(tmp_path):
    path = write_pth(tmp_path, "rp_extra")
    inputs = "mt+g+mom5+mom9+mom99"
    assert main([str(path), "--teacher", "rp_s", "--inputs", inputs, "--quiet"]) == 0
    row = load_weights(tmp_path / "teacher.h5").row
    assert (row.pre, row.lstm, row.inputs) == (9, (12,), TEACHERS["rp_extra"].inputs)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "cannot be read"),
        ("text", "cannot be read"),
        ("code", "cannot be read"),
        ("a tensor", "cannot be read"),
        ("resnet", "'layer1.conv.weight'"),
        ("inputs", "expected a network of 2 inputs .m_tilde.g_tilde., got one of 5"),
        ("shape", "expected shape"),
        ("there", "is there already"),
        ("teacher", "unknown teacher"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_in_one_line(kind, words, tmp_path, capsys):
    path, flags = tmp_path / "x.pth", ["--out", str(tmp_path / "out")]
    if kind == "text":
        path.write_text("<html>")
    elif kind == "code":  # a whole module: loading it would run code
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "a tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "resnet":
        torch.save({"layer1.conv.weight": torch.zeros(3)}, path)
    elif kind == "inputs":
        path = write_pth(tmp_path, "rp_extra")
    elif kind == "shape":
        path = write_pth(tmp_path, "rp_s", {"output.weight": torch.zeros(1, 3)})
    elif kind in ("there", "teacher"):
        path = write_pth(tmp_path, "rp_s")
        if kind == "there":
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "teacher.h5").write_text("")
        else:
            flags += ["--teacher", "rpp"]
    assert main([str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("python -m torch_impl.convert: error: ")
    assert re.search(words, error), error
    assert not (tmp_path / "out" / "teacher.h5").exists() or kind == "there"
