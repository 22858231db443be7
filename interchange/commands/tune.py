"""Meta-tuning of a rule's constants: ``tune``.

The same meta-gradient as a teacher's training (MATH.md section 3), on the handful of constants of an
equation; what comes back is an equation again.
"""

import contextlib
import dataclasses
import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.places import vacant
from common.run.shell import Interrupted
from interchange.commands.estimate import estimate
from interchange.meta.config import TuneConfig
from interchange.meta.confirm import confirmed
from interchange.meta.sharing import check_share
from interchange.meta.state import settings_hash
from interchange.meta.tasks import factors
from interchange.meta.trainer import make_trainer
from interchange.meta.workers import place
from interchange.rule.words import readable, told

if TYPE_CHECKING:
    from common.run.runs import RunFolder
    from interchange.backend import Arrays, Backend, Tasks
    from interchange.meta.workers import Workers
    from interchange.rule.rule import Rule

_OF_CONSTANTS = ("r2", "loss", "exact", "singular")  # of a distilled rule, nothing about other constants
_INFINITE = 1e308  # how a rule file, which is JSON, says that a rollout diverged


def tune(config: TuneConfig, backend: "Backend", tasks: "Tasks | None" = None) -> "Rule":
    """Tune the rule in ``config.rule``; the tuned rule goes to ``config.out``.

    Args:
        tasks: optimizees to tune on, as for ``train``; ``config.problem``'s if None.

    Validation decides, before the first step too: without a gain the constants stay as they were. With
    ``config.confirm`` the gain has to show on optimizees of its own. A signal ends it with a checkpoint
    beside ``config.out``, from which the same command goes on; with tasks of a caller, which no one can
    compare, there is none.

    Raises:
        L2OError: the rule has no constants or cannot run as an optimizer, it diverges whatever is tuned,
            data are missing.
        Interrupted: by a signal.
    """
    with backend.join(config.device) as workers:
        return _tune(config, backend, tasks, workers)


def _tune(config: TuneConfig, backend: "Backend", tasks: "Tasks | None", workers: "Workers") -> "Rule":
    """One worker's part; rank 0 reads and writes the files and tells the others what is in them."""
    from common.run.runs import Interrupt
    from interchange.rule.rule import Rule

    digest, told, folder = "", {}, None
    with workers.together():
        if workers.leads:
            rule, digest = _begin(config)
            folder = None if tasks is not None else _folder(config, digest)
            told = {"rule": rule.to_json(), "goes_on": folder is not None and folder.resumes}
    told, _ = workers.broadcast(told)
    with workers.together():
        rule = rule if workers.leads else Rule.from_json(told["rule"])
        check_share(config, workers)
        mine = dataclasses.replace(config, device=workers.device(config.device))
        network = backend.rule_network(rule, mine.device, factors(mine), mine.kinds)
        learner = backend.Learner(network, mine)
        first = learner.weights()
        trainer = make_trainer(learner, rates=network.rates, tasks=tasks, folder=folder, workers=workers)
    with Interrupt() as interrupt, folder or contextlib.nullcontext():
        if told["goes_on"]:
            trainer.state.restore()
        elif folder is not None:
            folder.write_config(_identity(config, digest))
        if not trainer.run(label="tune", quiet=config.quiet or not workers.leads, interrupt=interrupt):
            raise Interrupted(interrupt.exit_code)
    if folder is not None:
        shutil.rmtree(folder.path, ignore_errors=True)
    with workers.together():
        if math.isinf(trainer.state.best_score):
            raise L2OError(
                f"{config.rule} diverged in every validation; bring its constants nearer to 0 first"
            )
    state, best, confirmation = trainer.state, trainer.state.best, {}
    if config.confirm and not _same(first, best):
        better, confirmation = confirmed(learner, first, best, tasks, workers)
        best = best if better else first
    scores = [row["validation"] for row in state.history if "validation" in row]
    tuned = network.tuned(best)
    if tasks is not None:  # nothing is known of the caller's: an evaluation must not take the default for it
        config = dataclasses.replace(config, problem="")
    record = {
        "problem": config.problem,
        "epochs": config.epochs,
        "epoch_length": config.epoch_length,
        "settings": _settings(config),
        "from_sha256": digest,
        "from_constants": rule.constants,
        "from_scale": rule.scale,
        "validation": {
            "before": min(state.first_score, _INFINITE),
            "best": state.best_score,
            "by_epoch": [min(score, _INFINITE) for score in scores],
        },
        "created_by": backend.CREATED_BY,
    }
    if confirmation:
        record["confirmation"] = confirmation
    if config.kinds:  # the file has one set, of matrices; ``validation`` is that of all three
        record["kinds"] = {
            kind: network.tuned(best, number).constants for number, kind in enumerate(backend.KINDS)
        }
    if config.factors:
        record["factors"] = {
            name.partition("/")[2]: math.exp(float(w)) for name, w in best.items() if "/" in name
        }
    provenance = {k: v for k, v in rule.provenance.items() if k not in _OF_CONSTANTS} | {"tuned": record}
    tuned = dataclasses.replace(tuned, name=f"{rule.name}, tuned"[:200], provenance=provenance)
    if workers.leads:
        tuned.save(output_file(config))
    return tuned


