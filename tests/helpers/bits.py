"""Whether two checkouts write the same numbers: ``python tests/helpers/bits.py OLD NEW``.

Runs small trainings, recordings, tunings, a distillation, selections and comparisons of both backends with
the code of each checkout, and compares every file they leave, but for times, versions and who made them.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TRAIN = "--epochs 2 --epoch-length 12 --unroll 5 --validate-every 1 --validation-tasks 1 --seed 3 --quiet"
TUNE = "--epochs 2 --epoch-length 12 --unroll 6 --validate-every 1 --validation-tasks 1 --seed 3 --quiet"
COMMANDS = {
    # name -> arguments of {b}_impl, in a folder of its own; earlier results are beside it
    "train": f"train --teacher rnnprop --problem digits-mlp {TRAIN} --out OUT",
    "train-second": f"train --teacher rp_s --problem quadratic --estimator second {TRAIN} --out OUT",
    "train-es": f"train --teacher rp_s --problem quadratic --estimator es --pairs 2 {TRAIN} --out OUT",
    "train-pes": f"train --teacher rp_s --problem quadratic --estimator pes --pairs 2 {TRAIN} --out OUT",
    "train-tasks": f"train --teacher dm --problem quadratic,digits-mlp --tasks 2 {TRAIN} --out OUT",
    "train-subset": f"train --teacher rnnprop --problem digits-mlp --coordinates 0.3 --tasks 2 {TRAIN} "
    "--out OUT",
    "train-imitation": f"train --teacher rp_s --problem quadratic --imitation 1 {TRAIN} --out OUT",
    "train-varied": f"train --teacher rp_s --problem quadratic --random-scaling 1 --convex {TRAIN} --out OUT",
    "record": "record train --runs 4 --steps 20 --samples 4000 --seed 1 --quiet --out OUT/trajectories.h5",
    "record-adam": "record adam:lr=0.01 --problem quadratic --runs 4 --steps 30 --samples 4000 --quiet "
    "--out OUT/trajectories.h5",
    "tune-es": f"tune rnnprop_17 --problem quadratic --pairs 2 {TUNE} --out OUT/tuned.json",
    "tune-first": f"tune adam --problem digits-mlp --estimator first {TUNE} --out OUT/tuned.json",
    "tune-second": f"tune nesterov --problem quadratic --estimator second {TUNE} --out OUT/tuned.json",
    "tune-forward": f"tune rnnprop_17 --problem quadratic --estimator forward {TUNE} --out OUT/tuned.json",
    "tune-factors": f"tune adam --problem quadratic,digits-mlp --pairs 2 --factors --kinds {TUNE} "
    "--out OUT/tuned.json",
    "distill": "distill record-adam/trajectories.h5 --evaluations 3000 --time 60 --max-size 11 --threads 1 "
    "--quiet --out OUT",
    "select": "select distill --problem quadratic --steps 20 --tasks 2 --more 2 --quiet --out OUT",
    "evaluate": "evaluate --problem quadratic --optimizers adam rule:rnnprop_tuned teacher:train --steps 20 "
    "--seeds 2 --validation-seeds 2 --trials 3 --no-report --quiet --out OUT",
    "evaluate-digits": "evaluate --problem digits-mlp --optimizers sgd lion rule:adam --steps 20 --seeds 2 "
    "--validation-seeds 1 --trials 3 --no-report --quiet --out OUT",
    "optimize": "optimize rule:adam --problem digits-mlp --steps 25 --runs 2 --quiet --out OUT",
}
TIMES = {"seconds", "ms_per_step", "steps_to_target", "seconds_to_target"}
TIMES |= {"created_by", "sha256", "from_sha256"}
OTHERS = {"env.json", "lock"}  # versions and the hash of the code; process numbers
ROUNDED = {"low", "high", "ratio_low", "ratio_high"}  # by quantiles of Student's t


def run(tree: Path, backend: str, folder: Path) -> None:
    """Every command of a backend with the code of a checkout, its results in ``folder``."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name, text in COMMANDS.items():
        command, *words = text.replace("OUT", name).split()
        package = "interchange" if command == "distill" else f"{backend}_impl"
        if "OUT/" in text:  # a file in the folder
            (folder / name).mkdir()
        line = [sys.executable, "-m", f"{package}.{command}", *words]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: {' '.join(line[1:])}: exit {done.returncode}\n{done.stderr[-2000:]}")


def content(path: Path) -> Iterator[str]:
    """What a file says, line by line, without times."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            items: dict[str, Any] = {"/": file}
            file.visititems(lambda name, item: items.update({name: item}))
            for name, item in sorted(items.items()):
                for key, value in sorted(item.attrs.items()):
                    if key not in TIMES:
                        yield f"{name}@{key}: {_plain(value)}"
                if isinstance(item, h5py.Dataset):
                    digest = hashlib.sha256(item[()].tobytes()).hexdigest()
                    yield f"{name}: {item.dtype} {item.shape} {digest}"
    elif path.suffix in (".json", ".jsonl"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            yield json.dumps(_timeless(json.loads(text)), sort_keys=True)
    elif path.suffix == ".csv":
        for row in csv.DictReader(io.StringIO(path.read_text())):
            yield str({key: value for key, value in row.items() if key not in TIMES | ROUNDED})
    else:
        yield hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else np.asarray(value).tolist()
    try:
        return json.dumps(_timeless(json.loads(text)), sort_keys=True)
    except (TypeError, ValueError):
        return str(text)


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(one: Path, other: Path) -> tuple[list[str], int]:
    """Files that say different things or are in one folder only, and how many there are in all."""
    trees = [
        {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    ]
    found = []
    names = trees[0].keys() | trees[1].keys()
    names = sorted(name for name in names if name.name not in OTHERS and "cells" not in name.parts)
    for name in names:
        if name not in trees[0] or name not in trees[1]:
            found.append(f"{name}: in one of them only")
        elif list(content(trees[0][name])) != list(content(trees[1][name])):
            found.append(f"{name}: not the same")
    return found, len(names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs=2, type=Path)
    parser.add_argument("--backends", nargs="+", default=["torch", "tf"])
    given = parser.parse_args()
    code = 0
    for backend in given.backends:
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder, str(k)) for k in range(2)]
            for tree, place in zip(given.trees, places, strict=True):
                place.mkdir()
                run(tree.resolve(), backend, place)
            found, count = differences(*places)
            head = f"{backend}: {count} files of {len(COMMANDS)} commands, {len(found)} differ"
            print(head, *found, sep="\n  ")
            code |= bool(found)
    return code


if __name__ == "__main__":
    sys.exit(main())
