"""HDF5 files from strangers: every attack and every damage is one clear error, or changes no value."""

import ctypes
import os
import sys
from collections.abc import Callable

import h5py
import numpy as np
import pytest

from interchange.files import reader as walk
from interchange.files.hdf5 import content_sha256, read_hdf5, write_hdf5
from interchange.files.reader import DamagedFileError, Tree
from tests.helpers.effort import few_calls
from tests.helpers.processes import said

SECRET = b"secret!!" * 8
Build = Callable[[h5py.File], object]
pytestmark = [pytest.mark.filterwarnings("ignore:.*no sha256"), pytest.mark.usefixtures("without_child")]


@pytest.fixture
def secret(tmp_path, monkeypatch):
    """A folder with a raw file and an HDF5 file that must never be read; the current one, as for HDF5."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = np.frombuffer(SECRET, np.uint8)
    return tmp_path


def attack(path, build, **options):
    with h5py.File(path, "w", **options) as file:
        file.attrs["format"], file.attrs["format_version"] = "l2o-checkpoint", "1.0.0"
        build(file)
    return path


def holding(**items: object) -> Build:
    """Links, arrays and types by name; two underscores are a slash."""

    def build(file):
        for name, value in items.items():
            file[name.replace("__", "/")] = value

    return build


def dataset(*given: object, **more: object) -> Build:
    return lambda file: file.create_dataset("x", *given, **more)


def virtual(file):
    layout = h5py.VirtualLayout((64,), "u1")
    layout[:] = h5py.VirtualSource("secret.h5", "data", (64,))
    file.create_virtual_dataset("x", layout)


def cycle(file):
    file["a/b/c"] = np.zeros(2)
    file["a/b/back"] = file["a"]


def twice(file):
    file["a"] = np.zeros(2)
    file["b"] = file["a"]


def many_shape_bombs(file):
    for index in range(40):
        file.create_dataset(f"x{index}", (2**23,), "f8", chunks=(2**20,), fillvalue=1.0)


def gzip_bomb(file):
    file.create_dataset("x", (2**27,), "u1", data=np.zeros(2**27, "u1"), chunks=(2**22,), compression=1)


def many_small_bombs(file):
    for index in range(31):
        file.create_dataset(f"x{index}", (2**23,), "f8", chunks=(2**20,), compression=1)


def foreign_attribute(file):
    file.attrs[b"caf\xe9"] = 1


def references(file):
    file["x"] = np.zeros(3)
    file.create_dataset("r", data=[file["x"].ref], dtype=h5py.ref_dtype)


EXTERNAL = holding(phi__w=h5py.ExternalLink("secret.h5", "/data"))
EXTERNAL_GROUP = holding(a__b__c__d=h5py.ExternalLink("secret.h5", "/"))
RAW = dataset((64,), "u1", external=[("secret.bin", 0, 64)])
BAD_TEXT = np.array([b"\xff\xfe"], h5py.string_dtype("utf-8", 2))
ATTACKS: dict[str, tuple[str, Build]] = {
    "external link": ("link", EXTERNAL),
    "deep external link": ("link", EXTERNAL_GROUP),
    "soft link": ("link", holding(x=np.zeros(3), phi=h5py.SoftLink("/x"))),
    "soft loop": ("link", holding(a=h5py.SoftLink("/b"), b=h5py.SoftLink("/a"))),
    "dangling link": ("link", holding(a=h5py.SoftLink("/nowhere"))),
    "raw storage": ("another file", RAW),
    "virtual": ("virtual", virtual),
    "cycle": ("linked twice", cycle),
    "root cycle": ("linked twice", lambda file: file.__setitem__("again", file["/"])),
    "twice": ("linked twice", twice),
    "deep": ("deeper", lambda file: file.create_group("/".join("d" * 200))),
    "shape bomb": ("more than the", dataset((2**50,), "f8", chunks=(2**10,))),
    "many shape bombs": ("more than the", many_shape_bombs),
    "many small bombs": ("out of a file of", many_small_bombs),
    "unwritten": ("0 stored", dataset((2**24,), "f8", chunks=(2**20,))),
    "gzip bomb": ("stored ones", gzip_bomb),
    "huge chunk": ("chunks", dataset((1,), "u1", maxshape=(None,), chunks=(2**31,))),
    "compound": ("type", holding(x=np.zeros(3, [("a", "f4"), ("b", "i4")]))),
    "opaque": ("type", holding(x=np.zeros(3, "V7"))),
    "references": ("type", references),
    "ragged": ("type", dataset((2,), h5py.vlen_dtype("i4"))),
    "array type": ("type", dataset((2,), np.dtype(("f4", (3,))))),
    "long double": ("type", holding(x=np.zeros(3, np.longdouble))),
    "complex numbers": ("type", holding(x=np.zeros(3, np.complex64))),
    "enumeration": ("type", dataset((3,), h5py.enum_dtype({"A": 1, "B": 2}, "i4"))),
    "named type": ("named type", holding(type=np.dtype("f4"))),
    "null space": ("got type float32", holding(x=h5py.Empty("f4"))),
    "scale offset": ("filters", dataset(data=np.arange(100), chunks=(100,), scaleoffset=0)),
    "array attribute": ("attribute", lambda file: file.attrs.update(big=np.zeros(1000))),
    "reference attribute": ("attribute", lambda file: file.attrs.update(r=file.ref)),
    "compound attribute": ("attribute", lambda file: file.attrs.update(c=np.zeros((), [("a", "f4")]))),
    "many attributes": ("attributes", lambda file: file.attrs.update({f"a{k}": 1 for k in range(300)})),
    "attribute in Latin-1": ("attribute that is not printable", foreign_attribute),
    "bad text": ("utf-8", dataset(data=BAD_TEXT)),
    "unprintable name": ("printable", holding(**{"a\x1b[31m": np.zeros(2)})),
}


@pytest.mark.parametrize(("told", "build"), ATTACKS.values(), ids=ATTACKS)
def test_attack_is_refused(told, build, secret):
    path = attack(secret / "attack.h5", build)
    told = f"(?i)attack.h5: .*{told}"
    with few_calls(50_000), pytest.raises(DamagedFileError, match=told) as caught:
        read_hdf5(path)
    assert "secret!!" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_nothing_else_is_opened(secret):
    """Not even opened: the kernel reports every opening of the files that the attacks point to."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    in_open = 0x20
    for name in ("secret.bin", "secret.h5"):
        assert libc.inotify_add_watch(watch, str(secret / name).encode(), in_open) >= 0
    for build in (EXTERNAL, EXTERNAL_GROUP, RAW, virtual):
        path = attack(secret / "attack.h5", build)
        with pytest.raises(DamagedFileError):
            read_hdf5(path)
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    with h5py.File(attack(secret / "attack.h5", RAW)) as file:  # plain h5py does fall for it
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
    assert int(said(code, tmp_path / "attack.h5", PYTHONWARNINGS="ignore")) < 16 * 1024


