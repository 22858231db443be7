"""``python -m interchange.doctor``: versions of what is installed, and what of this project runs here."""

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from common.kernels import missing as without_kernels
from common.kernels import which
from common.run.cli import run as run_command
from common.run.config import check, option
from interchange.search import ENGINES, needs

PACKAGES = (
    "symbolic-l2o", "numpy", "scipy", "h5py", "sympy", "scikit-learn", "torch", "tensorflow", "keras",
    "pyoperon", "pysr", "juliacall", "onnx", "onnxruntime", "jax", "optax", "matplotlib",
    "pytorch-optimizer", "joblib", "dask", "ray",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """How to say it."""

    json: bool = option(False, "as JSON")

    def __post_init__(self) -> None:
        check(self)


def versions() -> dict[str, str]:
    """Package -> version, "" where it is not installed; nothing is imported for it."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def engines() -> dict[str, str]:
    """Search engine -> why it cannot run here, with the remedy; "" where it can."""
    found = {}
    for name, row in ENGINES.items():
        if name == "pysr":
            from interchange.search.pysr import missing

            found[name] = missing()
        else:
            found[name] = needs(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: DoctorConfig) -> None:
        if config.json:
            found = {"versions": versions(), "engines": engines(), "compiled": without_kernels()}
            print(json.dumps(found, indent=1))
            return
        for name, version in versions().items():
            print(f"{name:17} {version or '-'}")
        print()
        for name, reason in engines().items():
            print(f"{name:17} {reason or 'runs here: ' + ENGINES[name].note}")
        print(f"{'compiled code':17} {without_kernels() or 'runs here, ' + which()}")

    return run_command(
        DoctorConfig,
        body,
        argv,
        prog="python -m interchange.doctor",
        description="What is installed, and which search engines and compiled code run here.",
    )


if __name__ == "__main__":
    sys.exit(main())
