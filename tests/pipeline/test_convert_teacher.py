"""Checkpoints of the ICLR 2022 code become teachers."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.tables.teachers import TEACHERS

torch = pytest.importorskip("torch")

from interchange.files.weights import load_weights  # noqa: E402
from torch_impl.convert import canonical, main  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"


def state(name: str) -> dict:
    golden = np.load(GOLDEN / f"{name}.npz")
    return {key[2:]: torch.from_numpy(golden[key]) for key in golden if key.startswith("w/")}


@pytest.mark.parametrize("name", ["rp_s", "rp_extra", "dm_raw"])
def test_a_checkpoint_becomes_a_teacher(name, tmp_path, capsys):
    path = tmp_path / f"{name}.pth"
    torch.save(state(name), path)
    assert main([str(path), "--teacher", name, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"teacher: {tmp_path / 'run' / 'teacher.h5'}\n"
    teacher = load_weights(tmp_path / "run")
    assert teacher.row == TEACHERS[name]
    # That these weights compute what the original computed is shown in tests/torch_impl/test_teachers.py.
    expected = canonical({key: value.numpy() for key, value in state(name).items()})
    assert teacher.weights.keys() == expected.keys()
    assert all(np.array_equal(teacher.weights[key], expected[key]) for key in expected)


def test_layer_sizes_are_the_files_and_inputs_may_be_named(tmp_path):
    path = tmp_path / "rp_extra.pth"
    torch.save(state("rp_extra"), path)
    inputs = "mt+g+mom5+mom9+mom99"
    assert main([str(path), "--teacher", "rp_s", "--inputs", inputs, "--quiet"]) == 0
    row = load_weights(tmp_path / "teacher.h5").row
    assert (row.pre, row.lstm, row.inputs) == (9, (12,), TEACHERS["rp_extra"].inputs)


def test_the_factor_before_tanh_is_given_because_checkpoints_lack_it(tmp_path):
    path = tmp_path / "rp_s.pth"
    torch.save(state("rp_s"), path)
    assert main([str(path), "--pre-tanh-scale", "80", "--quiet"]) == 0
    found = load_weights(tmp_path / "teacher.h5")
    assert (found.row.pre_tanh_scale, found.row.scale) == (80.0, 0.1 * TEACHERS["rp_s"].scale)
    assert found.weights["out/gain"] == 80.0


WRAPPED = {
    "DataParallel": lambda weights: {f"module.{key}": value for key, value in weights.items()},
    "in a dict": lambda weights: {"epoch": 3, "state_dict": weights},
    "parameters": lambda weights: {key: torch.nn.Parameter(value) for key, value in weights.items()},
    "bfloat16": lambda weights: {key: value.bfloat16() for key, value in weights.items()},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_checkpoints_are_read_as_people_save_them(wrap, tmp_path):
    torch.save(state("rp_s"), tmp_path / "plain.pth")
    torch.save(wrap(state("rp_s")), tmp_path / "wrapped.pth")
    for name in ("plain", "wrapped"):
        assert main([str(tmp_path / f"{name}.pth"), "--quiet", "--out", str(tmp_path / name)]) == 0
    plain, wrapped = (load_weights(tmp_path / name).weights for name in ("plain", "wrapped"))
    close = 1e-2 if wrap is WRAPPED["bfloat16"] else 0.0
    assert all(np.allclose(plain[key], wrapped[key], rtol=close, atol=close) for key in plain)


def saved(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


# What lies at x.pth, more flags, and what the line says.
WRONG = {
    "missing": (lambda path: None, "", "cannot read .*: No such file"),
    "text": (lambda path: path.write_text("<html>"), "", "cannot be read"),
    "code": (saved(torch.nn.Linear(2, 2)), "", "cannot be read"),  # a whole module: loading it would run code
    "a tensor": (saved(torch.zeros(3)), "", "cannot be read"),
    "resnet": (saved({"layer1.conv.weight": torch.zeros(3)}), "", "'layer1.conv.weight'"),
    "a bias missing": (
        saved({key: value for key, value in state("rp_s").items() if not key.endswith("bias_hh")}),
        "",
        "expected two biases a cell, got no recurs.0.bias_hh",
    ),
    "cells missing": (
        saved(state("rp_s")),
        "--teacher rnnprop",
        "expected 2 LSTM cells, as 'rnnprop' has, got 1",
    ),
    "inputs": (
        saved(state("rp_extra")),
        "",
        "expected a network of 2 inputs .m_tilde.g_tilde., got one of 5",
    ),
    "shape": (saved(state("rp_s") | {"output.weight": torch.zeros(1, 3)}), "", "expected shape"),
    "inputs, and there": (saved(state("rp_extra")), "--out {here}/full", "expected a network of 2 inputs"),
    "there": (saved(state("rp_s")), "--out {here}/full", "is there already"),
    "teacher": (saved(state("rp_s")), "--teacher rpp", "unknown teacher"),
}


@pytest.mark.parametrize(("write", "flags", "told"), WRONG.values(), ids=WRONG)
def test_what_is_no_such_checkpoint_is_refused_in_one_line(write, flags, told, tmp_path, refused):
    path, out = tmp_path / "x.pth", tmp_path / "out"
    write(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "teacher.h5").write_text("")
    line = refused(f"torch_impl.convert {path} --out {out} {flags.format(here=tmp_path)}")
    assert re.search(told, line), line
    assert not (out / "teacher.h5").exists() and (tmp_path / "full" / "teacher.h5").read_text() == ""
