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

from common.errors import L2OError
from common.storage import StorageError
from interchange.storage import content_sha256, read_hdf5, write_hdf5
from interchange.walk import DamagedFileError, Tree, VersionError

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
    null_space: "type",
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
from interchange.storage import read_hdf5
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


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small file with every kind of content."""
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
    write_hdf5(path, tree, "l2o-checkpoint", "1.0.0")
    return path, read_hdf5(path)


def same(one: Tree, other: Tree) -> bool:
    """Equal in every value the writer wrote."""
    return all(
        name in other.arrays
        and other.arrays[name].dtype == array.dtype
        and np.array_equal(other.arrays[name], array)
        for name, array in one.arrays.items()
    ) and all(
        other.attributes[name].get(key) == value
        for name, values in one.attributes.items()
        for key, value in values.items()
        if key != "sha256"
    )


def test_round_trip_and_same_bytes(good, tmp_path):
    path, tree = good
    assert tree.arrays["big"].shape == (100, 90) and tree.arrays["names"].tolist() == ["a", "bü", ""]
    assert tree.arrays["flags"].dtype == bool and tree.arrays["scalar"].shape == ()
    assert tree.attributes["phi"] == {"scale": 0.1, "yes": True}
    assert type(tree.attributes[""]["seed"]) is int and type(tree.attributes["phi"]["yes"]) is bool
    assert tree.sha256 == content_sha256(tree) == tree.attributes[""]["sha256"]
    time.sleep(1.1)  # HDF5 stores times in seconds
    write_hdf5(tmp_path / "again.h5", tree, "l2o-checkpoint", "1.0.0")
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
        lambda t: t.attributes.update(new={"x": 1}),
    ]
    for index, change in enumerate(changes):
        arrays = {name: array.copy() for name, array in tree.arrays.items()}
        copy = Tree(arrays, {name: dict(values) for name, values in tree.attributes.items()})
        assert content_sha256(copy) == tree.sha256
        change(copy)
        assert content_sha256(copy) != tree.sha256, index


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
    with pytest.raises(
        DamagedFileError, match=r"SHA-256 .*; the file was changed or damaged; record it again"
    ):
        read_hdf5(path)
    with h5py.File(path, "a") as file:
        del file.attrs["sha256"]
    with pytest.warns(UserWarning, match="no sha256"):
        assert read_hdf5(path).arrays["phi/w"][0, 0] == 0.25


def test_formats_and_versions(good, tmp_path):
    with pytest.raises(L2OError, match="expected format l2o-teacher, got l2o-checkpoint"):
        read_hdf5(good[0], "l2o-teacher")
    path = tmp_path / "version.h5"
    for version, remedy in (("2.0.0", "update this project"), ("0.9.0", "record it again")):
        write_hdf5(path, Tree(), "l2o-checkpoint", version)
        with pytest.raises(
            VersionError, match=f"expected l2o-checkpoint version 1.x, got {version}; {remedy}"
        ):
            read_hdf5(path)
    write_hdf5(path, Tree(), "l2o-checkpoint", "1.7.0")
    with pytest.warns(UserWarning, match="newer"):
        read_hdf5(path)
    for version in ("1", "one", "1.0.0.0", "1.-1.0", "²." * 2 + "0"):
        write_hdf5(path, Tree(), "l2o-checkpoint", version)
        with pytest.raises(DamagedFileError, match="format_version"):
            read_hdf5(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1.0
    with pytest.raises(L2OError, match="format attribute"):
        read_hdf5(path)


def test_not_a_file_of_ours(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_hdf5(tmp_path / "none.h5")
    with pytest.raises(StorageError, match="regular file"):
        read_hdf5(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="regular file"):
        read_hdf5(tmp_path / "pipe")
    for content in (b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"x" * 10_000):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(DamagedFileError, match="expected a whole HDF5 file"):
            read_hdf5(tmp_path / "other")


@pytest.mark.parametrize(
    "value",
    [np.zeros(2, "c8"), np.zeros(2, "V2"), np.array([object()]), np.zeros(2, "longdouble"), ["a\0b"], [b"x"]],
    ids=str,
)
def test_writer_refuses_what_the_reader_would(tmp_path, value):
    with pytest.raises(L2OError, match=r"x\.h5: a: expected"):
        write_hdf5(tmp_path / "x.h5", Tree({"a": value}), "l2o-checkpoint", "1.0.0")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [None, [1], 2**63, "a\0", np.zeros(2)], ids=str)
def test_writer_refuses_odd_attributes(tmp_path, value):
    with pytest.raises(L2OError, match="attribute a: expected"):
        write_hdf5(tmp_path / "x.h5", Tree({}, {"": {"a": value}}), "l2o-checkpoint", "1.0.0")


def test_full_disk_is_one_clean_error(good, tmp_path):
    path = tmp_path / "file.h5"
    path.write_bytes(good[0].read_bytes())
    code = """
import resource, sys
import numpy as np
from common.storage import StorageError
from interchange.storage import write_hdf5
from interchange.walk import Tree
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    numbers = np.random.default_rng(0).normal(size=100_000)
    write_hdf5(sys.argv[1], Tree({"x": numbers}), "l2o-checkpoint", "1.0.0")
except StorageError as error:
    print(error)
    sys.exit(74)
"""
    for limit in (0, 4096, 700_000):
        arguments = [sys.executable, "-c", code, str(path), str(limit)]
        root = Path(__file__).parents[2]
        result = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=False)
        assert result.returncode == 74, result.stderr
        assert str(path) in result.stdout and "is unchanged" in result.stdout
        assert path.read_bytes() == good[0].read_bytes() and os.listdir(tmp_path) == ["file.h5"]


def test_big_endian_numbers_are_read_as_native(tmp_path):
    path = attack(tmp_path / "x.h5", lambda file: file.create_dataset("x", data=np.arange(3, dtype=">f8")))
    with pytest.warns(UserWarning, match="no sha256"):
        array = read_hdf5(path).arrays["x"]
    assert array.dtype == np.dtype("<f8") and array.tolist() == [0, 1, 2]
