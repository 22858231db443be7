"""Plain pyoperon and gplearn against ours on known rules: held-out R2 with the same data and seconds.

    python tests/benchmarks/rivals.py [--seconds 30] [--seeds 3] [--engine auto] [--json FILE] [RULE ...]

Rivals get the 21 columns g_t ... g_{t-20}, as in the paper, and Operon also ours. pyoperon runs with its
defaults, and with constants fitted and no limit but the time. gplearn has its defaults and goes on until the
time is up. What needs more than the time by more than a generation is its own affair: seconds are shown.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from interleaved import parser_of, save, tell

from common.metrics import r2
from interchange.language.execute import compile_program, evaluate
from interchange.language.parse import parse
from interchange.sanity.__main__ import SanityConfig, find
from interchange.sanity.rules import GRADIENT, KNOWN, recorded
from interchange.search.dictionary import COLUMNS
from interchange.search.samples import Sequences, sequences

Predict = Callable[[np.ndarray], np.ndarray]


def lag_columns(data: Sequences) -> np.ndarray:
    """g_t ... g_{t-20}, [T N, 21]; zeros before the start."""
    return _values([GRADIENT, *(f"lag({GRADIENT}, {k})" for k in range(1, 21))], data)


def our_columns(data: Sequences) -> np.ndarray:
    """The same and moving averages of g, g^2 and |g|, [T N, columns]."""
    inputs = (GRADIENT, f"square({GRADIENT})", f"abs({GRADIENT})")
    averages = [f"ema({x}, {b})" for b in COLUMNS.decays for x in inputs]
    return np.concatenate([lag_columns(data), _values([*inputs[1:], *averages], data)], axis=1)


def _values(texts: list[str], data: Sequences) -> np.ndarray:
    values = evaluate(compile_program([parse(text, (GRADIENT,)) for text in texts]), data.features)
    return np.stack([value.reshape(-1) for value in values], axis=1)


def operon_defaults(x: np.ndarray, y: np.ndarray, seconds: float, seed: int) -> Predict:
    """pyoperon's SymbolicRegressor as it comes, which has a limit of evaluations beside the time."""
    from pyoperon.sklearn import SymbolicRegressor

    model = SymbolicRegressor(max_time=max(1, round(seconds)), n_threads=1, random_state=seed)
    return model.fit(x, y).predict


def operon_fitted(x: np.ndarray, y: np.ndarray, seconds: float, seed: int) -> Predict:
    """The same with constants fitted in every candidate, more functions, and the time alone as limit."""
    from pyoperon.sklearn import SymbolicRegressor

    model = SymbolicRegressor(
        allowed_symbols="add,sub,mul,div,aq,exp,tanh,square,sqrt,abs,constant,variable",
        optimizer_iterations=10,
        generations=10**6,
        max_evaluations=10**9,
        max_time=max(1, round(seconds)),
        n_threads=1,
        random_state=seed,
    )
    return model.fit(x, y).predict


def gplearn(x: np.ndarray, y: np.ndarray, seconds: float, seed: int) -> Predict:
    """gplearn's SymbolicRegressor as it comes, one generation after another until the time is up."""
    from gplearn.genetic import SymbolicRegressor

    model = SymbolicRegressor(generations=1, warm_start=True, random_state=seed)
    started = time.monotonic()
    model.fit(x, y)
    while time.monotonic() - started < seconds:
        model.set_params(generations=model.generations + 1)
        model.fit(x, y)
    return model.predict


RIVALS: dict[str, tuple[Callable[..., Predict], Callable[[Sequences], np.ndarray]]] = {
    "operon": (operon_defaults, lag_columns),
    "operon fitted": (operon_fitted, lag_columns),
    "operon fitted, our columns": (operon_fitted, our_columns),
    "gplearn": (gplearn, lag_columns),
}


def measure(rival: str, name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Held-out R2 and seconds of one rival; a failure is a text instead."""
    fit, columns = RIVALS[rival]
    recording = recorded(KNOWN[name].rule, seed)
    data = {split: sequences(recording, split) for split in recording.split}
    x = np.concatenate([columns(data[part]) for part in ("train", "valid")])
    y = np.concatenate([data[part].target.reshape(-1) for part in ("train", "valid")])
    started = time.monotonic()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            predict = fit(x, y, seconds, seed)
            passed = time.monotonic() - started
            prediction = np.asarray(predict(columns(data["test"])), np.float64).reshape(-1)
    except Exception as error:  # another's program: one rival's fault must not end the comparison
        told = f"{type(error).__name__}: {error}"
        return {"r2": None, "seconds": time.monotonic() - started, "error": told}
    value = r2(data["test"].target.reshape(-1), prediction)
    return {"r2": value if np.isfinite(value) else None, "seconds": passed}


def ours(name: str, config: SanityConfig, seed: int) -> dict[str, Any]:
    """Held-out R2 and seconds of the sanity command's search."""
    found = find(KNOWN[name], config, seed)
    return {"r2": found.r2, "seconds": found.seconds, "nodes": found.nodes}


def medians(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float | None]:
    """Median R2 of each competitor; a failed run is worse than every other, None that most failed."""
    figures = {
        who: statistics.median(-np.inf if run["r2"] is None else run["r2"] for run in list_)
        for who, list_ in runs.items()
    }
    return {who: float(value) if np.isfinite(value) else None for who, value in figures.items()}


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Median held-out R2, one line per rule; a star where ours is the best or as good to 1e-6."""
    lines = []
    for name, runs in results.items():
        middle = medians(runs)
        others = [value for who, value in middle.items() if who != "ours" and value is not None]
        mine = middle["ours"]
        star = "*" if mine is not None and mine >= max(others, default=-np.inf) - 1e-6 else " "
        cells = [f"{who} {'failed' if value is None else f'{value:.6f}'}" for who, value in middle.items()]
        lines.append(f"{star} {name:15s} " + "  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__, seconds=30.0, seeds=3, engine="auto")
    parser.add_argument("rules", nargs="*", default=list(KNOWN))
    options = parser.parse_args()
    config = SanityConfig(engine=options.engine, time=options.seconds, threads=1)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in options.rules}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.setdefault("ours", []).append(ours(name, config, seed))
            for rival in RIVALS:
                runs.setdefault(rival, []).append(measure(rival, name, options.seconds, seed))
            latest = "  ".join(f"{who} {list_[-1]['r2']}" for who, list_ in runs.items())
            tell(f"seed {seed} {name}: {latest}")
            if options.json:
                rows = {
                    name: {"medians": medians(runs), "runs": runs} for name, runs in results.items() if runs
                }
                settings = {key: getattr(options, key) for key in ("seconds", "seeds", "engine")}
                save(options.json, {"settings": settings, "rules": rows})
    print(table(results))


if __name__ == "__main__":
    main()
