"""Command lines generated from configuration dataclasses, and progress that suits the terminal.

Frameworks are imported inside ``body``, after parsing, so ``--help`` answers at once. Bad input is
one line on stderr and exit code 2.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
import threading
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from common import __version__
from common.errors import L2OError
from common.run.config import resolve
from common.run.shell import DEBUG, called, command

SILENCE = 8.0  # seconds without a line of progress, at most
BEGINNING = 2.5  # seconds until the first one


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise L2OError(f"{message}; see {self.prog} --help")


def parser_for(
    cls: type,
    *,
    prog: str,
    description: str,
    positional: Sequence[str] = (),
    short: dict[str, str] | None = None,
) -> argparse.ArgumentParser:
    """An argparse parser with one flag per field of ``cls``, plus ``--config``.

    Args:
        positional: fields given without a flag; optional there, so that a file can hold them.
        short: field -> one-letter flag.
    """
    parser = _Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"symbolic-l2o {__version__}")
    parser.add_argument("--config", default="", metavar="FILE", help="TOML or JSON file with any of these")
    parser.add_argument(
        DEBUG, action="store_true", default=argparse.SUPPRESS, help="where it fails, show the traceback too"
    )
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        choices = field.metadata.get("choices")
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field, choices)}
        names = ["--" + field.name.replace("_", "-")]
        if short and field.name in short:
            names.insert(0, "-" + short[field.name])
        if field.name in positional:
            names, keywords["nargs"] = [field.name], "?"
            keywords["metavar"] = field.name.upper()
        elif kind is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["metavar"] = field.name.split("_")[-1].upper()
        if typing.get_origin(kind) is tuple:
            keywords["nargs"] = "*" if field.name in positional else "+"
            kind = typing.get_args(kind)[0]
        if kind is not bool:
            keywords["type"] = kind
        parser.add_argument(*names, **keywords)
    return parser


def _help(field: dataclasses.Field, choices: Callable[[], Any] | None) -> str:
    text = field.metadata.get("help", "")
    if choices:
        text += ": " + ", ".join(choices())
    default = field.default
    if default not in ("", (), False, dataclasses.MISSING):
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default {shown})"
    return text.replace("%", "%%")


def run(
    cls: type,
    body: Callable[[Any], int | None],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    positional: Sequence[str] = (),
    short: dict[str, str] | None = None,
    required: Sequence[str] = (),
    alone: Mapping[str, Sequence[str]] | None = None,
    again: str = "",
    leads: Callable[[], bool] = lambda: True,
) -> int:
    """Parse ``argv``, resolve the configuration, run ``body`` with it; the exit code.

    ``required`` names fields that must not stay empty; ``alone`` maps a flag to the only others that may
    stand beside it; ``again`` says how to go on after a signal; of processes that work together the one that
    ``leads`` says that they are at work. Whatever goes wrong is one line on stderr (``common.run.shell``).
    """

    prog = called(prog)

    def parsed() -> int:
        parser = parser_for(cls, prog=prog, description=description, positional=positional, short=short)
        flags = vars(parser.parse_intermixed_args(argv))
        flags.pop("debug", None)
        flags = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
        _check_alone(flags, alone or {})
        config = resolve(cls, {k: v for k, v in flags.items() if k != "config"}, flags["config"])
        for name in required:
            if not getattr(config, name):
                shown = name.upper() if name in positional else "--" + name.replace("_", "-")
                raise L2OError(f"{shown} is missing; see {prog} --help")
        logging.basicConfig(
            level=logging.ERROR if getattr(config, "quiet", False) else logging.WARNING,
            format="%(levelname)s: %(message)s",
        )
        warnings.formatwarning = lambda message, *_: str(message)  # a line for people, no source line
        logging.captureWarnings(True)
        # Frameworks read it when they are imported, in body. Waiting OpenMP threads spin by default, and on
        # a machine shared with other work that made meta-training fifty times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with _heartbeat(prog, getattr(config, "quiet", False) or not leads()):
            return body(config) or 0

    return command(prog, parsed, debug=DEBUG in (sys.argv if argv is None else argv), again=again)


def _check_alone(flags: Mapping[str, Any], alone: Mapping[str, Sequence[str]]) -> None:
    for name, friends in alone.items():
        others = set(flags) - {name, *friends, *([] if flags["config"] else ["config"])}
        if flags.get(name) and others:
            shown = ", ".join("--" + other.replace("_", "-") for other in sorted(others))
            raise L2OError(f"--{name} takes every setting from the run itself; leave out {shown}")


class _Pulse:
    """When anything was shown last, for how long nothing may be, and what to show then."""

    shown = time.monotonic()
    patience = SILENCE
    line: Callable[[], str] | None = None


@contextlib.contextmanager
def _heartbeat(prog: str, quiet: bool) -> Iterator[None]:
    """A line where nothing was shown for ``SILENCE``: a command at work must not look like one that hangs.

    The first comes after ``BEGINNING``, as most of the long beginnings are frameworks that are imported.
    """
    stop, started = threading.Event(), time.monotonic()
    _Pulse.shown, _Pulse.patience, _Pulse.line = started, min(BEGINNING, SILENCE), None

    def beat() -> None:
        while not stop.wait(0.5):
            if time.monotonic() - _Pulse.shown > _Pulse.patience:
                line = _Pulse.line
                say(line() if line else f"{prog}: at work, {span(time.monotonic() - started)}")

    thread = threading.Thread(target=beat, daemon=True)
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def say(line: str) -> None:
    """A line of progress."""
    _Pulse.shown, _Pulse.patience = time.monotonic(), SILENCE
    if line:
        print(line, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """A time for people: ``42 s``, ``3 min``, ``2.5 h``."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"


