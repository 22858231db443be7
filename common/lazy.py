"""Packages whose names are imported when they are first used, so that importing the package stays cheap."""

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from common.extras import MissingPartError, missing


def offer(package: str, homes: Mapping[str, str], after: Callable[[], None] = lambda: None) -> list[str]:
    """Let ``package`` offer names of other modules; the names, for its ``__all__``.

    Args:
        homes: name -> the module that has it.
        after: called when one was imported.
    """

    class Package(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            try:
                found = getattr(importlib.import_module(homes[name]), name)
            except ModuleNotFoundError as error:
                if told := missing(error.name):
                    raise MissingPartError(f"{package}.{name} {told}") from None
                raise
            after()
            return found

        def __setattr__(self, name: str, value: Any) -> None:
            # Keeps ``train`` the function: importing the submodule would set it to the module.
            if not (name in homes and isinstance(value, types.ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted(homes)

    sys.modules[package].__class__ = Package
    return list(homes)
