"""Damaged files of every format, read under an audit hook.

``python -m tests.faults.mutants FORMAT FOLDER SEED FIRST LAST HOW``: its own process, which may crash; a hook
cannot be taken off, and memory is measured from a clean start.
"""

import hashlib
import json
import random
import resource
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.data import datasets
from common.data.dataset_files import read
from common.errors import L2OError
from common.machine import limit_memory
from common.run.config import from_dict, load_file
from common.tables.teachers import TEACHERS, initial_weights
from interchange.convert.hall_of_fame import import_hall_of_fame
from interchange.convert.tables import import_npy
from interchange.files import child, hdf5
from interchange.files.checkpoint import checkpoint_from_tree, save_checkpoint
from interchange.files.reader import BOMB_RATIO
from interchange.files.results import EvaluationRow, evaluation_from_tree, save_evaluation
from interchange.files.trajectories import Trajectories, save_trajectories, trajectories_from_tree
from interchange.files.weights import Teacher, save_weights, weights_from_tree
from interchange.meta.config import TrainConfig
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule
from tests.helpers.commands import ROOT, user_run

RULE = Rule.from_text("c0 * tanh(f) + c1", {"c0": -0.5, "c1": 0.25}, {"f": "ema_hat(g, 0.9)"}, name="honest")
HARMLESS = {"import", "marshal.loads", "os.listdir", "os.scandir", "compile", "object.__getattr__"}
HARMLESS |= {"builtins.id", "sys._getframe"}
Format = tuple[str, Callable[[Path], object], Callable[[Path], object]]  # file, its writer, its reader


def _h5(take: Callable[[Any, Path], object]) -> Callable[[Path], object]:
    def reader(path: Path) -> object:
        tree = hdf5.read_hdf5(path)
        take(tree, path)
        return hdf5.content_sha256(tree)

    return reader


def _trajectories(path: Path) -> None:
    draw = np.random.default_rng(0)
    runs = {}
    for name in ("a", "b", "c"):
        g = draw.normal(size=(6, 4))
        runs[name] = user_run(name, g[..., None], g, -g)
    split = {"train": ("a",), "valid": ("b",), "test": ("c",)}
    save_trajectories(path, Trajectories({"g": "g"}, runs, split))


def _checkpoint(path: Path) -> None:
    save_checkpoint(path.parent, {"x": np.random.default_rng(0).normal(size=300)}, {"step": 3})
    next(path.parent.glob("checkpoint/*.h5")).rename(path)


def _evaluation(path: Path) -> None:
    save_evaluation(path, [EvaluationRow("sgd", "quadratic", 0, np.ones(9))], {"a": 1})


def _cifar(path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 10, (2, 3073), np.uint8)
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        (path.parent / name).write_bytes(rows.tobytes())


def _idx(path: Path) -> None:
    for part, count in (("train", 6), ("t10k", 3)):
        images = struct.pack(">4I", 2051, count, 28, 28) + bytes(784 * count)
        (path.parent / f"{part}-images-idx3-ubyte").write_bytes(images)
        (path.parent / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2I", 2049, count) + bytes(count)
        )


def _npz(path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(12, 5))
    np.savez_compressed(path, x=x, y=np.arange(12) % 3)


def _teacher_onnx(path: Path) -> None:
    from interchange.emit import TARGETS

    path.write_bytes(TARGETS["onnx"].emit(Teacher.named("rp_s")))


def _read_onnx(path: Path) -> object:
    """The numbers, where nothing tells that somebody changed them."""
    from interchange.inspect.onnx import read_onnx

    found = read_onnx(path)
    if not found.as_written:
        warnings.warn("not as written", stacklevel=1)
    return [
        (name, array.tobytes()) for name, array in sorted(found.values.items())
    ], found.source.row.to_dict()


def _pth(path: Path) -> None:
    import torch

    weights = {"recurs.weight_ih": torch.ones(8, 2), "recurs.weight_hh": torch.ones(8, 2)}
    torch.save(weights | {"recurs.bias_ih": torch.ones(8), "recurs.bias_hh": torch.ones(8)}, path)


def _read_pth(path: Path) -> object:
    from torch_impl.convert import canonical, read

    return sorted(canonical(read(path), str(path)))


