"""HDF5 files from strangers: every attack and every damage is one clear error, or changes no value."""

import ctypes
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from interchange.files import reader as walk
from interchange.files.hdf5 import read_hdf5
from interchange.files.reader import DamagedFileError

SECRET = b"secret!!" * 8


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A folder with a raw file and an HDF5 file that must never be read; the current one, as for HDF5."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.frombuffer(SECRET, np.uint8)
    return tmp_path


def attack(path, build, **options):
    """Write a file of a known format with ``build`` in it."""
    with h5py.File(path, "w", **options) as file:
        file.attrs["format"], file.attrs["format_version"] = "l2o-checkpoint", "1.0.0"
        build(file)
    return path


def external_link(file):
    file["phi/w"] = h5py.ExternalLink("secret.h5", "/data")


def deep_external_link(file):
    file["a/b/c/d"] = h5py.ExternalLink("secret.h5", "/")


def soft_link(file):
    file["x"] = np.zeros(3)
    file["phi"] = h5py.SoftLink("/x")


def soft_loop(file):
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def dangling_link(file):
    file["a"] = h5py.SoftLink("/nowhere")


def raw_storage(file):
    file.create_dataset("x", (64,), "u1", external=[("secret.bin", 0, 64)])


def virtual(file):
    layout = h5py.VirtualLayout((64,), "u1")
    layout[:] = h5py.VirtualSource("secret.h5", "data", (64,))
    file.create_virtual_dataset("x", layout)


def hard_cycle(file):
    file["a/b/c"] = np.zeros(2)
    file["a/b/back"] = file["a"]


def root_cycle(file):
    file["again"] = file["/"]


def twice(file):
    file["a"] = np.zeros(2)
    file["b"] = file["a"]


def deep(file):
    file.create_group("/".join("d" * 200))


def shape_bomb(file):
    file.create_dataset("x", (2**50,), "f8", chunks=(2**10,))


def many_shape_bombs(file):
    for index in range(40):
        file.create_dataset(f"x{index}", (2**23,), "f8", chunks=(2**20,), fillvalue=1.0)


def unwritten(file):
    file.create_dataset("x", (2**24,), "f8", chunks=(2**20,))


def gzip_bomb(file):
    file.create_dataset("x", (2**27,), "u1", data=np.zeros(2**27, "u1"), chunks=(2**22,), compression=1)


def huge_chunk(file):
    file.create_dataset("x", (1,), "u1", maxshape=(None,), chunks=(2**31,))


def compound(file):
    file["x"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def opaque(file):
    file["x"] = np.zeros(3, "V7")


def references(file):
    file["x"] = np.zeros(3)
    file.create_dataset("r", data=[file["x"].ref], dtype=h5py.ref_dtype)


def ragged(file):
    file.create_dataset("x", (2,), h5py.vlen_dtype("i4"))


def array_type(file):
    file.create_dataset("x", (2,), np.dtype(("f4", (3,))))


def long_double(file):
    file["x"] = np.zeros(3, np.longdouble)


def complex_numbers(file):
    file["x"] = np.zeros(3, np.complex64)


def enumeration(file):
    file.create_dataset("x", (3,), h5py.enum_dtype({"A": 1, "B": 2}, "i4"))


def named_type(file):
    file["type"] = np.dtype("f4")


def null_space(file):
    file["x"] = h5py.Empty("f4")


def scale_offset(file):
    file.create_dataset("x", data=np.arange(100), chunks=(100,), scaleoffset=0)


def array_attribute(file):
    file.attrs["big"] = np.zeros(1000)


def reference_attribute(file):
    file.attrs["r"] = file.ref


def compound_attribute(file):
    file.attrs.create("c", np.zeros((), [("a", "f4")]))


def many_attributes(file):
    for index in range(300):
        file.attrs[f"a{index}"] = 1


def bad_text(file):
    file.create_dataset("x", data=np.array([b"\xff\xfe"], h5py.string_dtype("utf-8", 2)))


def unprintable_name(file):
    file["a\x1b[31m"] = np.zeros(2)


ATTACKS = {
    external_link: "link",
    deep_external_link: "link",
    soft_link: "link",
    soft_loop: "link",
    dangling_link: "link",
    raw_storage: "another file",
    virtual: "virtual",
    hard_cycle: "linked twice",
    root_cycle: "linked twice",
    twice: "linked twice",
    deep: "deeper",
    shape_bomb: "more than the",
    many_shape_bombs: "more than the",
    unwritten: "0 stored",
    gzip_bomb: "stored ones",
    huge_chunk: "chunks",
    compound: "type",
    opaque: "type",
    references: "type",
    ragged: "type",
    array_type: "type",
    long_double: "type",
    complex_numbers: "type",
    enumeration: "type",
    named_type: "named type",
    null_space: "got type float32",
    scale_offset: "filters",
    array_attribute: "attribute",
    reference_attribute: "attribute",
    compound_attribute: "attribute",
    many_attributes: "attributes",
    bad_text: "utf-8",
    unprintable_name: "printable",
}


@pytest.mark.filterwarnings("ignore:.*no sha256")
@pytest.mark.parametrize("build", ATTACKS, ids=lambda build: build.__name__)
def test_attack_is_refused(secret, build):
    path = attack(secret / "attack.h5", build)
    start = time.perf_counter()
    with pytest.raises(DamagedFileError, match=f"(?i)attack.h5: .*{ATTACKS[build]}") as caught:
        read_hdf5(path)
    assert time.perf_counter() - start < 1
    assert "secret!!" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
@pytest.mark.filterwarnings("ignore:.*no sha256")
def test_nothing_else_is_opened(secret):
    """Not even opened: the kernel reports every opening of the files that the attacks point to."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    in_open = 0x20
    for name in ("secret.bin", "secret.h5"):
        assert libc.inotify_add_watch(watch, str(secret / name).encode(), in_open) >= 0
    for build in (external_link, deep_external_link, raw_storage, virtual):
        path = attack(secret / "attack.h5", build)
        with pytest.raises(DamagedFileError):
            read_hdf5(path)
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    with h5py.File(attack(secret / "attack.h5", raw_storage)) as file:  # plain h5py does fall for it
        assert file["x"][:].tobytes() == SECRET
    assert os.read(watch, 4096)
    os.close(watch)


def test_refusing_a_bomb_takes_no_memory(tmp_path):
    attack(tmp_path / "attack.h5", gzip_bomb)
    code = """
import resource, sys
from common.errors import L2OError
from interchange.files.hdf5 import read_hdf5
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_hdf5(sys.argv[1])
except L2OError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    arguments = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "attack.h5")]
    root = Path(__file__).parents[2]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=True)
    assert int(result.stdout) < 16 * 1024


