"""Files of others' formats: small ones that unpack to much, pipes, and more rows than anyone writes."""

import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest

from common.data import datasets
from common.data.dataset_files import read, read_npz
from common.errors import L2OError
from interchange.convert.hall_of_fame import import_hall_of_fame
from interchange.rule.front import FRONT_COLUMNS, read_front
from tests.helpers.effort import few_calls


def npz(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(shape, count: int, dtype: str = "u1") -> bytes:
    """An array's header, and so many bytes of zeros."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(count)


def test_an_npz_that_unpacks_to_far_more_than_it_is_is_refused_unread(tmp_path):
    path = npz(tmp_path / "bomb.npz", x=npy((1 << 28,), 1 << 28), y=npy((4,), 4))
    assert path.stat().st_size < 1 << 19
    with pytest.raises(L2OError, match=r"bomb\.npz: expected an npz .* more than 67108864 bytes"):
        datasets.source(str(path))


@pytest.mark.parametrize("declared", [(1 << 40,), (3,), (5, 1)])
def test_an_array_of_an_npz_is_what_its_header_says(declared, tmp_path):
    """Nothing is allocated for what is not there."""
    path = npz(tmp_path / "x.npz", x=npy(declared, 4), y=npy((4,), 4))
    with pytest.raises(L2OError, match=r"x\.npy: .* in \d+ bytes"):
        read_npz(path, ("x", "y"))


def test_an_npz_as_numpy_writes_it_is_read(tmp_path):
    x = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", x=x, y=np.array(3), extra=np.array([None]))
        found = read_npz(tmp_path / "x.npz", ("x_train",), ("x", "y"))
        assert np.array_equal(found[0], x) and found[1].tolist() == [3]


def test_packed_images_that_unpack_to_far_more_are_refused(tmp_path):
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(80 << 20), 1))
    for name in ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(struct.pack(">2I", 2049, 0))
    with pytest.raises(L2OError, match=r"IDX file .*more than 67108864 bytes"):
        read("mnist", str(tmp_path))
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(gzip.compress(bytes(80 << 20), 1))
    with pytest.raises(L2OError, match="CIFAR's binary version, got more than 67108864 bytes"):
        read("cifar100", str(tmp_path))


def test_a_pipe_is_no_data_set(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(L2OError, match="regular file"):
        datasets.source(str(tmp_path / "pipe.npz"))


def test_a_hall_of_fame_of_thousands_of_equations_is_refused_at_once(tmp_path):
    path = tmp_path / "hall_of_fame.csv"
    path.write_text("Complexity,Loss,Equation\n" + '3,0.5,"g * 2.0"\n' * 2000)
    assert len(import_hall_of_fame(path)) == 2000
    path.write_text("Complexity,Loss,Equation\n" + '3,0.5,"g * 2.0"\n' * 20_000)
    with few_calls(300_000), pytest.raises(L2OError, match="at most 2000 equations, got 20001 lines"):
        import_hall_of_fame(path)


def test_a_front_with_a_field_too_long_for_a_table_is_one_line(tmp_path):
    (tmp_path / "front.csv").write_text(",".join(FRONT_COLUMNS) + "\n" + "x" * 200_000 + "\n")
    with pytest.raises(L2OError, match=r"front\.csv: expected a front's table"):
        read_front(tmp_path)


def packed_pth(path) -> None:
    """As torch writes it, but packed, with 80 MB of zeros in it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/0", bytes(80 << 20))


def repeated_number(path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"output.weight": torch.zeros(1, dtype=torch.float16).expand(1 << 30)}, path)


@pytest.mark.parametrize("build", [packed_pth, repeated_number])
def test_a_pth_that_becomes_far_more_than_it_is_is_refused(build, tmp_path):
    pytest.importorskip("torch")
    from torch_impl.convert import ConvertConfig, convert

    build(tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 1 << 20
    with pytest.raises(L2OError, match=r"x\.pth: expected a state dict .* bytes"):
        convert(ConvertConfig(file=str(tmp_path / "x.pth")))
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(L2OError, match="regular file"):
        convert(ConvertConfig(file=str(tmp_path / "pipe.pth")))
