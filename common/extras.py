"""Packages that only a part of this one needs, and the command that installs them from the checkout."""

import importlib.util
from pathlib import Path

from common.errors import L2OError

# Package, as it is imported -> the extra of setup.cfg that installs it.
EXTRAS = {
    "torch": "torch", "tensorflow": "tf", "keras": "tf", "pyoperon": "operon", "pysr": "pysr",
    "onnx": "onnx", "onnxruntime": "onnx", "matplotlib": "report", "tensorboard": "tensorboard",
    "distributed": "dask", "ray": "ray", "jax": "bench", "optax": "bench", "cmaes": "bench",
}  # fmt: skip
BACKENDS = {"torch": "torch", "tf": "tensorflow"}  # backend -> its framework, as it is imported
_CHECKOUT = Path(__file__).resolve().parents[1]


class MissingPartError(L2OError, ImportError):
    """A package that is needed here is not installed; the message has the command that installs it."""


def install(extra: str) -> str:
    """The command that installs an extra, its brackets quoted for zsh; the package is on no index."""
    if (_CHECKOUT / "setup.cfg").is_file():
        place = "." if Path.cwd() == _CHECKOUT else str(_CHECKOUT)
    else:
        place = "PATH/OF/THE/CHECKOUT"
    return f'python -m pip install -e "{place}[{extra}]"'


def missing(package: str | None) -> str:
    """``needs PACKAGE: COMMAND`` for one of ``EXTRAS``; "" for any other."""
    top = (package or "").partition(".")[0]
    return f"needs {top}, which is not installed: {install(EXTRAS[top])}" if top in EXTRAS else ""


def present(backend: str) -> str:
    """``backend`` if its framework is installed or none is, else one whose framework is."""
    there = [name for name, framework in BACKENDS.items() if importlib.util.find_spec(framework)]
    return backend if backend in there or not there else there[0]


def require(what: str, *packages: str) -> None:
    """Refuse ``what`` at once where a package of ``EXTRAS`` it needs later is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingPartError(f"{what} {missing(package)}")
