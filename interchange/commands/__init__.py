"""The commands of both backends but for their tensors: ``train(config, backend)`` and the like."""

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def bind(module: ModuleType, package: str) -> tuple[Callable[..., Any], Callable[..., int]]:
    """The command of a module of this package with a backend's package, and its command line.

    The backend is imported when the command is called: ``--help`` does without it.

    Returns:
        ``command(config, ...)``, and ``main(argv=None)``, which returns the exit code.
    """
    command = getattr(module, module.__name__.rpartition(".")[2])

    @functools.wraps(command)
    def bound(config: Any, *given: Any, **more: Any) -> Any:
        return command(config, importlib.import_module(f"{package}.backend"), *given, **more)

    signature = inspect.signature(command)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "backend"]
    bound.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    bound.__module__ = f"{package}.{command.__name__}"

    def main(argv: Sequence[str] | None = None) -> int:
        """Command line entry point; the exit code."""
        return module.main(bound, package.removesuffix("_impl"), argv)

    return bound, main
