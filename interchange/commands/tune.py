"""Meta-tuning of a rule's constants: ``tune``.

The same meta-gradient as a teacher's training (MATH.md section 3), on the handful of constants of an
equation; what comes back is an equation again.
"""

import contextlib
import dataclasses
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import L2OError
from common.run.cli import run as run_command
from common.run.places import vacant
from common.run.shell import Interrupted
from interchange.commands.estimate import estimate
from interchange.files.weights import Teacher
from interchange.meta.config import TuneConfig
from interchange.meta.confirm import confirmed
from interchange.meta.sharing import check_share
from interchange.meta.state import settings_hash
from interchange.meta.tasks import factors
from interchange.meta.trainer import make_trainer
from interchange.meta.workers import place
from interchange.rule.rule import Rule
from interchange.rule.source import rule_or_teacher
from interchange.rule.step_sizes import packed, sized, unpacked
from interchange.rule.words import readable, told

if TYPE_CHECKING:
    from common.run.runs import RunFolder
    from interchange.backend import Arrays, Backend, Tasks
    from interchange.meta.state import TrainerState
    from interchange.meta.workers import Workers

# What is known of a distilled rule with its constants, and nothing about others.
_OF_CONSTANTS = ("r2", "r2_update", "loss", "exact", "singular")
_INFINITE = 1e308  # how a rule file, which is JSON, says that a rollout diverged


def tune(config: TuneConfig, backend: "Backend", tasks: "Tasks | None" = None) -> Rule | Teacher:
    """Tune the rule in ``config.rule``; the tuned rule goes to ``config.out``.

    With ``config.per_tensor`` step sizes by tensor are tuned, of a rule or teacher, and nothing else.

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


def _tune(
    config: TuneConfig, backend: "Backend", tasks: "Tasks | None", workers: "Workers"
) -> Rule | Teacher:
    """One worker's part; rank 0 reads and writes the files and tells the others what is in them."""
    from common.run.runs import Interrupt

    digest, told, arrays, folder = "", {}, {}, None
    with workers.together():
        if workers.leads:
            begun, digest = _begin(config)
            folder = None if tasks is not None else _folder(config, digest)
            told, arrays = packed(begun)
            told["goes_on"] = folder is not None and folder.resumes
    told, arrays = workers.broadcast(told, arrays)
    with workers.together():
        begun = begun if workers.leads else unpacked(told, arrays)
        check_share(config, workers)
        mine = dataclasses.replace(config, device=workers.device(config.device))
        network = _network(begun, mine, backend, tasks)
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
            nearer = "lower --step-size" if config.per_tensor else "bring its constants nearer to 0 first"
            raise L2OError(f"{config.rule} diverged in every validation; {nearer}")
    state, best, confirmation = trainer.state, trainer.state.best, {}
    if config.confirm and not _same(first, best):
        better, confirmation = confirmed(learner, first, best, tasks, workers)
        best = best if better else first
    tuned = network.tuned(best)
    if tasks is not None:  # nothing is known of the caller's: an evaluation must not take the default for it
        config = dataclasses.replace(config, problem="")
    record = {
        "problem": config.problem,
        "epochs": config.epochs,
        "epoch_length": config.epoch_length,
        "settings": _settings(config),
        "from_sha256": digest,
        "validation": _validations(state),
        "created_by": backend.CREATED_BY,
    }
    if confirmation:
        record["confirmation"] = confirmation
    if isinstance(tuned, Rule):
        record |= {"from_constants": begun.constants, "from_scale": begun.scale}
    if config.kinds:  # the file has one set, of matrices; ``validation`` is that of all three
        record["kinds"] = {
            kind: network.tuned(best, number).constants for number, kind in enumerate(backend.KINDS)
        }
    if config.factors:
        record["factors"] = {
            name.partition("/")[2]: math.exp(float(w)) for name, w in best.items() if "/" in name
        }
    return _kept(tuned, record, config, workers.leads)


def _network(begun: Rule | Teacher, config: TuneConfig, backend: "Backend", tasks: "Tasks | None") -> Any:
    """What is tuned of what ``config.rule`` names."""
    if config.per_tensor:
        return backend.step_sizes_network(sized(begun, config, tasks), config.dtype, config.device)
    return backend.rule_network(begun, config.device, factors(config), config.kinds)


