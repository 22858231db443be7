"""What a file is, told by how it begins: so that a wrong one is named as what it is, never as damaged."""

import json
import os

from common.errors import L2OError
from common.run.storage import JSON_LIMIT, open_regular, read_file

RULE = "a rule"
HDF5, JSON = "HDF5", "a JSON file of another kind"
_STARTS = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x93NUMPY": "a NumPy table (.npy)",
    b"PK\x03\x04": "a zip archive, as .npz, .keras and .pth files are",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"\x08": "an ONNX model",
}


def kind(path: str | os.PathLike[str]) -> str:
    """What the file at ``path`` is, in words: ``HDF5``, which says more itself; "" where nobody knows."""
    try:
        with open_regular(path) as file:
            start = file.read(64)
        if start.lstrip()[:1] in (b"{", b"["):
            return _of_json(path)
    except (OSError, L2OError):
        return ""  # whoever opens it next says why
    return next((words for begin, words in _STARTS.items() if start.startswith(begin)), "")


def _of_json(path: str | os.PathLike[str]) -> str:
    try:
        value = json.loads(read_file(path, JSON_LIMIT))
    except (ValueError, RecursionError):
        return ""
    format = value.get("format") if isinstance(value, dict) else None
    return RULE if format == "l2o-rule" else JSON
