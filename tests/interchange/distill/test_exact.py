"""The rule that leaves only the recording's rounding: found, written as its author did, and chosen."""

import dataclasses

import numpy as np
import pytest

from interchange.distill.config import DistillConfig
from interchange.distill.exact import as_written, excess, settled
from interchange.distill.rate import rated, schedule
from interchange.distill.run import search_front
from interchange.files.trajectories import Run, Trajectories
from interchange.language.execute import compile_program, evaluate
from interchange.rule.choice import exact
from interchange.rule.rule import Rule
from interchange.rule.safety import singular
from interchange.search.samples import sequences

STEPS, COORDINATES, LR = 80, 40, 0.01
ADAM = Rule.from_text(
    "c0 * ema_hat(g, c1) / (sqrt(ema_hat(square(g), c2)) + c3)",
    {"c0": -1.0, "c1": 0.9, "c2": 0.999, "c3": 1e-8},
)


def recorded(rule: Rule, include_lr: np.ndarray | None = None) -> Trajectories:
    """Three runs of an optimizer in float32, as ``Recorder`` writes them: y from the difference of theta."""
    runs = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sizes = np.exp(rng.normal(size=COORDINATES))
        g = (rng.normal(size=(STEPS, COORDINATES)) * sizes).astype(np.float32)
        g[:, :5] = 0.0  # dead units
        theta = rng.normal(size=COORDINATES).astype(np.float32)
        rates = np.full(STEPS, LR) if include_lr is None else include_lr
        before, y = [], []
        u = rule.evaluate({"g": g.astype(float), "theta": np.zeros_like(g, float)})
        for step, rate in zip(u, rates, strict=True):
            before.append(theta)
            after = (theta + np.float32(rate) * step).astype(np.float32)
            y.append((after - theta) / np.float32(1.0 if include_lr is not None else rate))
            theta = after
        y, lr = np.stack(y), np.repeat(rates[:, None], COORDINATES, 1)
        runs[f"{seed:06d}"] = Run(
            name=f"{seed:06d}", problem="user", problem_json="{}", source_kind="user", source_json="{}",
            source_sha256="", seed=seed, init_seed=seed, num_steps=STEPS, scale=1.0, diverged=False,
            outcome="ok",
            x=g[..., None], g=g, y=y, loss=np.ones(STEPS), step=np.arange(1, STEPS + 1),
            param_index=np.zeros(COORDINATES, np.int32), flat_index=np.arange(COORDINATES, dtype=np.int32),
            params_names=("w",), params_shapes=((COORDINATES,),), theta=np.stack(before), lr=lr,
        )  # fmt: skip
    split = {name: (run,) for name, run in zip(("train", "valid", "test"), runs, strict=True)}
    return Trajectories({"g": "g"}, runs, split, {"include_lr": include_lr is not None})


def data_of(trajectories: Trajectories) -> dict:
    return {split: sequences(trajectories, split) for split in ("train", "valid", "test")}


def test_the_optimizer_leaves_only_rounding_and_its_neighbours_leave_more():
    trajectories = recorded(ADAM)
    data = sequences(trajectories, "valid")
    assert data.rounding.shape == data.target.shape and (data.rounding > 0.0).all()
    assert excess(ADAM, data) < 1.5
    for other in (
        ADAM.with_constants({"c1": 0.901}),
        ADAM.with_constants({"c2": 0.99}),
        Rule.named("rmsprop"),
    ):
        assert excess(other, data) > 30.0
    assert excess(Rule.from_text("g / (0 * g)"), data) == np.inf


def test_constants_come_out_as_they_were_written():
    trajectories = recorded(ADAM)
    near = {"c0": -0.9999993, "c1": 0.8999995, "c2": 0.99900003, "c3": 3.1e-9}
    written = as_written(ADAM.with_constants(near), sequences(trajectories, "train"))
    assert written.constants == ADAM.constants


def test_what_is_no_round_number_keeps_its_digits():
    odd = ADAM.with_constants({"c1": 0.87654})
    trajectories = recorded(odd)
    written = as_written(odd, sequences(trajectories, "train"))
    assert written.constants["c1"] == pytest.approx(0.87654, abs=2e-6)