class Progress:
    """A progress bar on a terminal, plain lines with the time left elsewhere, nothing when quiet.

    Use as a context manager and call ``advance(**values)`` once per unit of work.

    Args:
        total: units of work; where ``about`` an estimate, for the time left alone. Then ``expect`` is told
            what is wanted, and ``settle`` that this is all: a total that is shown never changes.
        done: units that were done before.
    """

    _PLAIN_LINES = 10

    def __init__(
        self, label: str, total: int, *, quiet: bool = False, done: int = 0, about: bool = False
    ) -> None:
        self.label, self.total, self.quiet, self.done = label, total, quiet, done
        self._about, self._expected, self._begun = about, 0, done
        self._bar: Any = None
        self._start = time.perf_counter()
        self._shown, self._text = -1, ""

    def __enter__(self) -> "Progress":
        if not self.quiet and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self._sure, completed=self.done, values="")
        if not self.quiet:
            _Pulse.line = (lambda: "") if self._bar is not None else self._line  # a bar moves by itself
        return self

    def expect(self, more: int) -> None:
        """So many units are wanted, beside those expected before."""
        self._expected += more
        self.total = max(self.total, self._expected)

    def settle(self) -> None:
        """What is expected by now is all that is wanted: from here on the total is shown."""
        self.total, self._about = self._expected, False
        self._shown = self._part
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)
        elif self.done == self.total > 0 and not self.quiet:
            say(self._line())

    @property
    def _sure(self) -> int | None:
        return None if self._about else self.total

    @property
    def _part(self) -> int:
        return self.done * self._PLAIN_LINES // max(self.total, 1)

    def advance(self, **values: float | str) -> None:
        """One more unit is done; ``values`` are shown beside the bar."""
        self.done += 1
        if self.quiet:
            return
        text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self._text = text
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self._sure, values=text)
            return
        if self._part > self._shown or (self.done == self.total and not self._about):
            self._shown = self._part
            say(self._line())

    def _line(self) -> str:
        """What is done, how long it took and about how long the rest will take."""
        seconds = time.perf_counter() - self._start
        new, rest = self.done - self._begun, self.total - self.done
        left = f", about {span(seconds * rest / new)} left" if new > 0 and rest > 0 else ""
        many = f"{self.done} done" if self._about else f"{self.done}/{self.total}"
        return f"{self.label}: {many}  {span(seconds)}{left}  {self._text}".rstrip()

    def __exit__(self, *exception: object) -> None:
        _Pulse.line = None
        if self._bar is not None:
            self._bar.stop()
