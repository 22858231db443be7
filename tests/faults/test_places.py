"""Commands where nothing can be written, or not enough: one line, a code, and what was there is whole."""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.run.storage import TEMPORARY_PREFIX
from tests.faults.starter import Starter
from tests.faults.table import COMMANDS, SHORT, prepared

pytestmark = pytest.mark.slow
ALL = COMMANDS | SHORT


@pytest.fixture(scope="module")
def inputs(starter: Starter, tmp_path_factory) -> Path:
    return prepared(
        tmp_path_factory.mktemp("inputs"), lambda words: starter.run({"words": words}), starter.backend
    )


def told_by(starter: Starter, words: list[str], **job) -> tuple[int, list[str]]:
    """The exit code, and the lines of the program itself on stderr."""
    (told,) = starter.run({"words": words, **job})
    assert told["code"] >= 0 and "Traceback" not in told["error"], told
    return told["code"], [line for line in told["error"].splitlines() if line.startswith("python -m ")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of the test's own, made as large as is said."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    made = subprocess.run(words, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {made.stderr.strip()}")

    def sized(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
        return place

    yield sized
    subprocess.run(["umount", str(place)], check=True)


def filled(name: str, starter: Starter, inputs: Path, out: Path, **job) -> bool:
    """Whether there was too little space; the command says so in one line and leaves nothing half-written."""
    code, lines = told_by(starter, COMMANDS[name].words(starter.backend, inputs, out), **job)
    assert (code, len(lines)) in ((74, 1), (0, 0)) or (name == "distill" and code in (2, 74)), lines
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    return code != 0


def gone_on(name: str, starter: Starter, inputs: Path, out: Path) -> None:
    words = COMMANDS[name].words(starter.backend, inputs, out, goes_on=True)
    assert told_by(starter, words)[0] in (0, 2)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on_later(
    name, starter, inputs, times, dice: random.Random, tell, tmp_path
):
    """By the largest size a file may have, which every file meets, those for other programs too."""
    failed, count = 0, times(COMMANDS[name].cases(50))
    for number in range(count):
        out = tmp_path / str(number)
        limit = dice.choice((0, dice.randrange(512), dice.randrange(1 << 12), dice.randrange(1 << 16)))
        failed += filled(name, starter, inputs, out, limit=limit)
        gone_on(name, starter, inputs, out)
    tell(f"{count} sizes, {failed} too small: exit 74, one line, no temporary file, gone on with")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_small_disk_is_one_line_and_the_same_command_goes_on_later(
    name, starter, inputs, times, dice: random.Random, tell, disk
):
    failed, count = 0, times(COMMANDS[name].cases(50))
    for _ in range(count):
        out = disk(f"{4 * dice.choice((1, 2, dice.randrange(3, 10), dice.randrange(3, 200)))}k") / "out"
        failed += filled(name, starter, inputs, out)
        disk("16m")
        gone_on(name, starter, inputs, out)
        shutil.rmtree(out)
    tell(f"{count} disks, {failed} too small: exit 74, one line, no temporary file, gone on with")


@pytest.mark.parametrize("name", [name for name in ALL if "{out}" in ALL[name].line])
def test_a_folder_that_may_not_be_written_is_one_line(name, starter, inputs, tmp_path):
    place = tmp_path / "read only"
    place.mkdir(mode=0o555)
    words = ALL[name].words(starter.backend, inputs, place)
    code, lines = told_by(starter, words, ordinary=True)
    assert code == 74 and len(lines) == 1 and str(place) in lines[0]
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_an_output_that_is_full_or_closed_is_one_line(name, starter, inputs, tmp_path):
    words = [w for w in ALL[name].words(starter.backend, inputs, tmp_path) if w != "--quiet"]
    code, lines = told_by(starter, words, stdout="/dev/full")
    assert code == 74 and len(lines) == 1 and "No space left" in lines[0]


NAMES = ["a b", 'quote"s', "line\nbreak", "größe", "-dash", "semi;colon"]


@pytest.mark.parametrize("name", ALL)
def test_odd_names_of_folders_are_names(name, starter, inputs, tmp_path):
    """And outputs of few letters, with a narrow terminal."""
    for odd in NAMES:
        out = tmp_path / odd
        words = [w for w in ALL[name].words(starter.backend, inputs, out) if w != "--quiet"]
        few = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "COLUMNS": "5"}
        code, lines = told_by(starter, words, environment=few)
        assert (code, lines) == (0, []), odd
        assert ALL[name].left(out)


def test_a_command_told_to_end_while_it_starts_says_so(starter, inputs, tmp_path):
    words = COMMANDS["record"].words(starter.backend, inputs, tmp_path)
    (told,) = starter.run({"words": words, "signal": signal.SIGINT, "after": 0.05})
    assert told["code"] in (130, 0) and "Traceback" not in told["error"]
