"""How compiled libraries are made and kept: damage, processes at once, and machines on which it cannot be."""

import os
from pathlib import Path

import pytest

from common import kernels
from common.kernels import build
from tests.helpers.processes import ROOT, said, started

TEXT = "int answer(void) { return 42; }\n"
needs_a_compiler = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing())


def asked(**environment: str) -> str:
    code = "from common.kernels.build import missing; print(missing())"
    return said(code, **{"L2O_KERNELS": "1"} | environment)


def which(folder: Path, compiler: str) -> str:
    code = "from common import kernels; print(kernels.which())"
    return said(code, L2O_KERNELS="1", CC=compiler, XDG_CACHE_HOME=str(folder))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty folder for libraries; where temporary files go is empty too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("L2O_KERNELS", "1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "symbolic-l2o"


@pytest.fixture
def own(cache, tmp_path) -> Path:
    return tmp_path / "temporary" / f"symbolic-l2o-{os.getuid()}"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Sets the compiler to a shell script, in which $out is the file it is to write."""

    def script(body: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nout=$2\n{body}\n')
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))

    return script


def test_without_a_compiler_there_is_a_reason_and_a_remedy(cache, tmp_path):
    given = {"XDG_CACHE_HOME": str(tmp_path)}
    none = asked(PATH=str(tmp_path), CC="", **given)
    assert none == "expected a C compiler, found none of cc, gcc, clang; install one, or name it in CC"
    assert "false cannot compile pool: exit 1" in asked(CC="false", **given)
    assert asked(L2O_KERNELS="0", **given) == "turned off by L2O_KERNELS=0"
    assert not list(tmp_path.glob("**/*.so"))
    made = "from tests.common.test_kernels import *; print(kernels.kernel(TEACHERS['dm'], 'float32'))"
    assert said(made, L2O_KERNELS="0", PYTHONPATH=str(ROOT)) == "None"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo 'no such option' >&2; exit 1", "compiler cannot compile test: no such option"),
        ("kill -9 $$", "compiler cannot compile test: exit -9"),
        ("exec sleep 60", "compiler cannot compile test: took more than 0 s"),
        ("echo garbage > $out", "the compiled code cannot be kept or loaded"),
        (": > $out", "the compiled code cannot be kept or loaded"),
    ],
)
def test_a_failing_compiler_is_a_reason_and_leaves_nothing_behind(cache, compiler, monkeypatch, body, reason):
    compiler(body)
    monkeypatch.setattr(build, "_TIMEOUT", 0.3)
    library, said = build.load("test", TEXT)
    assert library is None and reason in said and "\n" not in said
    assert not list(cache.iterdir())


@needs_a_compiler
def test_flags_a_compiler_does_not_know_are_left_out_and_the_record_says_so(tmp_path):
    script = tmp_path / "cc"
    script.write_text(f'#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nexec {build._compiler()[0]} "$@"\n')
    script.chmod(0o755)
    record = which(tmp_path, str(script))
    assert record.startswith("compiled: ") and "-O3" in record and "native" not in record
    assert "native" in which(tmp_path, "")


@needs_a_compiler
def test_the_flags_in_cc_come_after_ours_and_are_in_the_record(tmp_path):
    words = which(tmp_path, f"{build._compiler()[0]} -O1 -DOWN='1'").split()
    assert words.index("-O3") < words.index("-O1") < words.index("-DOWN=1")


@needs_a_compiler
def test_a_library_is_compiled_once_and_kept(cache):
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in cache.iterdir()}

    given = {"XDG_CACHE_HOME": str(cache.parent)}
    assert asked(**given) == ""
    first = kept()
    assert [path.name.split("-")[0] for path in first] == ["pool"]
    assert asked(**given) == "" and kept() == first
    assert asked(CC="false", **given) != "" and kept() == first  # another compiler's are not taken


DAMAGE = r"""
import os, random
from pathlib import Path
from common.kernels import build

TEXT = "int answer(void) { return 42; }\n"
def load():
    library, reason = build.load("test", TEXT)
    assert library is not None, reason
    assert library.answer() == 42
    (path,) = build._folder().glob("test-*.so")
    return path

path = load()
good, draw, inodes = path.read_bytes(), random.Random(0), {path.stat().st_ino}
Path(os.environ["GOOD"]).write_bytes(good)
assert load().stat().st_ino in inodes
path.unlink()
os.environ["CC"] = os.environ["COPIES"]  # from here on "compiling" is to copy what was compiled
path = load()
good = path.read_bytes()
size = len(good)
damages = [good[:k] for k in (0, 1, 63, 64, 100, 1000, 4095, 4096, 4097, size // 2, size - 1)]
damages += [good[: draw.randrange(size)] for _ in range(40)] + [good + b"x", b"\0" * size]
for _ in range(200):
    at = draw.randrange(size)
    damages.append(good[:at] + bytes([good[at] ^ 1 << draw.randrange(8)]) + good[at + 1 :])
for damaged in damages:
    # As another file: this process has the one before in its memory.
    (path.parent / "damaged").write_bytes(damaged)
    os.replace(path.parent / "damaged", path)
    found = load()
    assert found.read_bytes() == good
print(len(damages), len(list(path.parent.glob("*.tmp"))))
"""


@needs_a_compiler
def test_damaged_libraries_are_compiled_again(cache, tmp_path):
    """Cut short at any length, or with any bit turned; loading them could be a SIGBUS, or worse: run."""
    good, copies = tmp_path / "good.so", tmp_path / "copies"
    copies.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\nexec cp {good} "$2"\n')
    copies.chmod(0o755)
    given = {"XDG_CACHE_HOME": str(cache.parent), "GOOD": str(good), "COPIES": str(copies)}
    assert said(DAMAGE, L2O_KERNELS="1", **given) == "253 0"


@needs_a_compiler
def test_a_folder_in_the_place_of_a_library_is_refused(cache):
    assert build.load("test", TEXT)[0] is not None
    (path,) = cache.glob("test-*.so")
    path.unlink()
    path.mkdir()
    library, reason = build.load("test", TEXT)
    assert library is None and "cannot be kept or loaded" in reason


@needs_a_compiler
def test_processes_at_once_end_with_one_library(cache):
    code = f"from common.kernels.build import load; print(load('test', {TEXT!r})[0].answer())"
    processes = [started(code, XDG_CACHE_HOME=str(cache.parent), L2O_KERNELS="1") for _ in range(3)]
    for process in processes:
        assert process.communicate(timeout=300)[0].strip() == "42"
    assert len(list(cache.iterdir())) == 1


def test_a_folder_others_can_write_to_is_not_used(cache, own):
    assert build._folder() == cache and cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    assert build._folder() == own
    own.chmod(0o770)
    with pytest.raises(OSError, match=f"no folder of one's own below .*{own.parent}"):
        build._folder()
    if not kernels.missing():
        assert build.load("test", TEXT)[1].endswith("set XDG_CACHE_HOME to a folder")


def test_a_link_to_a_folder_is_not_used(cache, own, tmp_path):
    cache.parent.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert build._folder() == own


@pytest.mark.parametrize("place", ["/dev/null/cache", "/proc/cache"])
def test_a_cache_that_cannot_be_written_to_is_not_used(own, monkeypatch, place):
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    assert build._folder() == own


def test_a_read_only_cache_is_not_used(cache, own, monkeypatch):
    build._folder()
    monkeypatch.setattr(build.os, "access", lambda path, mode: Path(path) != cache)  # root may write anywhere
    assert build._folder() == own


def test_without_a_home_folder_the_temporary_one_is_used(own, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert build._folder() == own


def _made(folder: Path, name: str, age: float) -> Path:
    path = folder / name
    path.write_bytes(b"")
    now = build.time.time()
    os.utime(path, (now - age, now - age))
    return path


def test_what_killed_compilers_left_is_deleted_and_what_runs_is_not(cache):
    folder = build._folder()
    old, young = _made(folder, "new-a.tmp", 2 * build._ABANDONED), _made(folder, "new-b.tmp", 60.0)
    build._tidy(folder)
    assert not old.exists() and young.exists()


@needs_a_compiler
def test_the_libraries_used_last_are_kept(cache, monkeypatch):
    """Using one is enough."""
    monkeypatch.setattr(build, "_MOST", 4)
    assert build.load("used", TEXT)[0] is not None
    (used,) = cache.glob("used-*.so")
    os.utime(used, (0, 0))
    others = [_made(cache, f"{k}.so", 1000.0 + k) for k in range(8)]
    assert build.load("used", TEXT)[0] is not None
    assert build.load("test", TEXT)[0] is not None  # compiling one tidies
    assert used.exists() and [path.exists() for path in others] == [True] * 3 + [False] * 5
    assert len(list(cache.glob("*.so"))) == build._MOST + 1


def test_the_doctor_says_what_is_missing(tmp_path):
    code = "from interchange import doctor; doctor.main([])"
    out = said(code, PATH=str(tmp_path), CC="", XDG_CACHE_HOME=str(tmp_path), L2O_KERNELS="1")
    assert "found none of cc, gcc, clang" in " ".join(out.split())
