"""Damaged HDF5 files: truncated, changed, of another version, on a full disk; and what a good one holds."""

import copy
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from common.errors import L2OError
from common.run.storage import ReadError
from interchange.files.hdf5 import content_sha256, read_hdf5, write_hdf5
from interchange.files.reader import DamagedFileError, Tree, VersionError
from tests.helpers.processes import started

pytestmark = pytest.mark.usefixtures("without_child")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    generator = np.random.default_rng(0)
    tree = Tree(
        {
            "phi/w": generator.normal(size=(5, 3)),
            "phi/b": generator.normal(size=4).astype("f4"),
            "big": generator.normal(size=(100, 90)).astype("f8"),
            "names": np.array(["a", "bü", ""]),
            "flags": np.array([True, False]),
            "empty": np.zeros((0, 3), "i4"),
            "scalar": np.array(7, "u2"),
        },
        {"": {"seed": 3, "text": "hello"}, "phi": {"scale": 0.1, "yes": True}},
    )
    path = tmp_path_factory.mktemp("good") / "good.h5"
    write(path, tree)
    return path, read_hdf5(path)


def same(one: Tree, other: Tree) -> bool:
    for name, array in one.arrays.items():
        found = other.arrays.get(name)
        if found is None or found.dtype != array.dtype or not np.array_equal(found, array):
            return False
    wanted = {name: values.items() - {("sha256", one.sha256)} for name, values in one.attributes.items()}
    return all(values <= other.attributes[name].items() for name, values in wanted.items())


def write(path: Path, tree: Tree, version: str = "1.0.0") -> None:
    write_hdf5(path, tree, "l2o-checkpoint", version)


def test_round_trip_and_same_bytes(good, tmp_path):
    path, tree = good
    assert tree.arrays["big"].shape == (100, 90) and tree.arrays["names"].tolist() == ["a", "bü", ""]
    assert tree.arrays["flags"].dtype == bool and tree.arrays["scalar"].shape == ()
    assert tree.attributes["phi"] == {"scale": 0.1, "yes": True}
    assert type(tree.attributes[""]["seed"]) is int and type(tree.attributes["phi"]["yes"]) is bool
    assert tree.sha256 == content_sha256(tree) == tree.attributes[""]["sha256"]
    time.sleep(1.1)  # HDF5 stores times in seconds
    write(tmp_path / "again.h5", tree)
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()
    with h5py.File(path) as file:
        dataset = file["big"]
        assert dataset.fletcher32 and dataset.shuffle and dataset.compression == "lzf"
        assert file["names"][1] == "bü".encode()


def test_hash_covers_every_part(good):
    _, tree = good
    changes = [
        lambda t: t.arrays["phi/w"].__setitem__((0, 0), 0.5),
        lambda t: t.arrays.update({"phi/w": t.arrays["phi/w"].reshape(3, 5)}),
        lambda t: t.arrays.update({"phi/b": t.arrays["phi/b"].view("i4")}),
        lambda t: t.arrays.update({"names": np.array(["a", "b", ""])}),
        lambda t: t.arrays.update({"phi/v": t.arrays.pop("phi/w")}),
        lambda t: t.arrays.update({"more": np.zeros((0,))}),
        lambda t: t.attributes["phi"].update(scale=0.1 + 1e-17 + 2e-17),
        lambda t: t.attributes["phi"].update(yes=1),
        lambda t: t.attributes[""].update(seed=3.0),
        lambda t: t.attributes["phi"].update(scale=(0.1).hex()),
        lambda t: t.attributes["phi/w"].update(unit="m"),
        lambda t: t.attributes.update(new={"x": 1}),
    ]
    for index, change in enumerate(changes):
        copied = copy.deepcopy(tree)
        assert content_sha256(copied) == tree.sha256
        change(copied)
        assert content_sha256(copied) != tree.sha256, index


