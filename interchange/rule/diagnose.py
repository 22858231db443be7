"""What to know of a rule before it gets weights: where it breaks, where it jumps, whether it descends."""

import dataclasses
from collections.abc import Callable

import numpy as np

from interchange.language.simplify import probes
from interchange.rule.rule import Rule
from interchange.rule.safety import apart

_STEPS = 64
_CORRELATIONS = (0.0, 0.5, 0.9)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Where updates are not finite.

    Attributes:
        kind: "overflow" (infinite), "nan", or "state": the update is finite, but what is remembered is
            not, so that the coordinate may stand still from then on.
        dtype: of the computation.
        low, high: range of abs(g) in which it happens.
        step: the first step at which it happens.
        after_calm: only where such a gradient comes after 32 calm steps, not in a steady sequence.
    """

    kind: str
    dtype: str
    low: float
    high: float
    step: int
    after_calm: bool

    def __str__(self) -> str:
        where = f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"
        when = " after calm steps" if self.after_calm else ""
        what = "state overflows" if self.kind == "state" else self.kind
        return f"{what} in {self.dtype} for abs(g) {where}{when}, first at step {self.step}"


@dataclasses.dataclass(frozen=True)
class Domain:
    """Faults, and the steady gradients at which the update jumps (at steps 1 and 64)."""

    faults: tuple[Fault, ...]
    jumps: tuple[float, ...]


def domain_scan(rule: Rule) -> Domain:
    """Faults over abs(g) of every size of float32 and float64, and jumps; theta is 1.

    Sequences of 64 steps: a steady gradient, and one that comes once after 32 steps of 1e-3.
    """
    faults = []
    for dtype, lowest, highest in ((np.float32, -45, 38), (np.float64, -300, 300)):
        sizes = np.concatenate(
            [[0.0], 10.0 ** np.arange(lowest, highest + 0.1, 1.0 if highest < 100 else 4.0)]
        )
        for after_calm in (False, True):
            g = np.broadcast_to(np.concatenate([sizes, -sizes]), (_STEPS, 2 * len(sizes))).astype(dtype)
            if after_calm:
                g = np.where(np.arange(_STEPS)[:, None] == _STEPS // 2, g, dtype(1e-3))
            u, lost = apart(rule, g, dtype)
            with np.errstate(all="ignore"):
                u = dtype(rule.scale) * u
            faults += _faults(u, lost & np.isfinite(u), sizes, np.dtype(dtype).name, after_calm)
    known = {(fault.kind, fault.dtype) for fault in faults if not fault.after_calm}
    kept = [fault for fault in faults if not fault.after_calm or (fault.kind, fault.dtype) not in known]
    return Domain(tuple(kept), _jumps(rule))


def _faults(u: np.ndarray, lost: np.ndarray, sizes: np.ndarray, dtype: str, after_calm: bool) -> list[Fault]:
    found = []
    for kind, wrong in (("overflow", np.isinf(u)), ("nan", np.isnan(u)), ("state", lost)):
        both = wrong[:, : len(sizes)] | wrong[:, len(sizes) :]
        columns = np.flatnonzero(both.any(0))
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else ():
            step = int(np.flatnonzero(both[:, run].any(1))[0]) + 1
            found.append(Fault(kind, dtype, float(sizes[run[0]]), float(sizes[run[-1]]), step, after_calm))
    return found


def _jumps(rule: Rule) -> tuple[float, ...]:
    """Steady gradients at which u changes though g hardly does, found by bisection in float64."""
    sizes = 10.0 ** (np.arange(-12 * 64, 12 * 64 + 1) / 64.0)
    grid = np.concatenate([-sizes[::-1], [0.0], sizes])
    found: list[float] = []
    for step in (1, _STEPS):
        found += _bisected(lambda g, step=step: _at_step(rule, g, step), grid)
    near = [0.0 if abs(g) < sizes[0] else float(f"{g:.3g}") for g in found]
    return tuple(sorted(dict.fromkeys(near)))


def _at_step(rule: Rule, g: np.ndarray, step: int) -> np.ndarray:
    steady = np.broadcast_to(g, (step, len(g)))
    return rule.scale * apart(rule, steady, np.float64)[0][-1]


def _bisected(f: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> list[float]:
    """Where f changes by more than 1e-3 of its size between two points, however near they are brought."""
    low, high = grid[:-1], grid[1:]
    values = f(grid)
    at_low, at_high = values[:-1], values[1:]
    with np.errstate(all="ignore"):
        threshold = 1e-3 * np.maximum(np.abs(at_low), np.abs(at_high))
        for _ in range(120):
            steep = np.abs(at_high - at_low) > threshold
            low, high, at_low, at_high, threshold = (
                part[steep] for part in (low, high, at_low, at_high, threshold)
            )
            if not len(low):
                return []
            middle = low + 0.5 * (high - low)
            value = f(middle)
            left = np.abs(value - at_low) > np.abs(at_high - value)
            high, at_high = np.where(left, middle, high), np.where(left, value, at_high)
            low, at_low = np.where(left, low, middle), np.where(left, at_low, value)
        jumping = np.isfinite(at_high) & np.isfinite(at_low) & (np.abs(at_high - at_low) > threshold)
    # Beyond 1e8 neighbouring numbers are far apart for a periodic function.
    return [float(x) for x in (0.5 * (low + high))[jumping] if abs(x) < 1e8]


def descent(rule: Rule) -> dict[float, float]:
    """E cos(u, -g) per correlation of successive gradients: 1 is steepest descent, below 0 ascent.

    Means over 200 steps of the cosine over 2,000 coordinates with log-normal scales; gradients are AR(1)
    with correlation 0, 0.5, 0.9; theta is 0. NaN where an update is not finite.
    """
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=2000))
    noise = rng.normal(size=(200, 2000))
    cosines = {}
    for rho in _CORRELATIONS:
        g = noise.copy()
        for t in range(1, len(g)):
            g[t] = rho * g[t - 1] + np.sqrt(1.0 - rho**2) * noise[t]
        g = g * scale
        u = rule.tried({"g": g, "theta": np.zeros_like(g)})
        with np.errstate(all="ignore"):
            dots = -(u * g).sum(1) / (np.linalg.norm(u, axis=1) * np.linalg.norm(g, axis=1))
        cosines[rho] = float(np.where(np.abs(u).max(1) == 0.0, 0.0, dots).mean())
    return cosines


def difference(a: Rule, b: Rule, above: float = 0.0) -> float:
    """The largest difference of two rules' updates on ``simplify.probes``, relative to a column's largest.

    Infinite where one is finite and the other is not.

    Args:
        above: no gradient is nearer to 0; columns of zeros and spikes are left out then.
    """
    given = probes()
    if above:
        g = given["g"][:, 8:]
        given = {
            "g": np.where(g < 0.0, -1.0, 1.0) * np.clip(np.abs(g), above, 1e10),
            "theta": given["theta"][:, 8:],
        }
    u, v = (rule.tried(given) for rule in (a, b))
    both = np.isfinite(u) & np.isfinite(v)
    if (np.isfinite(u) != np.isfinite(v)).any():
        return float("inf")
    with np.errstate(all="ignore"):
        size = np.where(both, np.maximum(np.abs(u), np.abs(v)), 0.0).max(0)
        apart = np.where(both, np.abs(u - v), 0.0).max(0)
    return float((apart / np.where(size > 0.0, size, 1.0)).max())
