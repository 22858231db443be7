"""What ``train`` and ``tune`` take."""

import dataclasses
import math
from typing import ClassVar

from common.run.config import OnProblem, option
from common.tables.problems import PROBLEMS
from common.tables.recipes import RECIPES
from common.tables.teachers import INITIAL_WEIGHTS, STRUCTURES, TEACHERS

EPOCHS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaLoop(OnProblem):
    """Fields of meta-training, of teachers and of rules (MATH.md section 2).

    Class variables are settings that only one of the two commands has: what they are for the other.
    """

    estimator: ClassVar[str] = "first"
    state_dtype: ClassVar[str] = ""
    random_scaling: ClassVar[float] = 0.0
    convex: ClassVar[bool] = False
    curriculum: ClassVar[bool] = False
    lengths: ClassVar[tuple[int, ...]] = ()
    imitation: ClassVar[float] = 0.0
    stage_imitation: ClassVar[tuple[float, ...]] = ()
    checkpoint_seconds: ClassVar[float] = math.inf
    factors: ClassVar[bool] = False
    kinds: ClassVar[bool] = False

    problem: str = option(
        "digits-mlp",
        "row of the problem table, or several, a,b,c: optimizees take them in turn",
        choices=lambda: PROBLEMS,
        empty=True,
        several=True,
    )
    epochs: int = option(EPOCHS, "meta-epochs, each on a fresh optimizee", low=1)
    epoch_length: int = option(200, "inner steps of an epoch", low=1)
    horizon: str = option("", "instead of --epoch-length: steps, or a range 20..2000, drawn log-uniformly")
    unroll: int = option(20, "inner steps between two meta-updates", low=1)
    tasks: int = option(1, "optimizees trained on at once; their meta-gradients are averaged", low=1)
    lr: float = option(1e-3, "learning rate of the meta-optimizer Adam", above=0)
    lr_decay: float = option(
        1.0, "meta learning rate at the end as a fraction of --lr (cosine)", low=0, high=1
    )
    loss: str = option(
        "sum",
        "losses of one unroll: their sum, the last, or the sum of their logarithms",
        choices=lambda: ("sum", "last", "log"),
    )
    validate_every: int = option(
        10, "epochs between validations; what is best there is kept (0: the last is kept)", low=0
    )
    validation_tasks: int = option(4, "optimizees of one validation, on each problem", low=1)
    average: float = option(
        0.0, "share of the last epochs whose averaged weights are validated too (0: none)", low=0, high=1
    )
    pairs: int = option(6, "antithetic pairs of rollouts (es, pes)", low=1)
    sigma: float = option(0.05, "size of the perturbations, relative to each weight's (es, pes)", above=0)
    jobs: int = option(1, "processes the pairs are shared out among (es, pes)", low=1)
    dry_run: bool = option(False, "only say what it would take: parameters, memory, time, by a few steps")
    memory: float = option(
        0.0,
        "GiB the backward pass may take beside what it reads, where it is not compiled; of forward, all "
        "tangents (0: unset)",
        low=0,
    )
    coordinates: float = option(
        1.0,
        "share of coordinates in the meta-gradient, drawn anew per unroll (first) or epoch (forward)",
        above=0,
        high=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(MetaLoop):
    """Meta-training of a teacher (MATH.md section 2)."""

    epochs: int = option(
        0, f"meta-epochs, each on a fresh optimizee; 0: {EPOCHS}, with --resume as many as before", low=0
    )
    teacher: str = option(
        "",
        "row of the teacher table; rp_s, or that of --init, if not given",
        choices=lambda: TEACHERS,
        empty=True,
    )
    inputs: str = option("", "features instead of the row's own, such as mt+gt+mom5+mom99")
    scale: float = option(0.0, "output scale instead of the row's own (0: the row's)", low=0)
    structure: str = option(
        "",
        "the tensor operator that the output goes through, if not the row's own: orth",
        choices=lambda: tuple(filter(None, STRUCTURES)),
        empty=True,
    )
    pre_tanh_scale: float = option(
        0.0, "where a trained factor before tanh begins (0: the row's own, mostly none)", low=0
    )
    weights: str = option(
        "uniform", "initial weights: as the ICLR code's or Lv et al.'s", choices=lambda: INITIAL_WEIGHTS
    )
    state_dtype: str = option(
        "",
        "the LSTM's state between steps in bfloat16: half its memory",
        choices=lambda: ("bfloat16",),
        empty=True,
    )
    random_scaling: float = option(
        0.0, "r: coordinates rescaled by exp(U(-r, r)) each; Lv et al. use 3 (0: none)", low=0, high=20
    )
    convex: bool = option(False, "add a convex function of 20 coordinates to the loss (Lv et al. 2017)")
    estimator: str = option(
        "first",
        "meta-gradient: first or second order, or evolution strategies (pes: in unrolls)",
        choices=lambda: ("first", "second", "es", "pes"),
    )
    sigma: float = option(0.01, "size of the perturbations of the weights (es, pes)", above=0)
    curriculum: bool = option(
        False, "epochs of 100, 200, 500 ... steps, longer where validation stalls (Chen et al. 2020)"
    )
    imitation: float = option(
        0.0, "probability that an epoch imitates Adam, RMSprop or NAG instead (same)", low=0, high=1
    )
    lengths: tuple[int, ...] = option((), "epoch lengths of the curriculum's stages, if not these", low=1)
    stage_imitation: tuple[float, ...] = option(
        (), "--imitation in each stage of the curriculum; the last goes on", low=0, high=1
    )
    recipe: str = option(
        "",
        "settings as published, for those left at their defaults",
        choices=lambda: RECIPES,
        empty=True,
    )
    init: str = option("", "start from the teacher of this run or file, or a shipped one (fine-tuning)")
    resume: str = option("", "go on with this interrupted run, or with more --epochs with a finished one")
    checkpoint_seconds: float = option(30.0, "seconds between checkpoints", low=0)
    tensorboard: bool = option(False, "write the metrics for TensorBoard too, below the run's folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in (RECIPES[self.recipe] if self.recipe else {}).items():
            if getattr(self, name) == defaults[name]:
                object.__setattr__(self, name, value)
        if not self.epochs and not self.resume:
            object.__setattr__(self, "epochs", EPOCHS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(MetaLoop):
    """Meta-tuning of a rule's constants (MATH.md section 3)."""

    checkpoint_seconds: ClassVar[float] = 30.0

    rule: str = option("", "rule: a file, a folder or a name; for --per-tensor a teacher too")
    estimator: str = option(
        "es",
        "meta-gradient: evolution strategies (pes: in unrolls), first or second order, or forward mode",
        choices=lambda: ("first", "second", "forward", "es", "pes"),
    )
    epochs: int = option(30, "meta-epochs, each on a fresh optimizee", low=1)
    # A handful of constants costs little, and short unrolls make them greedy: on mnist-mlp an unroll of 20
    # raised the loss that one of 100 lowers.
    unroll: int = option(100, "inner steps between two meta-updates", low=1)
    lr: float = option(2e-2, "meta learning rate, relative to each constant's size", above=0)
    lr_decay: float = option(
        0.1, "meta learning rate at the end as a fraction of --lr (cosine)", low=0, high=1
    )
    validate_every: int = option(5, "epochs between validations; the best constants are kept", low=1)
    confirm: int = option(
        0,
        "further optimizees on which the tuned constants must beat the start's by 2 standard errors, or the "
        "start is kept (0: the validations decide alone)",
        low=0,
    )
    schedule: float = option(
        0.0, "divide the rule by 1 + C t, C tuned from this value (0: as it is)", low=0, high=1
    )
    constants: tuple[str, ...] = option((), "start values instead of the rule's own: c0=-0.5 c1=0.9 ...")
    factors: bool = option(
        False, "tune a factor on the update for each problem too, as a comparison will (es)"
    )
    kinds: bool = option(
        False, "constants for matrices, convolution kernels and vectors apart (decays stay shared)"
    )
    per_tensor: bool = option(
        False, "tune a step size for each parameter tensor, of any rule or teacher, and nothing else"
    )
    step_size: float = option(1.0, "factor on the update that each of them begins with", above=0)
    weight_decay: float = option(
        0.0, "give the rule decoupled weight decay, tuned from this value (0: as it is)", low=0, high=1
    )
