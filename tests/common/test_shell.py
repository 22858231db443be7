"""What a command owes its shell: exit codes, one line, signals, streams of few letters."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
import time

import pytest

from common.errors import L2OError
from common.run import cli
from common.run.cli import BEGINNING, SILENCE
from common.run.config import Common
from common.run.shell import command, stopping
from interchange.commands.stages import Stages
from tests.helpers.processes import launched, started

TAKES_TIME = """
import signal, sys, time
from common.run.shell import command
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
def work():
    print("at work", flush=True)
    time.sleep(600)
sys.exit(command("prog", work, again="the same command goes on"))
"""
WITH_WORKERS = """
import os, time
from common.run.parallel import parallel
def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
if __name__ == "__main__":
    with parallel(2) as run:
        list(run(work, [(600,)] * 2))
"""


def raising(error: BaseException):
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (L2OError("expected a,\n got b"), 2, "error: expected a, got b"),
        (OSError(errno.ENOSPC, "No space left", "/a/b"), 74, "error: /a/b: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 74, "/a/b: Permission denied"),
        (MemoryError(), 2, "memory"),
        (OverflowError("too\nlarge"), 1, "OverflowError: too large"),
        (RecursionError("deep"), 1, "RecursionError: deep"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_fails_is_one_line_and_a_code(error, code, told, capsys):
    assert command("prog", raising(error)) == code
    err = capsys.readouterr().err
    assert err.startswith("prog: ") and told in err and err.count("\n") == 1


def test_a_mistake_of_ours_shows_its_traceback_on_demand(capsys):
    assert command("prog", raising(ZeroDivisionError("x")), debug=True) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in body" in err and "prog: error: ZeroDivisionError: x" in err


def test_a_full_output_is_one_line():
    code = (
        "import os, sys; from common.run.shell import command; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    )
    process = started(f"{code}; sys.exit(command('prog', lambda: print('x')))")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 74 and err.startswith("prog: error: No space left") and err.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_terminated_command_says_how_to_go_on(number, code):
    process = started(TAKES_TIME)
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "prog: interrupted; the same command goes on\n"


@pytest.mark.parametrize(
    ("number", "code", "usual"),
    [(signal.SIGTERM, 143, signal.SIG_DFL), (signal.SIGINT, 130, signal.default_int_handler)],
)
def test_what_keeps_its_results_after_a_signal_knows_of_it_and_begins_no_further_stage(number, code, usual):
    known = []

    def keeps(_: object) -> str:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        known.append(stopping())
        return "what it had"

    stages = Stages(True, None, {"keeps": keeps, "later": lambda _: known.append("later")})
    before = signal.signal(number, usual)
    try:
        assert command("prog", lambda: keeps(None) and None) == code
        assert (
            command("prog", lambda: [stages.run(name, Common()) for name in ("keeps", "later")] and None)
            == code
        )
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, before)
    assert known == [code, code] and stopping() == 0


def test_a_callers_own_handler_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        assert command("prog", lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
        assert seen == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_output_of_few_letters_gets_plain_signs(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert command("prog", lambda: print("−1 × θ…")) == 0
    assert narrow.buffer.getvalue() == "-1 \xd7 theta...\n".encode("latin-1")
    with pytest.raises(UnicodeEncodeError):  # and as before where no command runs
        print("−", flush=True)


def test_the_first_line_of_a_command_at_work_comes_soon(capsys, monkeypatch):
    assert BEGINNING < 3.0 < SILENCE < 10.0
    monkeypatch.setattr(cli, "BEGINNING", 0.1)
    monkeypatch.setattr(cli, "SILENCE", 3600.0)
    said, say = threading.Event(), cli.say
    monkeypatch.setattr(cli, "say", lambda line: (say(line), said.set()))
    waiting = {"prog": "prog", "description": "", "positional": ()}
    assert cli.run(Common, lambda _: said.wait(60.0) and None, [], **waiting) == 0
    assert re.fullmatch(r"prog: at work, \d+ s\n", capsys.readouterr().err)
    assert cli.run(Common, lambda _: time.sleep(0.7), ["--quiet"], **waiting) == 0
    assert cli.run(Common, lambda _: time.sleep(0.7), [], leads=lambda: False, **waiting) == 0
    assert capsys.readouterr().err == ""


def test_beside_a_flag_that_takes_all_settings_neither_flags_nor_a_file_may_stand(tmp_path, capsys):
    (tmp_path / "more.toml").write_text("seed = 3\n", encoding="utf-8")
    beside = {
        "": ["--quiet"],
        "--seed": ["--seed", "3"],
        "--config": ["--config", str(tmp_path / "more.toml")],
    }
    for refused, words in beside.items():
        given = {"prog": "prog", "description": "", "alone": {"out": ("quiet",)}}
        assert cli.run(Common, lambda _: 0, ["--out", "x", *words], **given) == (2 if refused else 0)
        told = capsys.readouterr().err
        assert told.endswith(f"leave out {refused}\n") if refused else not told


def test_a_total_that_is_shown_never_changes(capsys):
    with cli.Progress("work", 12, about=True) as progress:
        progress.expect(3)
        for _ in range(3):
            progress.advance()
        progress.expect(2)
        progress.settle()
        for _ in range(2):
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["work: 3 done", "work: 4/5", "work: 5/5"]
    assert "about" in lines[0] and "about" not in lines[-1]
    with cli.Progress("work", 5, about=True) as progress:  # where nothing more is wanted it is said at once
        progress.expect(1)
        progress.advance()
        progress.settle()
    assert capsys.readouterr().err.splitlines()[-1].startswith("work: 1/1  ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_the_process_that_started_them(number, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WITH_WORKERS)
    process = launched([str(program)], PYTHONPATH=os.pathsep.join(sys.path))
    assert all(int(process.stdout.readline()) for _ in range(2))
    process.send_signal(number)
    process.communicate(timeout=60)  # to the end of its pipes, which the workers hold too
    assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
