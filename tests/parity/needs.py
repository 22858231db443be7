"""What a target or a path has to have here; named by words such as "exported keras" or "torch vjp"."""

import shutil

import pytest

from common import kernels

PACKAGES = {"tensorflow": "tensorflow", "keras": "tensorflow", "tf": "tensorflow", "onnx": "onnxruntime"}
PACKAGES |= {"optax": "optax", "jax": "jax"}


def need(name: str, compiled: bool = False) -> None:
    """Skip, and say why, where a framework or a compiler is not installed."""
    if compiled and (reason := kernels.missing()):
        pytest.skip(reason)
    if name == "exported c" and not shutil.which("cc"):
        pytest.skip("there is no C compiler cc")
    for word in name.replace(".", " ").split():
        if word == "torch" or PACKAGES.get(word) == "tensorflow":
            pytest.importorskip("torch")  # before TensorFlow, as everywhere
        if word in PACKAGES:
            pytest.importorskip(PACKAGES[word], reason=f"{PACKAGES[word]} is not installed")
