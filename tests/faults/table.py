"""The commands that compute long, small: how each is started, gone on with, and what it leaves."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np

from interchange.files.checkpoint import load_checkpoint
from interchange.files.results import load_evaluation
from interchange.files.trajectories import load_trajectories
from interchange.files.weights import load_weights
from interchange.rule.front import read_front, write_front
from interchange.rule.rule import Rule
from tests.helpers.commands import metrics

_META = "--problem quadratic --epoch-length 20 --unroll 5 --validate-every 1 --validation-tasks 1 --quiet"

_DISTILL = "{at}/t.h5 --backend {b} --engine operon --time 3 --max-size 12 --quiet --out {out}/rules"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        line: with places for ``{b}``, the backend, ``{at}``, a folder with inputs, and ``{out}``.
        left: what it leaves in ``out``, to compare with what an undisturbed one left.
        again: flags in place of all others where it is gone on with, once ``begun`` is there.
        exact: what is left is the same in every bit.
        rarely: it takes so long that it gets a fifth of the cases of the others.
    """

    line: str
    left: Callable[[Path], object]
    again: str = ""
    begun: str = ""
    exact: bool = True
    rarely: bool = False

    def cases(self, count: int) -> int:
        """How many of so many it gets."""
        return max(1, count // 5) if self.rarely else count

    def words(self, backend: str, at: Path, out: Path, goes_on: bool = False) -> list[str]:
        """Words of its command line."""
        line = self.line
        if goes_on and self.again and (out / self.begun).exists():
            line = f"{line.split()[0]} {self.again}"
        places = {"at": shlex.quote(str(at)), "out": shlex.quote(str(out))}
        return shlex.split(line.format(b=backend, **places))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _train(out: Path) -> object:
    return _digest(load_weights(out / "run").weights), metrics(out / "run")


def _optimize(out: Path) -> object:
    return (out / "run/losses.csv").read_text(), _digest(load_checkpoint(out / "run")[0])


def _evaluate(out: Path) -> object:
    rows = load_evaluation(out / "e").rows
    return sorted((row.optimizer, row.seed, row.losses.tobytes().hex()) for row in rows)


def _distill(out: Path) -> object:
    return len(read_front(out / "rules")) > 0, Rule.load(out / "rules/best.json").complexity > 0


def _paper(out: Path) -> object:
    rows = json.loads((out / "p/paper.json").read_text())["sanity"]["rows"]
    return [(row["rule"], [run["expression"] for run in row["runs"]]) for row in rows]


COMMANDS = {
    "train": Command(
        f"{{b}}_impl.train --teacher rp_s --epochs 6 {_META} --out {{out}}/run",
        _train,
        again="--resume {out}/run --quiet",
        begun="run/config.json",
    ),
    "record": Command(
        "{b}_impl.record adam:lr=0.01 --problem quadratic --steps 60 --runs 6 --samples 2000 --quiet "
        "--out {out}/t.h5",
        lambda out: load_trajectories(out / "t.h5").sha256,
    ),
    "tune": Command(
        f"{{b}}_impl.tune {{at}}/rule.json --epochs 6 {_META} --out {{out}}/tuned.json",
        lambda out: Rule.load(out / "tuned.json").sha256,
    ),
    "optimize": Command(
        "{b}_impl.optimize adam:lr=0.01 --problem quadratic --steps 150 --runs 4 --quiet --out {out}/run",
        _optimize,
    ),
    "evaluate": Command(
        "{b}_impl.evaluate --optimizers adam sgd --problem quadratic --steps 20 --seeds 2 --trials 3 "
        "--jobs 2 --no-report --quiet --out {out}/e",
        _evaluate,
    ),
    "select": Command(
        "{b}_impl.select {at}/front --problem quadratic --steps 40 --tasks 3 --more 3 --quiet "
        "--out {out}/chosen",
        lambda out: [(rule.name, rule.provenance["loss"]) for rule in read_front(out / "chosen")],
    ),
    "distill": Command(
        f"interchange.distill {_DISTILL}",
        _distill,
        again=f"{_DISTILL} --overwrite",
        begun="rules/front.csv",
        exact=False,
    ),
    "paper": Command(
        "{b}_impl.paper --only sanity --quiet --out {out}/p",
        _paper,
        rarely=True,
    ),
}
# Those that are soon done: for outputs and places only.
SHORT = {
    line.split()[0].rpartition(".")[2]: Command(line, lambda out: True)
    for line in (
        "interchange.inspect {at}/t.h5",
        "interchange.export {at}/rule.json --to latex --out {out}/r.tex",
        "interchange.convert {at}/t.h5 --out {out}/t.npy",
        "interchange.rule show {at}/rule.json",
        "interchange.analysis adam --out {out}/a",
        "interchange.doctor",
    )
}


def prepared(folder: Path, record: Callable[[list[str]], object], backend: str) -> Path:
    """The folder with the inputs that the commands take."""
    Rule.named("momentum").save(folder / "rule.json")
    rules = [Rule.from_text("c0 * g", {"c0": -k / 10}, name=str(k)) for k in (1, 2, 3)]
    write_front(folder / "front", rules)
    words = COMMANDS["record"].words(backend, folder, folder)
    record([word.replace("adam:lr=0.01", f"rule:{folder}/rule.json") for word in words])
    return folder
