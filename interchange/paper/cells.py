"""Cells: single commands with what they need, run once and then found again.

A finished cell leaves a record below ``cells/``: the hash of its settings and of the cells it needs, its
command line and its seconds. Another hash, or no record, means it is run; what a command itself kept of an
interrupted run it goes on with.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import L2OError
from common.run.storage import atomic_write, content_hash, read_json
from interchange.commands.stages import Stages
from interchange.commands.train import holds

_ELSEWHERE = ("quiet", "overwrite", "jobs", "threads", "device", "data_dir", "report")
RECORDS = "cells"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One command.

    Attributes:
        name: unique, such as ``dm/train``.
        command: of the front doors.
        config: its configuration, which writes to a place of its own.
        result: the file that is there once it has finished.
        needs: names of the cells whose results it reads.
    """

    name: str
    command: str
    config: Any
    result: Path
    needs: tuple[str, ...] = ()


class Cells:
    """Runs cells into one folder.

    Attributes:
        ran: names of those that were run here; found: of those that were there.
        records: name -> what is kept of it.
    """

    def __init__(self, folder: Path, cells: Mapping[str, Cell], stages: Stages, anew: bool = False) -> None:
        self.folder, self._cells, self._stages, self._anew = folder, cells, stages, anew
        self.ran: list[str] = []
        self.found: list[str] = []
        self.records: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """All of them, in their order."""
        for number, (name, cell) in enumerate(self._cells.items(), 1):
            kept = None if self._anew else self._kept(cell)
            if kept is not None:
                self.found.append(name)
            else:
                title = f"{number}/{len(self._cells)} {name}"
                self._begin(cell, title)
                kept = self._record(cell, self._stages.seconds[title])
                atomic_write(self._file(name), json.dumps(kept, indent=1) + "\n")
                self.ran.append(name)
            self.records[name] = kept

    def key(self, cell: Cell) -> str:
        """Hash of what determines the result of a cell and of those it needs.

        Places do not count, nor do settings at their defaults: a later version may have more of them.
        """
        fields = {field.name: (getattr(cell.config, field.name), field.default) for field in _fields(cell)}
        own = {name: self._placed(value) for name, (value, default) in fields.items() if value != default}
        return content_hash([cell.command, own, [self.key(self._cells[name]) for name in cell.needs]])

    def _placed(self, value: Any) -> Any:
        """Text and lists without the folder, so that it may be moved."""
        if isinstance(value, tuple):
            return [self._placed(item) for item in value]
        return value.replace(str(self.folder), "") if isinstance(value, str) else value

    def _file(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name.replace('/', '-')}.json"

    def _kept(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a finished cell with these settings whose result is still there."""
        try:
            kept = read_json(self._file(cell.name))
            same = kept["key"] == self.key(cell) and cell.result.is_file()
            return kept if same and isinstance(kept["seconds"], float) else None
        except (L2OError, KeyError, TypeError):
            return None

    def _record(self, cell: Cell, seconds: float) -> dict[str, Any]:
        line = self._stages.line(cell.command, cell.config)
        return {"name": cell.name, "key": self.key(cell), "command": line, "seconds": seconds}

    def _begin(self, cell: Cell, title: str) -> None:
        """Run a cell, or go on with it; what it replaces is of an earlier one."""
        self._file(cell.name).unlink(missing_ok=True)
        config = dataclasses.replace(cell.config, **_replacing(cell.config))
        if cell.command == "train" and not self._anew and holds(cell.config.out, cell.config):
            config = type(config)(resume=config.out, quiet=config.quiet, device=config.device)
        result = self._stages.run(cell.command, config, title)
        if code := getattr(result, "exit_code", 0):  # a training that a signal stopped
            raise SystemExit(code)
        if not cell.result.is_file():
            raise L2OError(f"{cell.name}: expected {cell.result} to be written, got nothing")


def _fields(cell: Cell) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cell.config) if field.name not in _ELSEWHERE]


def _replacing(config: Any) -> dict[str, bool]:
    return {"overwrite": True} if hasattr(config, "overwrite") else {}