def _folder(config: TuneConfig, digest: str) -> "RunFolder":
    """Where the checkpoints go; what an interrupted run of the same settings left there is gone on with."""
    from common.run.runs import RunFolder

    out = output_file(config)
    path = out.with_name(f"{out.name}.run")
    try:
        goes_on = RunFolder(path).config() == _identity(config, digest)
    except L2OError:
        goes_on = False
    return RunFolder(path, create=not goes_on, resume=goes_on, overwrite=True)


def _identity(config: TuneConfig, digest: str) -> dict[str, Any]:
    """What two tunings must have in common to go on with each other."""
    return {"settings": settings_hash(config), "rule_sha256": digest}


def _begin(config: TuneConfig) -> "tuple[Rule, str]":
    """The rule to tune, with what the settings change of it, and the hash of the one in the file."""
    from interchange.rule.decay import with_schedule, with_weight_decay
    from interchange.rule.rule import Rule

    rule = Rule.load(config.rule)
    digest = rule.sha256
    rule = rule.with_constants(dict(_constant(text) for text in config.constants))
    if config.schedule:
        rule = with_schedule(rule, config.schedule)
    if config.weight_decay:
        rule = with_weight_decay(rule, config.weight_decay)
    if not rule.constants:
        raise L2OError(f"{config.rule}: expected a rule with constants to tune, got none")
    if config.kinds and "," in config.problem and config.estimator != "es":
        raise L2OError(f"--kinds on several problems needs --estimator es, got {config.estimator}")
    vacant(output_file(config), config.overwrite)
    return rule, digest


def _same(one: "Arrays", other: "Arrays") -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def output_file(config: TuneConfig) -> Path:
    """``config.out``, or ``tuned.json`` beside the rule; below ``runs`` for a rule of the gallery."""
    rule = Path(config.rule)
    if config.out or not rule.exists():
        return Path(config.out or f"runs/{rule.name}-tuned.json")
    return (rule if rule.is_dir() else rule.parent) / "tuned.json"


def _constant(text: str) -> tuple[str, float]:
    """``c0=-0.5`` -> (``c0``, -0.5)."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise L2OError(f"--constants: expected NAME=NUMBER, got {text!r}") from None


def _settings(config: TuneConfig) -> dict[str, Any]:
    """What the result depends on, as the flags that say so."""
    places = ("out", "data_dir", "device", "quiet", "overwrite", "jobs", "dry_run")
    values = dataclasses.asdict(config) | {key: Path(getattr(config, key)).name for key in ("rule", "start")}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {k: v for k, v in values.items() if k not in places and v != defaults[k]}


def main(command: Callable[[TuneConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: TuneConfig) -> None:
        if config.dry_run:
            print(estimate(config, "tune", name))
            return
        rule = command(config)
        record = rule.provenance["tuned"]
        if not config.quiet and place(name).rank == 0:
            validation, before = record["validation"], rule.with_constants(record["from_constants"])
            before = dataclasses.replace(before, scale=record["from_scale"])
            print(f"validation loss {validation['before']:.4g} -> {validation['best']:.4g}")
            if rule.constants == record["from_constants"]:
                print("the constants stay as they were: no others were better")
            print(f"before: u = {readable(before)}")
            tuned = shlex.quote(f"rule:{output_file(config)}")
            following = f"python -m {name}_impl.evaluate --optimizers adam {tuned}"
            print(told(rule, output_file(config), f"{following} --problem {config.problem}"))

    return run_command(
        TuneConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.tune",
        description="Tune the constants of a rule by the meta-gradient.",
        positional=("rule",),
        required=("rule",),
        again="the same command goes on",
    )
