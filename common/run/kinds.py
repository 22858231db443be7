"""What a file is, told by how it begins: so that a wrong one is named as what it is, never as damaged."""

import json
import os

from common.errors import L2OError
from common.run.storage import JSON_LIMIT, open_regular, read_file

RULE, FRONT = "a rule", "the table of a front of rules"
HDF5, JSON = "HDF5", "a JSON file of another kind"
SETTINGS = "the settings of a run"
_FORMATS = {
    "l2o-rule": RULE,
    "l2o-analysis": "an analysis",
    "l2o-cell": "a finished cell of a comparison",
    "l2o-paper": "the tables of a paper",
    "l2o-sanity": "a table of sanity",
}
_KEYS = {"seed", "data_dir", "overwrite", "quiet"}  # what those of every command have
_METRICS = "the metrics of a run"
_ENVIRONMENT = {"command", "platform", "versions"}
_STARTS = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x93NUMPY": "a NumPy table (.npy)",
    b"PK\x03\x04": "a zip archive, as .npz, .keras and .pth files are",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page",
    b"\x08": "an ONNX model",
    b"optimizer,problem,horizon,": "the summary of a comparison",
    b"group,optimizer,problems,": "the standings of a comparison",
    b"optimizer,kind,nodes,": "the summary of an analysis",
    b"figure,optimizer,series,": "the curves of an analysis",
    b"file,complexity,loss,": FRONT,
    b"step,run_0": "the losses of a run",
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
    text = read_file(path, JSON_LIMIT)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _METRICS if _is_object(text.partition(b"\n")[0]) else ""
    keys = value.keys() if isinstance(value, dict) else set()
    if keys >= _KEYS:
        return SETTINGS
    if keys >= _ENVIRONMENT:
        return "the environment of a run"
    return _FORMATS.get(str(value["format"]), JSON) if "format" in keys else JSON


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