def test_the_front_ends_with_its_exact_rule_and_that_is_the_choice():
    trajectories = recorded(ADAM)
    data = data_of(trajectories)
    scores = {"r2": {"train": 0.99, "valid": 0.99, "test": 0.99}}
    short = dataclasses.replace(Rule.named("sgd"), provenance=scores)
    front = settled([short, dataclasses.replace(ADAM, provenance=scores)], data)
    assert [rule.complexity for rule in front] == [short.complexity, ADAM.complexity]
    assert exact(front) is front[1] and front[1].provenance["exact"] < 1.5
    assert exact(settled([short], data)) is None


def test_what_the_exact_rule_does_not_need_is_cut_even_where_the_search_had_no_time_to():
    constants = {"c0": -10.0, "c1": 0.9}
    truth = Rule.from_text("c0 * ema(g, c1)", constants)
    longer = Rule.from_text("c0 * (ema(g, c1) + c2)", constants | {"c2": 4e-11})
    scores = {"r2": {"train": 1.0, "valid": 1.0, "test": 1.0}}
    (best,) = settled([dataclasses.replace(longer, provenance=scores)], data_of(recorded(truth)))
    assert best.expression == truth.expression and best.constants == constants


@pytest.mark.parametrize(
    "text",
    [
        "-ema_hat(g, 0.9) / (sqrt(ema_hat(square(g), 0.999)) + 1e-8)",
        "-ema_hat(g, 0.9) / ((sqrt(cummax(ema(square(g), 0.99))) + 1e-7) / sqrt(ema(1, 0.99)))",
        pytest.param("-g / sqrt(cumsum(square(g)) + 0.1)", marks=pytest.mark.slow),
        "-sign(0.9 * lag(ema(g, 0.99), 1) + 0.1 * g)",
    ],
)
def test_a_recorded_optimizer_is_found_and_every_rule_of_its_front_is_finite_at_zero(text: str):
    truth = Rule.from_text(text)
    config = DistillConfig(trajectories="t", evaluations=1, max_size=18, threads=1, quiet=True)
    front = search_front(recorded(truth), config, 0.0)
    best = exact(front)
    assert best is not None and not any(map(singular, front))
    g = np.random.default_rng(9).normal(size=(60, 20))
    np.testing.assert_allclose(best.evaluate({"g": g}), truth.evaluate({"g": g}), rtol=1e-4, atol=1e-4)


def test_a_rate_in_the_recording_comes_back_as_a_schedule():
    t = np.arange(STEPS)
    rates = LR * (0.5 + 0.5 * np.cos(np.pi * t / STEPS))
    trajectories = recorded(ADAM, rates)
    assert settled([ADAM], data_of(trajectories))[0].provenance["exact"] < 1.5  # though rates end near 0
    (best,) = rated([ADAM], trajectories)
    g = np.random.default_rng(9).normal(size=(STEPS, 5))
    want = rates[:, None] * ADAM.evaluate({"g": g})
    np.testing.assert_allclose(best.evaluate({"g": g}), want, rtol=1e-4, atol=1e-4 * LR)


SCHEDULES = {
    "constant": lambda k: np.ones_like(k),
    "linear": lambda k: 1.0 - 0.006 * k,
    "exponential": lambda k: 0.97**k,
    "inverse": lambda k: 1.0 / (1.0 + 0.02 * k),
    "root": lambda k: 1.0 / np.sqrt(1.0 + 0.02 * k),
    "cosine": lambda k: 0.55 + 0.45 * np.cos(np.pi * k / 300),
    "steps": lambda k: np.where(k < 30, 1.0, np.where(k < 90, 0.1, 0.02)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_usual_schedules_are_functions_of_t(name: str):
    k = np.arange(120.0)
    tree, constants = schedule(0.3 * SCHEDULES[name](k))
    (values,) = evaluate(compile_program([tree]), {"t": k + 1.0, **constants})
    np.testing.assert_allclose(np.broadcast_to(values, k.shape), SCHEDULES[name](k), rtol=1e-5)


def test_a_rate_of_no_known_form_is_named_and_left_out(caplog: pytest.LogCaptureFixture):
    rates = LR * (1.0 + np.random.default_rng(0).random(STEPS))
    assert rated([ADAM], recorded(ADAM, rates)) == [ADAM] and "no known function of t" in caplog.text
    apart = recorded(ADAM, np.full(STEPS, LR))
    apart.runs["000001"].lr[:] *= 2.0
    assert rated([ADAM], apart) == [ADAM] and "differs between tensors or runs" in caplog.text


def test_a_recording_that_is_mostly_rounding_tells_nothing():
    trajectories = recorded(ADAM, np.full(STEPS, 1e-9))
    assert settled([ADAM], data_of(trajectories)) == [ADAM]
