"""Which hand-made optimizer someone's updates are, and to how much of their variance."""

from interchange.analysis.recorded import Recorded
from interchange.language import expression as ex
from interchange.language.parse import parse
from interchange.language.view import SIZES
from interchange.rule.nearest import HAND_MADE, Match, Updates, nearest_to
from interchange.rule.rule import RAW, Rule

# Those of the gallery beside HAND_MADE that are no wrappers: of coordinates, and of whole tensors.
_COORDINATES = ("grams", "adopt", "ademamix", "schedule_free")
_TENSORS = ("muon", "normuon", "adamuon", "lamb", "lars", "adafactor", "sm3", "mars", "cautious")
_NORMALISED = "g / (sqrt(ema_hat(square(g), norm)) + norm_eps)"
_OVER = ("sgd", "momentum", "nesterov")
_COUNT, _STEPS = 32, 200  # coordinates and steps that are compared


def attribution(fitted: Recorded, judged: Recorded) -> list[Match]:
    """Hand-made optimizers with their lr and constants fitted to updates, by R2 on others, nearest first.

    Those that see tensors are among them where tensors were recorded whole, those that read theta where that
    was recorded. Of runs only the first 200 steps are compared.
    """
    few = [data.few(_COUNT, _STEPS) for data in (fitted, judged)]
    raw = [{name: data.given[name] for name in ("g", "theta") if name in data.given} for data in few]
    known = {"t", *SIZES, *raw[0]}
    candidates = {
        name: rule
        for name, rule in hand_made().items()
        if (few[0].views is not None or not rule.sees_tensors)
        and set(ex.names(rule.inlined())) <= {*known, *rule.constants}
    }
    parts = [Updates(own, data.updates, data.views) for own, data in zip(raw, few, strict=True)]
    return nearest_to(*parts, candidates)


def hand_made() -> dict[str, Rule]:
    """All that updates are compared with, by what they are called."""
    found = {name: Rule.named(name) for name in (*HAND_MADE, *_COORDINATES, *_TENSORS)}
    normalised = {"g": parse(_NORMALISED, dict.fromkeys((*RAW, "norm", "norm_eps")))}
    for name in _OVER:
        rule = Rule.named(name)
        tree = ex.substitute(rule.expression, normalised)
        constants = rule.constants | {"norm": 0.95, "norm_eps": 1e-8}
        words = "normalised gradients" if name == "sgd" else f"{name} over normalised gradients"
        found[words] = Rule(words, tree, constants)
    return found


def told(name: str, matches: list[Match]) -> str:
    """A sentence on the nearest, as "rp_s is 94 % momentum over normalised gradients"."""
    best = matches[0]
    if not best.r2 > 0.0:
        return f"{name} is like none of the hand-made optimizers"
    share = 100.0 if best.r2 > 1.0 - 1e-6 else min(99.9, round(100.0 * best.r2, 1))
    return f"{name} is {share:g} % {best.name}"
