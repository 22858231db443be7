"""Commands one after the other, as ``demo`` and ``paper`` run them: each with its heading and its time."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from common.run.shell import Interrupted, stopping

if TYPE_CHECKING:
    from interchange.backend import Backend

_OF_BACKENDS = ("train", "record", "select", "tune", "evaluate")


class Stages:
    """Runs stages with a heading, and remembers their commands and times.

    Args:
        more: further commands that know no framework, name -> function of their configuration.
    """

    def __init__(
        self, quiet: bool, backend: "Backend", more: Mapping[str, Callable[[Any], Any]] | None = None
    ) -> None:
        self.quiet, self.backend, self._more = quiet, backend, more or {}
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}

    def line(self, name: str, config: Any) -> str:
        """The command line of a stage."""
        package = f"{self.backend.NAME}_impl" if name in _OF_BACKENDS else "interchange"
        return command_line(f"{package}.{name}", config)

    def run(self, name: str, config: Any, title: str = "") -> Any:
        """The command called ``name``; what it returns. ``Interrupted`` after one that a signal cut short.

        Args:
            title: of the heading, and under which its time is kept; ``name`` if not given.
        """
        from interchange.commands import evaluate, record, select, train, tune
        from interchange.distill import run as distill

        modules = {"train": train, "record": record, "select": select, "tune": tune, "evaluate": evaluate}
        title = title or name
        self.commands.append(self.line(name, config))
        if not self.quiet:
            print(f"\n== {title}: {self.commands[-1]}", flush=True)
        started = time.perf_counter()
        if name in self._more:
            result = self._more[name](config)
        elif name == "distill":
            result = distill.distill(config)
        else:
            result = getattr(modules[name], name)(config, self.backend)
        if code := stopping():
            raise Interrupted(code)
        self.seconds[title] = time.perf_counter() - started
        return result


_POSITIONAL = {
    "record": "source",
    "distill": "trajectories",
    "select": "front",
    "tune": "rule",
    "analysis": "sources",
}


def command_line(module: str, config: Any) -> str:
    """The command that runs ``module`` with ``config``, defaults left out."""
    words = [f"python -m {module}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("quiet", "overwrite") or value == field.default:
            continue
        shown = shlex.join(map(str, value if isinstance(value, tuple) else (value,)))
        flag = "--" + field.name.replace("_", "-")
        if field.name == _POSITIONAL.get(module.partition(".")[2]):
            words.insert(1, shown)
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words.append(f"{flag} {shown}")
    return " ".join(words)
