"""Read a teacher of the ICLR 2022 code: ``python -m torch_impl.convert FILE.pth --teacher rp_s``."""

import dataclasses
import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.config import check, option
from common.run.places import vacant
from common.run.storage import open_regular
from common.tables.teachers import GAIN, TEACHERS, TeacherRow, variant

# RP numbers its cells recurs.0, recurs.1; DM has recurs and recurs2.
_CELL = re.compile(r"recurs(?:\.(\d)|(2))?\.(weight_ih|weight_hh|bias_ih|bias_hh)")
_PARTS = {"weight_ih": "w_input", "weight_hh": "w_hidden"}
_LARGEST = 64 << 20  # bytes; the largest of the original's has 0.1 MB
_WITH_GAIN = 0.1  # on the original's output where it has that factor
_PLAIN = {"preprocNet.0": "pre", "output": "out"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What ``python -m torch_impl.convert`` takes."""

    file: str = option("", "the original's checkpoint of an optimizer (.pth)")
    teacher: str = option("rp_s", "row of the teacher table it was trained as", choices=lambda: TEACHERS)
    inputs: str = option("", "its features, if not the row's own, such as mt+gt+mom5 (its grad_features)")
    pre_tanh_scale: float = option(
        0.0, "its trained pre_tahn_scale, which its checkpoints do not hold: 100 at first (0: none)", low=0
    )
    out: str = option("", "folder or file for the weights; teacher.h5 beside the checkpoint if not given")
    quiet: bool = option(False, "print nothing but errors")
    overwrite: bool = option(False, "replace what --out already holds")

    def __post_init__(self) -> None:
        check(self)


def convert(config: ConvertConfig) -> Path:
    """Write the weights in ``config.file`` as ``teacher.h5``; the file's path.

    Layer sizes are the file's own. The file is read with ``weights_only``, so no code in it runs.

    Raises:
        L2OError: no such file, not a state dict of the original's, other inputs than its first layer's.
    """
    from interchange.files.weights import FILE_NAME, save_weights
    from torch_impl.tensors import CREATED_BY

    source = Path(config.file)
    out = Path(config.out or source.with_name(FILE_NAME))
    out = out if out.suffix == ".h5" else out / FILE_NAME
    weights = canonical(read(source), config.file)
    row = fitted(variant(TEACHERS[config.teacher], config.inputs), weights, config.file)
    if config.pre_tanh_scale:
        row = variant(row, scale=_WITH_GAIN * row.scale, pre_tanh_scale=config.pre_tanh_scale)
        weights[GAIN] = np.full((1,), config.pre_tanh_scale, weights["out/w"].dtype)
    vacant(out, config.overwrite)
    save_weights(out, row, weights, f"{CREATED_BY}, from {source.name}")
    return out


def read(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a file of the original's weights; L2OError where it holds anything else."""
    import torch

    try:
        with open_regular(path) as file:
            _check_size(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]
        arrays = {str(name).removeprefix("module."): tensor.detach() for name, tensor in state.items()}
        if (size := sum(a.numel() * a.element_size() for a in arrays.values())) > _LARGEST:
            raise ValueError(f"{size} bytes of numbers")  # as of one number that is repeated
        half = (torch.bfloat16, torch.float16)
        return {name: (a.float() if a.dtype in half else a).numpy() for name, a in arrays.items()}
    except L2OError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise L2OError(f"cannot read {path}: {error.strerror}; check the path") from None
    except Exception as error:  # torch documents no list of what a broken or unsafe file raises
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
    raise L2OError(
        f"{path}: expected a state dict of the original's optimizer, saved by torch.save, got a file that "
        f"cannot be read so ({reason}); check the path, or save net.state_dict() again"
    )


def _check_size(file: Any) -> None:
    """Refuse an open file that holds, or unpacks to, more than any teacher; torch itself packs nothing."""
    size = os.fstat(file.fileno()).st_size
    if zipfile.is_zipfile(file):
        size = max(size, sum(info.file_size for info in zipfile.ZipFile(file).infolist()))
    if size > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    file.seek(0)


def canonical(state: Mapping[str, np.ndarray], where: str = "state dict") -> dict[str, np.ndarray]:
    """The original's arrays by our names (FORMATS.md section 2); its two biases per cell are added up."""
    weights: dict[str, np.ndarray] = {}
    for name in state:
        twin = name.replace("bias_ih", "bias_hh") if "bias_ih" in name else name.replace("bias_hh", "bias_ih")
        if _CELL.fullmatch(name) and twin not in state:
            raise L2OError(f"{where}: expected two biases a cell, got no {twin}; save the whole network")
    for name, array in state.items():
        stem, _, part = name.rpartition(".")
        if stem in _PLAIN and part in ("weight", "bias"):
            weights[f"{_PLAIN[stem]}/{part[0]}"] = array
        elif match := _CELL.fullmatch(name):
            number = int(match[1] or (1 if match[2] else 0))
            key = f"lstm_{number}/{_PARTS.get(match[3], 'bias')}"
            weights[key] = weights[key] + array if key in weights else array
        else:
            raise L2OError(
                f"{where}: expected the weights of an RPOptimizer or DMOptimizer, got {name[:60]!r}; "
                "save the state dict of the optimizer alone"
            )
    return weights


def fitted(row: TeacherRow, weights: Mapping[str, np.ndarray], where: str = "state dict") -> TeacherRow:
    """The row with the layer sizes of the weights; inputs that do not fit raise ``L2OError``."""
    cells = [name for name in weights if name.endswith("w_hidden")]
    first = weights.get("pre/w", weights.get("lstm_0/w_input"))
    if not cells or first is None or first.ndim != 2:
        found = ", ".join(weights) or "nothing"
        raise L2OError(f"{where}: expected LSTM cells, got {found}; is it an optimizer's checkpoint?")
    if first.shape[1] != len(row.inputs):
        raise L2OError(
            f"{where}: expected a network of {len(row.inputs)} inputs ({'+'.join(row.inputs)}), got one of "
            f"{first.shape[1]}; name its features with --inputs or another --teacher"
        )
    if len(cells) != len(row.lstm):
        raise L2OError(
            f"{where}: expected {len(row.lstm)} LSTM cells, as {row.name!r} has, got {len(cells)}; "
            "name the row it was trained as with --teacher"
        )
    sizes = tuple(weights[f"lstm_{k}/w_hidden"].shape[1] for k in range(len(cells)))
    return dataclasses.replace(row, lstm=sizes, pre=len(weights["pre/w"]) if "pre/w" in weights else 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point; the exit code."""

    def body(config: ConvertConfig) -> None:
        path = convert(config)
        if not config.quiet:
            print(f"teacher: {path}")

    return run_command(
        ConvertConfig,
        body,
        argv,
        prog="python -m torch_impl.convert",
        description="Read a teacher of the ICLR 2022 code (.pth).",
        positional=("file",),
        required=("file",),
    )


if __name__ == "__main__":
    sys.exit(main())
