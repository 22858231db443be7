"""The gallery of rules by name: published optimizers as equations, distilled rules, a template to tune.

What others call lr multiplies the rule's update, as everywhere.
"""

import dataclasses
import inspect
from collections.abc import Callable, Set
from pathlib import Path

from common.errors import L2OError
from common.registry import Registry
from interchange.language.equation import Equation
from interchange.rule.published import classic, layers, matrices, recent, templates, wrappers


@dataclasses.dataclass(frozen=True)
class NamedRule:
    """One row: ``build(**options)`` makes the rule; the defaults of its arguments are the source's.

    ``note`` says where the rule is not what the source has, or what programs of that name do else.
    """

    build: Callable[..., Equation]
    source: str
    note: str = ""


def named(name: str, **options: float | str | Equation) -> Equation:
    """The rule ``name`` of the gallery; ``cautious(lion)`` is ``cautious`` with the option ``of="lion"``.

    Options may stand behind the name, as in ``psi:features=m_tilde+g,lags=5``.

    Args:
        options: hyper-parameters of the row, such as ``beta1``; defaults are the source's. ``of`` of a row
            that wraps others is a rule, or the name of one here.

    Raises:
        L2OError: no such rule, or it has no such option.
    """
    head, of = _parts(name)
    head, _, text = head.partition(":")
    row = NAMED[head]
    options = ({"of": of} if of else {}) | _read(text, name) | options
    known = options_of(head)
    unknown = [key for key in options if key not in known]
    if unknown:
        raise L2OError(f"rule {head!r}: unknown option {unknown[0]!r}; known: {', '.join(known) or 'none'}")
    if "of" in options:
        inner = options["of"] if isinstance(options["of"], Equation) else named(str(options["of"]))
        options, name = options | {"of": inner}, f"{head}({inner.name})"
    rule = row.build(**options)
    own = {"source": row.source} | ({"note": row.note} if row.note else {})
    return dataclasses.replace(rule, name=name[:200], provenance=rule.provenance | own)


def options_of(name: str) -> Set[str]:
    """The options that the row ``name`` takes, in order."""
    return inspect.signature(NAMED[name].build).parameters.keys()


def is_named(name: str) -> bool:
    """Whether ``named`` has a row for it."""
    return _parts(name)[0].partition(":")[0] in NAMED