# What is written, and the bytes it takes in memory and thus of a budget.
BUDGETS = {
    "many strings of one heap object": (
        dataset(data=["a" * 50_000] * 2000, dtype=h5py.string_dtype()), 200_000_000, 0
    ),
    "one long string makes all long": (
        dataset(data=["a"] * 1999 + ["a" * 5000], dtype=h5py.string_dtype()), 39_900_000, 40_200_000
    ),
    "text attributes": (lambda file: file.attrs.update(a="x" * 5000, b="x" * 5000), 9_000, 30_000),
    "wide text": (dataset((1000,), h5py.string_dtype("utf-8", 1000)), 3_000_000, 0),
}  # fmt: skip


@pytest.mark.parametrize(("build", "too_small", "enough"), BUDGETS.values(), ids=BUDGETS)
def test_text_counts_with_what_it_takes_in_memory(build, too_small, enough, tmp_path):
    """References to one large string count each time."""
    attack(tmp_path / "attack.h5", build)
    with pytest.raises(DamagedFileError, match=f"more than the {too_small} bytes"):
        read_hdf5(tmp_path / "attack.h5", budget=too_small)
    if enough:
        assert read_hdf5(tmp_path / "attack.h5", budget=enough)


def groups(file):
    for index in range(20):
        file.create_group(f"g{index}")


@pytest.mark.parametrize(
    ("build", "what"), [(groups, "objects"), (dataset((11,), h5py.string_dtype()), "strings")]
)
def test_number_of_objects_and_strings(build, what, tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "OBJECTS", 10)
    attack(tmp_path / "attack.h5", build)
    with pytest.raises(DamagedFileError, match=f"more than 10 {what}"):
        read_hdf5(tmp_path / "attack.h5")


def test_a_path_has_as_many_names_as_are_allowed_and_no_more(tmp_path):
    for more in (0, 1):
        attack(tmp_path / "x.h5", holding(**{"__".join("d" * (walk.DEPTH + more)): 1.0}))
        if more:
            with pytest.raises(DamagedFileError, match=f"nested deeper than {walk.DEPTH}"):
                read_hdf5(tmp_path / "x.h5")
        else:
            assert len(read_hdf5(tmp_path / "x.h5").arrays) == 1


def test_text_of_any_length_is_read(tmp_path):
    """What h5py writes by default is accepted, only slower."""

    def build(file):
        file.create_dataset("x", data=["a", "", "ü"], dtype=h5py.string_dtype())
        file["scalar"] = "text"

    tree = read_hdf5(attack(tmp_path / "plain.h5", build))
    assert tree.arrays["x"].tolist() == ["a", "", "ü"] and tree.arrays["scalar"].item() == "text"


def test_big_endian_numbers_are_read_as_native(tmp_path):
    array = read_hdf5(attack(tmp_path / "x.h5", dataset(data=np.arange(3, dtype=">f8")))).arrays["x"]
    assert array.dtype == np.dtype("<f8") and array.tolist() == [0, 1, 2]


def test_big_endian_numbers_are_written_as_native(tmp_path):
    write_hdf5(tmp_path / "x.h5", Tree({"x": np.arange(3, dtype=">f8")}), "l2o-test", "1.0.0")
    array = read_hdf5(tmp_path / "x.h5").arrays["x"]
    assert array.dtype == np.dtype("<f8") and array.tolist() == [0, 1, 2]


def test_the_hash_leaves_out_itself_and_no_other_attribute():
    def of(own: str, inner: str) -> str:
        return content_sha256(Tree({}, {"": {"format": "l2o-x", "sha256": own}, "part": {"sha256": inner}}))

    assert of("a", "x") == of("b", "x") != of("a", "y")