def _validations(state: "TrainerState") -> dict[str, Any]:
    """The scores before, at the best, and after each epoch that has one."""
    scores = [row["validation"] for row in state.history if "validation" in row]
    return {
        "before": min(state.first_score, _INFINITE),
        "best": state.best_score,
        "by_epoch": [min(score, _INFINITE) for score in scores],
    }


def _kept(tuned: Rule | Teacher, record: dict[str, Any], config: TuneConfig, leads: bool) -> Rule | Teacher:
    """What was tuned, with its record where it can hold one; in its file, if this worker ``leads``."""
    out = output_file(config)
    if isinstance(tuned, Rule):
        provenance = {k: v for k, v in tuned.provenance.items() if k not in _OF_CONSTANTS}
        provenance |= {"tuned": record}
        tuned = dataclasses.replace(tuned, name=f"{tuned.name}, tuned"[:200], provenance=provenance)
        if leads:
            tuned.save(out)
        return tuned
    tuned = dataclasses.replace(tuned, tuned=record, created_by=record["created_by"])
    return dataclasses.replace(tuned, sha256=tuned.save(out)) if leads else tuned


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


def _begin(config: TuneConfig) -> tuple[Rule | Teacher, str]:
    """The rule or teacher to tune, with what the settings change of it; the hash of the one in the file."""
    from interchange.rule.decay import with_schedule, with_weight_decay

    rule = rule_or_teacher(config.rule) if config.per_tensor else Rule.load(config.rule)
    digest, given = rule.sha256, dict(_constant(text) for text in config.constants)
    if isinstance(rule, Rule):
        rule = rule.with_constants(given)
    elif given:
        raise L2OError(f"--constants: {config.rule} is a teacher, which has none; leave it out")
    if config.per_tensor:
        vacant(output_file(config), config.overwrite)
        return rule, digest
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
    """``config.out``, or ``tuned.json`` beside the rule, ``tuned.h5`` beside the teacher.

    It is below ``runs`` for what has a name and no file.
    """
    if config.out:
        return Path(config.out)
    ending = "h5" if config.per_tensor and isinstance(rule_or_teacher(config.rule), Teacher) else "json"
    rule = Path(config.rule.removeprefix("rule:").removeprefix("teacher:"))
    if not rule.exists():
        return Path(f"runs/{rule.name}-tuned.{ending}")
    return (rule if rule.is_dir() else rule.parent) / f"tuned.{ending}"


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


def _told(tuned: Rule | Teacher, config: TuneConfig, following: str) -> Iterator[str]:
    """The lines that the command ends with."""
    out = output_file(config)
    record = tuned.provenance["tuned"] if isinstance(tuned, Rule) else tuned.tuned
    validation = record["validation"]
    yield f"validation loss {validation['before']:.4g} -> {validation['best']:.4g}"
    if config.per_tensor:
        if validation["best"] >= validation["before"]:
            yield "the step sizes stay as they were: no others were better"
        width = max(map(len, tuned.step_sizes))
        yield from (f"  {name:<{width}}  {size:.4g}" for name, size in tuned.step_sizes.items())
    if isinstance(tuned, Teacher):
        yield f"teacher: {out}\nnext: {following}"
        return
    if not config.per_tensor:
        before = tuned.with_constants(record["from_constants"])
        before = dataclasses.replace(before, scale=record["from_scale"])
        if tuned.constants == record["from_constants"]:
            yield "the constants stay as they were: no others were better"
        yield f"before: u = {readable(before)}"
    yield told(tuned, out, following)


def main(command: Callable[[TuneConfig], Any], name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of ``command``, the function of the backend called ``name``; the exit code."""

    def body(config: TuneConfig) -> None:
        if config.dry_run:
            print(estimate(config, "tune", name))
            return
        tuned = command(config)
        if not config.quiet and place(name).rank == 0:
            kind = "rule" if isinstance(tuned, Rule) else "teacher"
            file = shlex.quote(f"{kind}:{output_file(config)}")
            following = f"python -m {name}_impl.evaluate --optimizers adam {file} --problem {config.problem}"
            print("\n".join(_told(tuned, config, following)))

    return run_command(
        TuneConfig,
        body,
        argv,
        prog=f"python -m {name}_impl.tune",
        description="Tune the constants of a rule by the meta-gradient.",
        positional=("rule",),
        required=("rule",),
        again="the same command goes on",
        leads=lambda: place(name).rank == 0,
    )