def test_many_strings_of_one_heap_object(tmp_path):
    """References to one large string count each time."""

    def build(file):
        file.create_dataset("x", data=["a" * 50_000] * 2000, dtype=h5py.string_dtype())

    attack(tmp_path / "attack.h5", build)
    with warnings.catch_warnings(), pytest.raises(DamagedFileError, match="more than the 200000000 bytes"):
        warnings.simplefilter("ignore")
        read_hdf5(tmp_path / "attack.h5", budget=200_000_000)


@pytest.mark.filterwarnings("ignore:.*no sha256")
def test_one_long_string_makes_all_long(tmp_path):
    def build(file):
        file.create_dataset("x", data=["a"] * 1999 + ["a" * 5000], dtype=h5py.string_dtype())

    attack(tmp_path / "attack.h5", build)
    assert read_hdf5(tmp_path / "attack.h5", budget=40_200_000).arrays["x"].nbytes == 40_000_000
    with pytest.raises(DamagedFileError, match="more than the 39900000 bytes"):
        read_hdf5(tmp_path / "attack.h5", budget=39_900_000)


@pytest.mark.filterwarnings("ignore:.*no sha256")
def test_text_attributes_count(tmp_path):
    attack(tmp_path / "attack.h5", lambda file: file.attrs.update({"a": "x" * 5000, "b": "x" * 5000}))
    read_hdf5(tmp_path / "attack.h5", budget=30_000)
    with pytest.raises(DamagedFileError, match="more than the 9000 bytes"):
        read_hdf5(tmp_path / "attack.h5", budget=9000)


@pytest.mark.filterwarnings("ignore:.*no sha256")
def test_number_of_objects_and_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "OBJECTS", 10)

    def groups(file):
        for index in range(20):
            file.create_group(f"g{index}")

    attack(tmp_path / "attack.h5", groups)
    with pytest.raises(DamagedFileError, match="more than 10 objects"):
        read_hdf5(tmp_path / "attack.h5")
    attack(tmp_path / "attack.h5", lambda file: file.create_dataset("x", (11,), h5py.string_dtype()))
    with pytest.raises(DamagedFileError, match="more than 10 strings"):
        read_hdf5(tmp_path / "attack.h5")


def test_wide_text_counts_as_memory(tmp_path):
    def build(file):
        file.create_dataset("x", (1000,), h5py.string_dtype("utf-8", 1000))

    attack(tmp_path / "attack.h5", build)
    with pytest.raises(DamagedFileError, match="more than the 3000000 bytes"):
        read_hdf5(tmp_path / "attack.h5", budget=3_000_000)


def test_text_of_any_length_is_read(tmp_path):
    """What h5py writes by default is accepted, only slower."""

    def build(file):
        file.create_dataset("x", data=["a", "", "ü"], dtype=h5py.string_dtype())
        file["scalar"] = "text"

    path = attack(tmp_path / "plain.h5", build)
    with pytest.warns(UserWarning, match="no sha256"):
        tree = read_hdf5(path)
    assert tree.arrays["x"].tolist() == ["a", "", "ü"] and tree.arrays["scalar"].item() == "text"


def test_big_endian_numbers_are_read_as_native(tmp_path):
    path = attack(tmp_path / "x.h5", lambda file: file.create_dataset("x", data=np.arange(3, dtype=">f8")))
    with pytest.warns(UserWarning, match="no sha256"):
        array = read_hdf5(path).arrays["x"]
    assert array.dtype == np.dtype("<f8") and array.tolist() == [0, 1, 2]
