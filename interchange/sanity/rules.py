"""Rules whose equations are known, the gradients they are shown, and whether an equation found is theirs."""

import dataclasses
import math
import statistics

import numpy as np

from common.metrics import r2
from common.registry import Registry
from common.rng import rng
from interchange.distill.refit import predict
from interchange.files.trajectories import Run, Trajectories
from interchange.language import expression as ex
from interchange.language.expression import Node
from interchange.language.simplify import equal_up_to_constants
from interchange.rule.rule import Rule
from interchange.search.samples import Sequences

GRADIENT = "g"
STEPS, COORDINATES = 100, 100
_CORRELATIONS = (0.0, 0.5, 0.9)
_SPREAD = 1.0  # of the log of a coordinate's scale
_SMALL = 1e-5  # of a gradient's usual size: an added number below it only guards against 0
_DECAY_ERROR = 1e-3


@dataclasses.dataclass(frozen=True)
class Known:
    """One row.

    Attributes:
        rule: the truth, over ``g``.
        bar: held-out R2 an equation must reach.
        paper: R2 and seconds of Zheng et al. 2022 (ICLR), from 20 lags of g; None where it has none.
    """

    rule: Rule
    bar: float = 0.999
    paper: tuple[float, float | None] | None = None


def _sum_of_lags() -> Rule:
    terms = ["g", *(f"{1.0 - 0.1 * k!r} * lag(g, {k})" for k in range(1, 10))]  # the eleventh weighs 0
    return Rule.from_text(" + ".join(terms))


def _scheduled_adam() -> Rule:
    adam = Rule.named("adam", beta1=0.9, beta2=0.99)
    text = f"({ex.to_text(adam.expression)}) / (1 + slope * t)"
    return Rule.from_text(text, adam.constants | {"slope": 0.01})


KNOWN: Registry[Known] = Registry(
    "known rule",
    {
        "sgd": Known(Rule.from_text("-0.01 * g"), 0.9999, (1.0, 49.0)),
        "lags": Known(_sum_of_lags(), 0.9999, (0.94, 126.0)),
        "mixed": Known(
            Rule.from_text("square(g) + lag(g, 1) + 2 * lag(g, 2) + exp(lag(g, 4))"), 0.9999, (0.98, 256.0)
        ),
        "momentum(0.6)": Known(Rule.named("momentum", beta=0.6), 0.9999, (0.97, 90.0)),
        "adam(0.9)": Known(Rule.named("adam", beta1=0.9, beta2=0.9), 0.9999, (0.89, 879.0)),
        # The paper's figure here is from recordings of its problem P1; seconds are not given.
        "momentum(0.5)": Known(Rule.named("momentum", beta=0.5), paper=(0.83, None)),
        "adam(0.9, 0.9)": Known(Rule.named("adam", beta1=0.9, beta2=0.9), paper=(0.25, None)),
        "rmsprop": Known(Rule.named("rmsprop")),
        "nesterov": Known(Rule.named("nesterov")),
        "lion": Known(Rule.named("lion")),
        "adam, schedule": Known(_scheduled_adam()),
    },
)


def gradients(seed: int, stream: str, steps: int = STEPS, coordinates: int = COORDINATES) -> np.ndarray:
    """AR(1) gradients from a zero start, each coordinate with its own correlation and scale; [T, N]."""
    generator = rng(seed, f"sanity {stream}")
    rho = generator.choice(_CORRELATIONS, coordinates)
    scale = np.exp(_SPREAD * generator.normal(size=coordinates))
    noise = np.sqrt(1.0 - rho**2) * generator.normal(size=(steps, coordinates))
    g = np.zeros((steps, coordinates))
    previous = np.zeros(coordinates)
    for t in range(steps):
        previous = g[t] = rho * previous + noise[t]
    return g * scale