FORMATS: dict[str, Format] = {
    "rule": ("r.json", RULE.save, lambda path: Rule.load(path).to_json()),
    "trajectories": ("t.h5", _trajectories, _h5(trajectories_from_tree)),
    "teacher": (
        "teacher.h5",
        lambda path: save_weights(path, TEACHERS["rp_s"], initial_weights(TEACHERS["rp_s"], 0), "x"),
        _h5(weights_from_tree),
    ),
    "checkpoint": ("c.h5", _checkpoint, _h5(checkpoint_from_tree)),
    "evaluation": ("e.h5", _evaluation, _h5(evaluation_from_tree)),
    "onnx": ("t.onnx", _teacher_onnx, _read_onnx),
    "npz": ("d.npz", _npz, lambda path: datasets._own.__wrapped__(str(path))),
    "npy": (
        "s.npy",
        lambda path: np.save(path, np.random.default_rng(0).normal(size=(9, 3))),
        import_npy,
    ),
    "idx": ("train-images-idx3-ubyte", _idx, lambda path: read("mnist", str(path.parent))),
    "cifar": ("test_batch.bin", _cifar, lambda path: read("cifar10", str(path.parent))),
    "pth": ("w.pth", _pth, _read_pth),
    "front": (
        "front.csv",
        lambda path: write_front(path.parent, [RULE]),
        lambda path: read_front(path.parent),
    ),
    "hall": (
        "hall_of_fame.csv",
        lambda path: path.write_text(
            "Complexity,Loss,Equation\n1,0.5,g\n3,0.25,g * 2.0\n5,0.1,tanh(g) + 1\n"
        ),
        import_hall_of_fame,
    ),
    "toml": (
        "c.toml",
        lambda path: path.write_text('problem = "quadratic"\nepochs = 3\nlr = 1e-3\nquiet = true\n'),
        lambda path: from_dict(TrainConfig, load_file(str(path))),
    ),
}
HASHED = ("rule", "trajectories", "teacher", "checkpoint", "evaluation", "onnx")


def mutant(content: bytes, dice: random.Random, flip: bool) -> bytes:
    """One flipped bit; or a few changes of bytes, numbers and lengths, as those who look for faults make."""
    data = bytearray(content)
    if flip:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at, size = dice.randrange(len(data) or 1), dice.randint(1, 64)
        match dice.randrange(8):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1:
                data[at : at + size] = dice.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * dice.choice((1, 2, 100))
            case 4:
                data[at : at + 8] = dice.choice(
                    (b"\xff" * 8, bytes(8), b"\0" * 7 + b"\x7f", b"\x80" + bytes(7))
                )
            case 5:
                del data[at:]
            case 6:
                data[at:at] = dice.choice((b"9" * 400, b"[" * 5000, b'"' * 3, b"\n\n", b"." * 999, b"1e999"))
            case _:
                start = dice.randrange(len(data) or 1)
                data[at : at + size] = data[start : start + size]
    return bytes(data)


def main(format: str, folder: str, seed: str, first: str, last: str, flip: str) -> None:
    """Read mutants ``first`` to ``last`` of a seed; a line of JSON before and after each."""
    name, write, load = FORMATS[format]
    path = Path(folder, name)
    child.check = lambda *given: None  # this process is the child
    warnings.simplefilter("ignore")
    write(path)
    content, whole = path.read_bytes(), _digest(load(path))  # and what is imported when first used
    if name.endswith(".h5"):
        limit_memory(child.MEMORY + BOMB_RATIO * len(content))  # as the child does
    armed, events = [False], []

    def hook(event: str, args: tuple) -> None:
        if not armed[0] or event in HARMLESS:
            return
        # Modules that are imported when first used are opened and run; a file's own text has no file name.
        known = (str(ROOT), sys.prefix, sys.base_prefix, "<frozen")
        if event == "exec" and getattr(args[0], "co_filename", "").startswith(known):
            return
        if event == "open" and (isinstance(args[0], int) or str(args[0]).startswith((folder, *known))):
            return
        events.append(f"{event} {str(args)[:100]}")

    sys.addaudithook(hook)
    armed[0] = True
    exec("control = 1")  # the hook has to see what it is there for
    assert events, "the hook sees nothing"
    armed[0] = False
    events.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(int(first), int(last)):
        changed = mutant(content, random.Random(f"{seed} {format} {number}"), flip == "flip")
        path.write_bytes(changed)
        print(number, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 5.0)  # ends this process, whatever hangs in it
        started = time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            armed[0] = True
            try:
                value: Any = load(path)
                outcome = "read"
            except L2OError as error:
                outcome = "refused" if "\n" not in str(error) else "lines"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"[:200]
            finally:
                armed[0] = False
        seconds = time.process_time() - started
        if outcome == "read" and changed != content and not warned and _digest(value) != whole:
            outcome = "other"  # read as if nothing were the matter, and is not what was written
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([outcome, seconds, grown, events[:3]]), flush=True)
        events.clear()


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode(errors="replace")).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
