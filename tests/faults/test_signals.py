"""Commands killed and terminated at random times: what they had is kept, and they are gone on with."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.run.storage import TEMPORARY_PREFIX
from tests.faults.starter import Starter
from tests.faults.table import COMMANDS, prepared

pytestmark = pytest.mark.slow
KILLS = dict.fromkeys(COMMANDS, 25) | {"train": 60, "select": 10}
SIGNALS = 6  # of each command


@pytest.fixture(scope="module")
def inputs(starter: Starter, tmp_path_factory) -> Path:
    def record(words: list[str]) -> None:
        (told,) = starter.run({"words": words})
        assert told["code"] == 0, told

    return prepared(tmp_path_factory.mktemp("inputs"), record, starter.backend)


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, inputs: Path, tmp_path_factory) -> Callable[[str], tuple[object, float]]:
    """What a command leaves when nobody disturbs it, and the seconds it takes."""
    known: dict[str, tuple[object, float]] = {}

    def of(name: str) -> tuple[object, float]:
        if name not in known:
            out = tmp_path_factory.mktemp(name)
            (told,) = starter.run({"words": COMMANDS[name].words(starter.backend, inputs, out)})
            assert told["code"] == 0, told
            known[name] = COMMANDS[name].left(out), told["seconds"]
        return known[name]

    return of


def temporary(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


def gone_on(name: str, starter: Starter, inputs: Path, out: Path) -> None:
    """To its end, where it was not there already, and nothing left of what came before."""
    command = COMMANDS[name]
    (told,) = starter.run({"words": command.words(starter.backend, inputs, out, goes_on=True)})
    ended = told["code"] == 2 and ("is there already" in told["error"] or "already holds" in told["error"])
    assert (told["code"] == 0 or ended) and "Traceback" not in told["error"], told
    assert temporary(out) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_loses_nothing_but_what_came_since_the_last_checkpoint(
    name, starter, inputs, undisturbed, times, dice: random.Random, tell, tmp_path
):
    wanted, seconds = undisturbed(name)
    kills, late, orphans = 0, 0, 0.0
    started = time.monotonic()
    for number in range(times(COMMANDS[name].cases(KILLS[name]))):
        out = tmp_path / str(number)
        command = COMMANDS[name]
        words = command.words(starter.backend, inputs, out)
        (told,) = starter.run(
            {"words": words, "signal": signal.SIGKILL, "after": dice.uniform(0.0, 1.1 * seconds)}
        )
        assert told["left"] == [], f"orphans of kill {number}"
        kills, late, orphans = kills + told["sent"], late + (not told["sent"]), max(orphans, told["orphans"])
        if told["sent"]:
            assert told["code"] == -signal.SIGKILL
            gone_on(name, starter, inputs, out)
        assert command.left(out) == wanted, f"after kill {number}"
    spent = time.monotonic() - started
    what = "equal in every bit" if COMMANDS[name].exact else "whole"
    ends = f"0 temporary files; what it had started ended {orphans:.1f} s later or before"
    tell(f"{kills} kills, {late} came too late; all {what}; {ends}; {spent:.0f} s")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminated_command_keeps_what_it_has_and_is_gone_on_with(
    name, starter, inputs, undisturbed, times, dice: random.Random, tell, tmp_path
):
    wanted, seconds = undisturbed(name)
    slowest, stopped = 0.0, 0
    for number in range(times(COMMANDS[name].cases(SIGNALS))):
        out = tmp_path / str(number)
        words = COMMANDS[name].words(starter.backend, inputs, out)
        (told,) = starter.run(
            {"words": words, "signal": signal.SIGTERM, "after": dice.uniform(0.1, 0.9) * seconds}
        )
        if not told["sent"]:
            continue
        if told["code"] == -signal.SIGTERM:  # the command was done, and Python was about to end
            assert COMMANDS[name].left(out) == wanted
            continue
        stopped, slowest = stopped + 1, max(slowest, told["seconds"])
        assert told["code"] == 143 and "Traceback" not in told["error"], told
        assert told["left"] == [] and temporary(out) == []
        gone_on(name, starter, inputs, out)
        assert COMMANDS[name].left(out) == wanted
    tell(f"{stopped} SIGTERMs: exit 143, the slowest after {slowest:.2f} s; gone on with: as undisturbed")


def test_twenty_starts_of_one_run_have_one_winner(starter, inputs, undisturbed, times, tell, tmp_path):
    wanted, _ = undisturbed("train")
    for number in range(times(10)):
        out = tmp_path / str(number)
        words = COMMANDS["train"].words(starter.backend, inputs, out)
        told = starter.run(*[{"words": words}] * 20)
        codes = [one["code"] for one in told]
        assert sorted(codes) == [0, *[2] * 19], codes
        losers = [one["error"] for one in told if one["code"]]
        assert all("is in use by" in error or "already holds a run" in error for error in losers)
        assert COMMANDS["train"].left(out) == wanted
    tell(f"{times(10)} rounds of 20 starts: 1 winner each, unchanged; 19 clear errors")