def recorded(rule: Rule, seed: int) -> Trajectories:
    """A rule's updates on such gradients, one run a split: 10^4 rows to fit, others for ``test``; y is u."""
    given, held = gradients(seed, "given"), gradients(seed, "held out")
    cut = COORDINATES * 4 // 5
    parts = {"train": given[:, :cut], "valid": given[:, cut:], "test": held}
    runs = {name: _run(name, rule, g, seed) for name, g in parts.items()}
    return Trajectories({GRADIENT: GRADIENT}, runs, {name: (name,) for name in parts}, seed=seed)


def _run(name: str, rule: Rule, g: np.ndarray, seed: int) -> Run:
    """The run of one split; there is no problem and hence no loss, and all coordinates are of one tensor."""
    steps, coordinates = g.shape
    return Run(
        name=name, problem="", problem_json="{}", source_kind="rule", source_json="{}", source_sha256="",
        seed=seed, init_seed=seed, num_steps=steps, scale=1.0, diverged=False, outcome="ok",
        x=g[:, :, None], g=g, y=rule.evaluate({GRADIENT: g}), loss=np.zeros(steps),
        step=np.arange(1, steps + 1), param_index=np.zeros(coordinates, np.int32),
        flat_index=np.arange(coordinates, dtype=np.int32), params_names=(GRADIENT,),
        params_shapes=((coordinates,),),
    )  # fmt: skip


def r2_each(rule: Rule, data: Sequences) -> float:
    """Mean over coordinates of the R2 over steps; coordinates with a constant target do not count."""
    with np.errstate(all="ignore"):
        prediction = np.broadcast_to(predict(rule, data), data.target.shape)
        scores = [r2(y, u) for y, u in zip(data.target.T, prediction.T, strict=True)]
    scores = [score for score in scores if not math.isnan(score)]
    return statistics.fmean(scores) if scores else math.nan


def is_true_form(found: Rule, truth: Rule) -> bool:
    """Whether a rule is the truth with other factors, guards against 0 aside, and the same decays to 1e-3."""
    one, other = (_bare(rule) for rule in (found, truth))
    decays, expected = (_decays(rule.expression, rule.constants) for rule in (one, other))
    if len(decays) != len(expected) or not np.allclose(decays, expected, rtol=0.0, atol=_DECAY_ERROR):
        return False
    # A factor in front of both: lr can be it, and equal_up_to_constants does not take a bare -1 for one.
    freed = [ex.call("mul", ex.number(2.0), _freed(rule.expression)) for rule in (one, other)]
    return equal_up_to_constants(*(Rule("freed", node) for node in freed))


def _decays(node: Node, constants: dict[str, float]) -> list[float]:
    ends = [part.args[1] for part in ex.walk(node) if part.op in ("ema", "ema_hat")]
    return sorted(constants.get(end.name, end.value) for end in ends)


def _bare(rule: Rule) -> Rule:
    """The rule over ``g`` with literals for constants, without numbers too small to matter."""
    literals = {name: ex.number(value) for name, value in rule.constants.items()}
    node = _without_guards(ex.substitute(rule.inlined(), literals))
    return Rule(rule.name, node, {}, {}, rule.scale)


def _without_guards(node: Node) -> Node:
    args = tuple(map(_without_guards, node.args))
    if node.op in ("add", "sub"):
        small = [arg.op == "number" and abs(arg.value) < _SMALL for arg in args]
        if small[1]:
            return args[0]
        if small[0] and node.op == "add":
            return args[1]
    return node if args == node.args else ex.call(node.op, *args)


def _freed(node: Node) -> Node:
    """Every term of a sum with a factor of its own, and every average of a step ago as that of now.

    The latter differ by a multiple of their input, which the rules known here add anyway.
    """
    if node.op == "lag" and node.args[0].op == "ema" and node.args[1].value == 1.0:
        node = node.args[0]
    args = tuple(map(_freed, node.args))
    if node.op in ("add", "sub"):
        args = tuple(ex.call("mul", ex.number(2.0), arg) for arg in args)
    return node if args == node.args else ex.call(node.op, *args)