def _read(text: str, name: str) -> dict[str, float | str]:
    """The options of ``features=m_tilde+g,lags=5``: numbers, and words for what is no number."""
    found: dict[str, float | str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise L2OError(
                f"rule {name!r}: expected option=value, got {pair!r}; as psi:features=m_tilde+g,lags=5"
            )
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = value
    return found


def _parts(name: str) -> tuple[str, str]:
    """The row and what it wraps: cautious and adam of "cautious(adam)"."""
    head, bracket, rest = name.partition("(")
    return (head, rest[:-1]) if bracket and rest.endswith(")") else (name, "")


def _cautious(of: Equation | None = None) -> Equation:
    return wrappers.cautious(of or classic.adam())


def _schedule_free(
    of: Equation | None = None, beta: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Equation:
    if of is None:
        constants = {"beta2": beta2, "eps": eps}
        of = Equation.from_text("-g / (sqrt(ema_hat(square(g), beta2)) + eps)", constants)
    elif (beta2, eps) != (0.999, 1e-8):
        raise L2OError("schedule_free: expected no beta2 and eps beside of, which has its own")
    return wrappers.schedule_free(of, beta)


def _dm_48() -> Equation:
    return _lags_of_gradient("relu(lag(g, 13))")


def _dm_49() -> Equation:
    return _lags_of_gradient("relu(tanh(lag(g, 13)))")


def _lags_of_gradient(last: str) -> Equation:
    drive = "cube(sinh(square(sinh(sinh(sign(cube(square(g * (lag(g, 2) + lag(g, 14))))))))))"
    inner = f"pow(asinh(sinh({drive} + t_10000) * (a0 + a1)) + lag(g, 10), a2 + lag(g, 1))"
    outer = f"asinh(square(tanh(sqrt(tanh(asinh(asinh(asinh({inner})) + {last})))) + a3))"
    return Equation.from_text(
        f"sinh(sinh(sinh(sinh(pow(a4, {outer}))))) * a5",
        {
            "a0": -28.506275,
            "a1": 1.3811486,
            "a2": 0.9052736,
            "a3": 0.46329194,
            "a4": 0.11232872,
            "a5": -0.033964403,
        },
        {"t_10000": "t / 10000"},
        scale=0.01,
    )


def _distilled(text: str, constants: dict[str, float], teacher: str) -> Equation:
    from common.tables.teachers import TEACHERS

    return Equation.from_text(text, constants, TEACHERS[teacher].expressions(), scale=0.01)


def _rp_s_11() -> Equation:
    constants = {
        "c0": -0.2277056431523075,
        "c1": 0.6997312679490238,
        "c2": -0.11644595677660458,
        "c3": 0.5886005244592508,
    }
    return _distilled("c0 * ema(m_tilde, c1) + c2 * ema(g_tilde, c3)", constants, "rp_s")


def _rnnprop_17() -> Equation:
    constants = {
        "c0": -0.5694304526681907,
        "c1": 0.8884925986262299,
        "c2": -0.01740767900521846,
        "c3": -0.1261189401345537,
        "c4": 0.7256389756356371,
        "c5": 0.00858219493629732,
    }
    text = "c0 * ema(m_tilde, c1) + c2 * g_tilde + c3 * ema(g_tilde, c4) + c5"
    return _distilled(text, constants, "rnnprop")


def _rnnprop_start() -> Equation:
    constants = {"c0": -0.05, "c1": 0.9, "c2": -0.14, "c3": -1.0, "c4": 0.983, "c5": 0.005}
    text = "(c0 * ema(m_tilde, c1) + c2 * g_tilde + c3 * ema(g_tilde, c4)) / sqrt(1 + c5 * t)"
    return _distilled(text, constants, "rnnprop")


def _shipped(name: str) -> Equation:
    return Equation.from_json((Path(__file__).parents[1] / "shipped" / f"{name}.json").read_text("utf-8"))


def _rnnprop_tuned() -> Equation:
    return _shipped("rnnprop_tuned")


def _polar_normalised() -> Equation:
    return _shipped("polar_normalised")


_ICLR = "Zheng et al. 2022 (ICLR), released results: a DM teacher over lags of g, t / 10,000"

_DISTILL = "python -m interchange.distill trajectories.h5 --time 60 --max-size 50 --select rollout"
_TUNE = (
    "--problem mnist-mlp,quadratic-k100 --horizon 200..1000 --factors --pairs 6 --sigma 0.1 --lr 0.03 "
    "--epochs 50 --validate-every 10 --validation-tasks 2 --average 0.5"
)

_FIND = "python tests/benchmarks/find_rule.py --evaluations 110 --population 10 --tasks 6 --seed 0"

_VECTORS = "vectors by AdamW (0.9, 0.95); weight decay is outside"
_ROWS_AND_COLUMNS = "kernels are one matrix, outputs by inputs"

_PUBLISHED = {
    "muon": NamedRule(
        matrices.muon,
        "Jordan et al. 2024; rms as Liu et al. 2025 (arXiv 2502.16982), eq. 4",
        f"{_VECTORS}; torch.optim.Muon rounds to bfloat16 on the way",
    ),
    "normuon": NamedRule(
        matrices.normuon,
        "Li et al. 2025 (arXiv 2510.05491), algorithm 1",
        f"{_VECTORS}; the authors' code has Nesterov's momentum, and Muon's size for 0.2 sqrt(mn)",
    ),
    "adamuon": NamedRule(matrices.adamuon, "Si et al. 2025 (arXiv 2507.11005 v3), algorithm 1", _VECTORS),
    "lamb": NamedRule(
        layers.lamb,
        "You et al. 2020 (arXiv 1904.00962), algorithm 2, phi(x) = x",
        "the ratio is 1 where theta is 0, as in optax; weight decay is inside",
    ),
    "lars": NamedRule(
        layers.lars,
        "You et al. 2017 (arXiv 1708.03888), algorithm 1",
        "the ratio is 1 where theta is 0, as in optax; weight decay is inside; the learning rate multiplies "
        "the momentum, there what goes into it: the same at a constant rate",
    ),
    "adafactor": NamedRule(
        layers.adafactor,
        "Shazeer and Stern 2018 (arXiv 1804.04235), algorithms 4 and 5",
        "lr = rho = 0.01 is the paper's step, min(rho, 1 / sqrt(t)); relative to the size of theta; "
        f"{_ROWS_AND_COLUMNS}, where torch and optax factor two axes",
    ),
    "sm3": NamedRule(
        layers.sm3,
        "Anil et al. 2019 (arXiv 1901.11150), algorithm SM3-I",
        f"{_ROWS_AND_COLUMNS}; without momentum; optax.sm3 is SM3-II, whose recursion the language lacks",
    ),
    "grams": NamedRule(recent.grams, "Cao et al. 2024 (arXiv 2412.17107), algorithm 1"),
    "mars": NamedRule(
        recent.mars,
        "Yuan et al. 2024 (arXiv 2411.10438), MARS-AdamW, approximate: with the last step's gradient",
        "the norm is cut tensor by tensor and vectors go by AdamW (0.9, 0.95), as in the authors' code; "
        "norms over all tensors and gradients at the last parameters are not in the language; c = g at t = 1",
    ),
    "adopt": NamedRule(
        recent.adopt,
        "Taniguchi et al. 2024 (arXiv 2411.02853 v3), algorithm 2, clipped to t**0.25",
        "the first step only looks",
    ),
    "ademamix": NamedRule(
        recent.ademamix,
        "Pagliardini et al. 2024 (arXiv 2409.03137), algorithm 1; warmup = 0 for none of alpha and beta3",
    ),
    "cautious": NamedRule(
        _cautious,
        "Liang et al. 2024 (arXiv 2411.16085), algorithm 1",
        "wraps any rule, as cautious(lion); by tensor; the authors' code has max(share, 0.001) for "
        "share + 1/numel",
    ),
    "schedule_free": NamedRule(
        _schedule_free,
        "Defazio et al. 2024 (arXiv 2405.15682); of Adam without momentum (AdamW) or of any rule",
        "at a constant learning rate without warmup, where all z weigh the same; "
        "theta is y: the average to evaluate is not kept",
    ),
}

NAMED: Registry[NamedRule] = Registry(
    "rule",
    {
        "sgd": NamedRule(classic.sgd, "Robbins and Monro 1951"),
        "momentum": NamedRule(classic.momentum, "Polyak 1964"),
        "nesterov": NamedRule(classic.nesterov, "Nesterov 1983; Sutskever et al. 2013"),
        "rmsprop": NamedRule(classic.rmsprop, "Tieleman and Hinton 2012"),
        "adagrad": NamedRule(classic.adagrad, "Duchi et al. 2011"),
        "adam": NamedRule(classic.adam, "Kingma and Ba 2015"),
        "amsgrad": NamedRule(classic.amsgrad, "Reddi et al. 2018"),
        "lion": NamedRule(classic.lion, "Chen et al. 2023"),
        **_PUBLISHED,
        "dm_48": NamedRule(_dm_48, f"{_ICLR}, 48 nodes"),
        "dm_49": NamedRule(_dm_49, f"{_ICLR}, 49 nodes"),
        "rp_s_11": NamedRule(_rp_s_11, f"{_DISTILL} --active 240, of the shipped teacher rp_s"),
        "rnnprop_17": NamedRule(_rnnprop_17, f"{_DISTILL} --active 240, of the shipped teacher rnnprop"),
        "rnnprop_start": NamedRule(
            _rnnprop_start,
            "the terms of rnnprop_17 over sqrt(1 + c5 t), constants from a scan on mnist-mlp; tune it",
        ),
        "rnnprop_tuned": NamedRule(_rnnprop_tuned, f"python -m torch_impl.tune rnnprop_start {_TUNE}"),
        "polar_normalised": NamedRule(
            _polar_normalised,
            f"{_FIND}; structure by hand: Muon's polar factor, of a momentum of normalised gradients",
            "vectors by that momentum without the polar factor; made for a falling learning rate (cosine)",
        ),
        "psi": NamedRule(
            templates.psi,
            "template of Zheng et al. 2022 over any features, as psi:features=m_tilde+g,lags=5; tune it",
        ),
        "psi_power": NamedRule(
            templates.psi_power, "code of Zheng et al. 2022: signed powers of the features; tune it"
        ),
        "adam_blend": NamedRule(
            templates.adam_blend, "code of Zheng et al. 2022: momentum at blend = 0, Adam at 1; tune it"
        ),
    },
)
