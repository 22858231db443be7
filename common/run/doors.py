"""The front doors: ``python -m torch_impl``, ``tf_impl`` and ``interchange``, and the script ``l2o``."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from common import __version__
from common.errors import L2OError
from common.registry import Registry
from common.run.shell import command, started_as

_BACKEND = {
    "demo": "the whole path on embedded data: teacher, equation, comparison, report",
    "train": "meta-train a teacher, an LSTM optimizer",
    "record": "record what an optimizer sees and does",
    "select": "choose among equations by rolling them out",
    "tune": "tune an equation's constants",
    "evaluate": "compare optimizers, each tuned alike; a report",
    "optimize": "train a network with any optimizer",
    "paper": "the ICLR 2022 paper's tables and figures, and whether its claims hold",
}
_SHARED = {
    "distill": "turn a recording into short equations",
    "rule": "show, explain, check or compare equations",
    "export": "write an equation as LaTeX, C, torch, Keras, ONNX ...",
    "inspect": "say what is in a file",
    "convert": "read files of PySR and Operon, and tables",
    "analysis": "measure what an optimizer does; figures",
    "sanity": "find known equations again",
    "doctor": "what is installed and runs here",
}
# Package -> its commands, each with what it is for.
COMMANDS: dict[str, Registry[str]] = {
    "interchange": Registry("command", _SHARED),
    "torch_impl": Registry("command", _BACKEND | {"convert": "read the ICLR code's teachers"}),
    "tf_impl": Registry("command", _BACKEND),
}
_BACKENDS = {"torch": "torch_impl", "tf": "tf_impl"}


def door(package: str, argv: Sequence[str] | None = None) -> int:
    """``python -m PACKAGE``: list its commands, or run the one that is named; the exit code."""
    return _open(f"python -m {package}", {"": package}, argv)


def l2o(argv: Sequence[str] | None = None) -> int:
    """The script ``l2o``: ``l2o distill``, ``l2o torch train``; the exit code."""
    return _open("l2o", {"": "interchange"} | _BACKENDS, argv)


def _open(prog: str, packages: dict[str, str], argv: Sequence[str] | None) -> int:
    """Run what ``argv`` names.

    Args:
        packages: a first word -> the package whose commands follow it; "" for no such word.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prefix = words.pop(0) if words and words[0] in packages else ""
    return command(f"{prog} {prefix}".strip(), lambda: _run(prog, prefix, packages, words))


def _run(prog: str, prefix: str, packages: dict[str, str], words: list[str]) -> int:
    shown = f"{prog} {prefix}".strip()
    package = packages[prefix]
    if not words or words[0] in ("-h", "--help", "help"):
        listed = packages if not prefix else {prefix: package}
        print(f"usage: {shown} COMMAND ...; what a command takes: {shown} COMMAND --help\n")
        print("\n\n".join(_listing(f"{prog} {word}".strip(), name) for word, name in listed.items()))
        return 0
    if words[0] == "--version":
        print(f"symbolic-l2o {__version__}")
        return 0
    try:
        COMMANDS[package][words[0]]
    except L2OError as error:
        raise L2OError(f"{error}; see {shown} --help") from None
    name = f"{package}.{words[0]}"
    folder = importlib.util.find_spec(name).submodule_search_locations
    with started_as(f"python -m {name}", f"{shown} {words[0]}"):
        return importlib.import_module(f"{name}.__main__" if folder else name).main(words[1:])


def _listing(start: str, package: str) -> str:
    commands = COMMANDS[package]
    width = max(map(len, commands))
    return "\n".join(f"  {start} {name:<{width}}  {what}" for name, what in commands.items())
