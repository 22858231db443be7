"""What a command owes its shell: an exit code, one line where it fails, an end where it is told to end."""

import codecs
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from common.errors import L2OError
from common.extras import missing

DEBUG = "--debug"
WRITING = 74  # EX_IOERR of sysexits.h
# Signs of ours that an output of few letters, such as Latin-1, has no code for.
_PLAIN = {"−": "-", "–": "-", "×": "x", "…": "...", "²": "^2", "θ": "theta", "η": "eta", "★": "*", "·": "*"}


class Interrupted(KeyboardInterrupt):
    """A signal that a command has dealt with: what it had is written.

    Args:
        exit_code: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("interrupted")
        self.exit_code = exit_code


_CALLED: dict[str, str] = {}  # program -> what its user has typed to start it


@contextlib.contextmanager
def started_as(prog: str, typed: str) -> Iterator[None]:
    """Within it the program ``prog`` is called ``typed``, as in its help and in its errors."""
    _CALLED[prog] = typed
    try:
        yield
    finally:
        del _CALLED[prog]


def called(prog: str) -> str:
    """What its user calls the program ``prog``."""
    return _CALLED.get(prog, prog)


class _Stop:
    """Exit code of the signal that has come, 0 without one."""

    code = 0


def command(prog: str, body: Callable[[], int | None], *, debug: bool = False, again: str = "") -> int:
    """Run ``body`` as the program ``prog``; the exit code. Whatever it raises becomes one line on stderr.

    2 for bad input, 74 where a file or the output could not be written, 130 after Ctrl-C and 143 after
    SIGTERM, which ends the same things, 1 for a mistake of this package.

    Args:
        debug: show the traceback too.
        again: how to go on with what a signal has stopped.
    """
    _Stop.code = 0
    with _terminable(), _any_letters():
        try:
            code = body() or 0
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk is heard of here, and not after the last line of Python
        except BrokenPipeError:  # the reader has what it wanted, as head does
            _silence()
            return 0
        except KeyboardInterrupt as error:
            _say(prog, f"interrupted; {again}" if again else "interrupted")
            code = getattr(error, "exit_code", 0) or _Stop.code or 130
        except Exception as error:
            if debug:
                traceback.print_exc()
            code = _tell(prog, error)
    code, _Stop.code = code or _Stop.code, 0
    return code


def stopping() -> int:
    """The exit code once a signal has come to the command under way, else 0.

    It keeps what it has then, and begins nothing long any more.
    """
    return _Stop.code


def _tell(prog: str, error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, L2OError):
        if not getattr(error, "told", False):  # as by another of several processes
            _say(prog, f"error: {text}")
        return getattr(error, "exit_code", 2)
    if isinstance(error, ModuleNotFoundError) and (told := missing(error.name)):
        _say(prog, f"error: this {told}")
        return 2
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # it was the output itself, which Python flushes once more at its end
            _silence()
        _say(
            prog, f"error: {place}{error.strerror or text}; see that it can be read or written and has space"
        )
        return WRITING
    if isinstance(error, MemoryError):
        _say(prog, "error: expected enough memory, got too little; give a smaller problem, or free some")
        return 2
    _say(prog, f"error: {type(error).__name__}: {text[:300]}; a mistake of ours: see more with {DEBUG}")
    return 1


def _say(prog: str, line: str) -> None:
    with contextlib.suppress(OSError):  # a full or closed stderr has no one to tell
        print(f"{prog}: {line}", file=sys.stderr, flush=True)


def _silence() -> None:
    with contextlib.suppress(OSError, ValueError):  # no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what Ctrl-C ends: what is finished is kept. Handlers of a caller's own stay."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    here = threading.current_thread() is threading.main_thread()
    mine = {n: before for n, before in usual.items() if here and signal.getsignal(n) is before}
    for number in mine:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, before in mine.items():
            signal.signal(number, before)


def _terminate(number: int, _frame: FrameType | None) -> None:
    if _Stop.code and number == signal.SIGTERM:  # a second one does not wait
        os._exit(_Stop.code)
    _Stop.code = 128 + number
    raise KeyboardInterrupt


@contextlib.contextmanager
def _any_letters() -> Iterator[None]:
    """Output of few letters shows our signs by plain ones instead of failing."""
    streams = [s for s in (sys.stdout, sys.stderr) if getattr(s, "errors", "") == "strict"]
    for stream in streams:
        stream.reconfigure(errors="l2o-plain")
    try:
        yield
    finally:
        for stream in streams:
            stream.reconfigure(errors="strict")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("l2o-plain", _plain)