def test_truncated_anywhere_is_refused(good, tmp_path):
    data = good[0].read_bytes()
    path = tmp_path / "short.h5"
    for length in [*range(0, 64), *np.linspace(64, len(data) - 1, 150).astype(int)]:
        path.write_bytes(data[:length])
        with pytest.raises(L2OError, match=r"short\.h5"):
            read_hdf5(path)


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_are_noticed_or_harmless(good, tmp_path):
    path, tree = good
    data = path.read_bytes()
    dense = range(0, len(data), max(len(data) // 500, 1))
    noticed = 0
    for seed, place in enumerate(dense):
        changed = bytearray(data)
        changed[place] ^= 1 << (seed % 8) if seed % 2 else 0xFF
        target = tmp_path / "flipped.h5"
        target.write_bytes(changed)
        try:
            assert same(tree, read_hdf5(target)), place
        except L2OError as error:
            assert "flipped.h5" in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed > 300


def test_without_hash_warns_with_wrong_hash_refuses(good, tmp_path):
    path = tmp_path / "hash.h5"
    path.write_bytes(good[0].read_bytes())
    with h5py.File(path, "a") as file:
        file["phi/w"][0, 0] = 0.25
    message = r"SHA-256 .*; the file was changed or damaged; record it again"
    with pytest.raises(DamagedFileError, match=message):
        read_hdf5(path)
    with h5py.File(path, "a") as file:
        del file.attrs["sha256"]
    with pytest.warns(UserWarning, match="no sha256"):
        assert read_hdf5(path).arrays["phi/w"][0, 0] == 0.25


def test_formats_and_versions(good, tmp_path):
    with pytest.raises(L2OError, match="expected a teacher, got a checkpoint"):
        read_hdf5(good[0], "l2o-teacher")
    path = tmp_path / "version.h5"
    for version, remedy in (("2.0.0", "update this project"), ("0.9.0", "record it again")):
        write(path, Tree(), version)
        message = f"expected l2o-checkpoint version 1.x, got {version}; {remedy}"
        with pytest.raises(VersionError, match=message):
            read_hdf5(path)
    write(path, Tree(), "1.7.0")
    with pytest.warns(UserWarning, match="newer"):
        read_hdf5(path)
    for version in ("1", "one", "1.0.0.0", "1.-1.0", "²." * 2 + "0"):
        write(path, Tree(), version)
        with pytest.raises(DamagedFileError, match="format_version"):
            read_hdf5(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1.0
    with pytest.raises(L2OError, match="format attribute"):
        read_hdf5(path)


def test_not_a_file_of_ours(tmp_path):
    with pytest.raises(ReadError, match="No such file"):
        read_hdf5(tmp_path / "none.h5")
    with pytest.raises(ReadError, match="regular file"):
        read_hdf5(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReadError, match="regular file"):
        read_hdf5(tmp_path / "pipe")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(L2OError, match="expected a teacher, got a zip archive"):
        read_hdf5(tmp_path / "zip")
    for content in (b"", b"\x89HDF\r\n\x1a\n", b"x" * 10_000):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(DamagedFileError, match="expected a whole HDF5 file"):
            read_hdf5(tmp_path / "other")


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, "c8"), np.zeros(2, "V2"), np.array([object()]), np.zeros(2, "longdouble"), ["a\0b"], [b"x"]],
    ids=["complex", "void", "object", "longdouble", "nul in text", "bytes"],
)
def test_writer_refuses_what_the_reader_would(tmp_path, value):
    with pytest.raises(L2OError, match=r"x\.h5: a: expected"):
        write(tmp_path / "x.h5", Tree({"a": value}))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [None, [1], 2**63, "a\0", np.zeros(2)], ids=str)
def test_writer_refuses_odd_attributes(tmp_path, value):
    with pytest.raises(L2OError, match="attribute a: expected"):
        write(tmp_path / "x.h5", Tree({}, {"": {"a": value}}))


def test_full_disk_is_one_clean_error(good, tmp_path):
    path = tmp_path / "file.h5"
    path.write_bytes(good[0].read_bytes())
    code = """
import resource, sys
import numpy as np
from common.run.storage import StorageError
from interchange.files.hdf5 import write_hdf5
from interchange.files.reader import Tree
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    numbers = np.random.default_rng(0).normal(size=100_000)
    write_hdf5(sys.argv[1], Tree({"x": numbers}), "l2o-checkpoint", "1.0.0")
except StorageError as error:
    print(error)
    sys.exit(74)
"""
    for limit in (0, 4096, 700_000):
        process = started(code, path, limit)
        out, err = process.communicate()
        assert process.returncode == 74, err
        assert str(path) in out and "is unchanged" in out
        assert path.read_bytes() == good[0].read_bytes() and os.listdir(tmp_path) == ["file.h5"]
