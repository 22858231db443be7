"""Which cells the tables and figures need, in the order in which they run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.tables.problems import PROBLEMS
from common.tables.recipes import RECIPES
from interchange.analysis.config import AnalysisConfig
from interchange.commands.record import RecordConfig
from interchange.commands.select import SelectConfig
from interchange.distill.config import DistillConfig
from interchange.evaluation.config import EvaluateConfig
from interchange.meta.config import TrainConfig, TuneConfig
from interchange.paper.cells import Cell
from interchange.paper.config import PaperConfig, Scale
from interchange.paper.published import KNOWN_RULES, MODELS, Model
from interchange.sanity.search import SanityConfig

BEST = "best.json"
LARGE_OF = "rp_si"  # the model whose equation figure 2 is made with
LONG = ("dm", "dm+cl+il")
# The models of each item; those of figures are the paper's own.
NEEDED = {
    "table": tuple(MODELS),
    "figure2": (LARGE_OF,),
    "figure3": ("dm", "rp", "rp_si"),
    "figure4": ("dm", "rp_si"),
    "figure5": ("dm", "rp", "rp_si"),
    "figure6": ("dm", "rp", "rp_si"),
    "long": LONG,
}
# Recorded in training for the sanity table.
BASELINES = ("momentum:momentum=0.5,lr=0.04", "adam:beta1=0.9,beta2=0.9,lr=0.01")
RIVALS = ("sgd", "momentum", "nesterov", "adam")  # of figure 2
_ANALYSED = ("figure3", "figure4", "figure5", "figure6", "table")
_DISTILLED = (*_ANALYSED, "figure2")


def home(config: PaperConfig) -> Path:
    """The folder of everything."""
    return Path(config.out or f"runs/paper-{config.scale}")


def place(config: PaperConfig, *parts: str) -> str:
    """A path below the folder; names of models as a file system likes them."""
    return str(home(config).joinpath(*(part.replace("+", "-") for part in parts)))


def plan(config: PaperConfig) -> dict[str, Cell]:
    """The cells that the items of a configuration need, each after those it reads."""
    items, scale = config.items, config.amounts
    cells: list[Cell] = []
    for name, model in MODELS.items():
        wanted = [item for item in items if name in NEEDED.get(item, ())]
        if wanted:
            cells += _model(name, model, wanted, config, scale)
    if "sanity" in items:
        cells += _sanity(config, scale)
    if "figure2" in items:
        cells += _large(config, scale)
    if "long" in items:
        cells.append(_long(config, scale))
    return {cell.name: cell for cell in cells}


def _shared(config: PaperConfig) -> dict[str, Any]:
    """The settings that every command of a backend has."""
    names = ("seed", "device", "dtype", "data_dir", "dataset", "quiet")
    return {name: getattr(config, name) for name in names}


def _on_problem(config: PaperConfig) -> dict[str, Any]:
    return _shared(config) | {"problem": config.amounts.problem}


def _training(model: Model, scale: Scale) -> dict[str, Any]:
    if not model.recipe:
        return scale.train | {"teacher": model.teacher}
    return {"recipe": model.recipe + scale.recipe, "teacher": model.teacher} | scale.recipes


def _model(name: str, model: Model, wanted: list[str], config: PaperConfig, scale: Scale) -> Iterator[Cell]:
    """The cells of one row of the table, as far as the wanted items need them."""
    run = place(config, name)
    trained, recorded = f"{name}/train", f"{name}/record"
    train = TrainConfig(**_training(model, scale), **_on_problem(config), out=run)
    yield Cell(trained, "train", train, Path(run, "teacher.h5"))
    if not any(item in _DISTILLED for item in wanted):
        return
    trajectories = place(config, name, "trajectories.h5")
    sizes = {"steps": scale.steps, "runs": scale.runs, "samples": scale.samples}
    record = RecordConfig(source=run, **sizes, **_shared(config), out=trajectories)
    yield Cell(recorded, "record", record, Path(trajectories), (trained,))
    for k in range(scale.searches):
        out = place(config, name, f"rules-{k}")
        search = DistillConfig(
            trajectories=trajectories,
            out=out,
            engine=scale.engine,
            time=scale.seconds,
            evaluations=scale.evaluations,
            max_size=scale.size,
            seed=config.seed + k,
            quiet=config.quiet,
        )
        yield Cell(f"{name}/distill-{k}", "distill", search, Path(out, BEST), (recorded,))
    yield from _judged(name, wanted, config, scale, sizes)


def _judged(
    name: str, wanted: list[str], config: PaperConfig, scale: Scale, sizes: dict[str, int]
) -> Iterator[Cell]:
    """What becomes of a model's rules: one is chosen, compared with its teacher, recorded and analysed."""
    run, out = place(config, name), place(config, name, "rule")
    chosen, best = f"{name}/select", Path(out, BEST)
    select = SelectConfig(
        front=place(config, name, "rules-0"),
        steps=scale.horizon,
        tasks=scale.tasks,
        more=3 * scale.tasks,
        jobs=scale.jobs,
        **_on_problem(config),
        out=out,
    )
    yield Cell(chosen, "select", select, best, (f"{name}/distill-0",))
    if "table" in wanted:
        both = (f"teacher:{run}", f"rule:{best}")
        result = place(config, name, "evaluation")
        evaluate = _compare(config, both, scale.horizon, scale.seeds, result)
        yield Cell(
            f"{name}/evaluate", "evaluate", evaluate, Path(result, "evaluation.h5"), (f"{name}/train", chosen)
        )
    if not any(item in _ANALYSED for item in wanted):
        return
    # The same problem, seeds and numbers as the teacher's recording: courses from the same starts.
    followed = place(config, name, "rule.h5")
    record = RecordConfig(source=f"rule:{best}", **sizes, **_on_problem(config), out=followed)
    yield Cell(f"{name}/follow", "record", record, Path(followed), (chosen,))
    yield Cell(
        f"{name}/analysis",
        "analysis",
        analysis_config(config, name),
        Path(place(config, name, "analysis"), "analysis.json"),
        (f"{name}/train", f"{name}/record", chosen, f"{name}/follow"),
    )


def analysis_config(config: PaperConfig, name: str) -> AnalysisConfig:
    """The analysis of a model's teacher and rule."""
    return AnalysisConfig(
        sources=(place(config, name), place(config, name, "rule")),
        trajectories=place(config, name, "trajectories.h5"),
        beside=(place(config, name, "rule.h5"),),
        seed=config.seed % 2**31,
        out=place(config, name, "analysis"),
        quiet=config.quiet,
    )


def _compare(
    config: PaperConfig, optimizers: tuple[str, ...], steps: int, seeds: int, out: str
) -> EvaluateConfig:
    """LSTMs and equations as they come, as the paper compares them: no learning rate is tuned."""
    return EvaluateConfig(
        optimizers=optimizers,
        steps=(steps,),
        seeds=seeds,
        trials=0,
        jobs=config.amounts.jobs,
        report=False,
        **_on_problem(config),
        out=out,
    )


def _sanity(config: PaperConfig, scale: Scale) -> Iterator[Cell]:
    recordings, needs = [], []
    for spec in BASELINES:
        word = spec.partition(":")[0]
        out = place(config, "sanity", f"{word}.h5")
        sizes = {"steps": scale.steps, "runs": scale.runs, "samples": scale.samples}
        record = RecordConfig(source=spec, **sizes, **_on_problem(config), out=out)
        yield Cell(f"sanity/{word}", "record", record, Path(out))
        recordings.append(out)
        needs.append(f"sanity/{word}")
    result = place(config, "sanity", "sanity.json")
    sanity = SanityConfig(
        rules=KNOWN_RULES,
        trajectories=tuple(recordings),
        engine=scale.engine,
        evaluations=scale.evaluations,
        time=0.0 if scale.evaluations else scale.seconds,
        seeds=scale.searches,
        max_size=scale.size if scale.evaluations else 0,  # refits of long rules take longest
        quiet=config.quiet,
        json=result,
    )
    yield Cell("sanity/search", "sanity", sanity, Path(result), tuple(needs))


def _large(config: PaperConfig, scale: Scale) -> Iterator[Cell]:
    """Figure 2: an equation with its constants tuned on the net, beside hand-made optimizers."""
    rule, out = place(config, LARGE_OF, "rule", BEST), place(config, "figure2", "tuned.json")
    here, there = (PROBLEMS[name].dataset for name in (scale.problem, scale.conv))
    own = config.dataset if here == there or config.dataset == "synthetic" else ""
    shared = _shared(config) | {"problem": scale.conv, "dataset": own}
    length = min(200, scale.conv_steps)
    tune = TuneConfig(rule=rule, epochs=scale.conv_epochs, epoch_length=length, **shared, out=out)
    yield Cell("figure2/tune", "tune", tune, Path(out), (f"{LARGE_OF}/select",))
    result = place(config, "figure2", "evaluation")
    evaluate = EvaluateConfig(
        optimizers=(f"rule:{out}", *RIVALS),
        steps=(scale.conv_steps,),
        schedules=("constant", "cosine"),
        seeds=scale.conv_seeds,
        validation_seeds=1,
        trials=scale.conv_trials,
        jobs=scale.jobs,
        report=False,
        **shared,
        out=result,
    )
    yield Cell("figure2/evaluate", "evaluate", evaluate, Path(result, "evaluation.h5"), ("figure2/tune",))


def _long(config: PaperConfig, scale: Scale) -> Cell:
    optimizers = tuple(f"teacher:{place(config, name)}" for name in LONG)
    result = place(config, "long")
    evaluate = _compare(config, optimizers, scale.long_steps, scale.long_seeds, result)
    needs = tuple(f"{name}/train" for name in LONG)
    return Cell("long/evaluate", "evaluate", evaluate, Path(result, "evaluation.h5"), needs)


def training_of(config: PaperConfig, name: str) -> str:
    """How a model is trained at this scale, in words."""
    settings = _training(MODELS[name], config.amounts)
    if "recipe" not in settings:
        return f"{settings['epochs']} epochs of {settings['epoch_length']} steps"
    all_of = RECIPES[settings["recipe"]] | settings
    lengths = all_of.get("lengths") or ("100 to 3,000",)
    short = " (shortened)" if settings["recipe"].endswith("-short") else ""
    return f"curriculum of {', '.join(map(str, lengths))} steps with imitation{short}"
