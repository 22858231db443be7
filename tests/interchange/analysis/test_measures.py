"""Curves, terms, squashing, attribution, complexity and courses, on optimizers whose answers are known."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import L2OError
from interchange.analysis.measures.attribution import attribution, hand_made, told
from interchange.analysis.measures.complexity import complexity, points
from interchange.analysis.measures.courses import courses
from interchange.analysis.measures.mapping import curves
from interchange.analysis.measures.squashing import squashing
from interchange.analysis.measures.terms import summands, terms
from interchange.analysis.recorded import Recorded, noise, recorded
from interchange.analysis.subjects import Subject, load
from interchange.distill.config import DistillConfig
from interchange.files.trajectories import Trajectories, save_trajectories
from interchange.language.expression import to_text
from interchange.language.parse import parse
from interchange.rule.rule import Rule
from interchange.rule.source import Source, named_spec
from interchange.sanity.rules import recorded as recording_of

NOISE = noise()


def subject(text: str, **constants: float) -> Subject:
    return Subject(text, Rule.from_text(text, constants))


def with_updates(rule: Rule, data: Recorded) -> Recorded:
    one = Subject(rule.name, rule)
    return dataclasses.replace(data, updates=one.outputs(one.features(data.given, data.views), data.views))


def test_a_mapping_curve_is_the_update_with_all_else_as_it_was():
    found = curves(subject("-tanh(2 * g_tilde) + 0.3 * lag(g_tilde, 1)"), NOISE)
    curve = found["g_tilde"]
    for line in (curve.middle, curve.fixed):
        np.testing.assert_allclose(line - line[20], -np.tanh(2 * curve.x), atol=1e-12)
    assert (curve.low <= curve.middle).all() and (curve.middle <= curve.high).all()
    assert curve.high[20] > curve.low[20]  # the step before differs between histories
    assert list(found) == ["g_tilde", "g"] and found["g"].fixed is None


def test_a_curve_against_the_gradient_computes_every_input_anew():
    found = curves(subject("-m_tilde"), NOISE, width=0.02)["g"]
    np.testing.assert_allclose(found.x[[0, -1]], [-0.02, 0.02])
    assert np.all(np.diff(found.middle) < 0.0)


def test_a_curve_of_a_teacher_runs_from_zero_state():
    teacher = load("rp_s")
    found = curves(teacher, NOISE)["g_tilde"]
    still = {name: np.full((100, 1), np.median(x)) for name, x in teacher.features(NOISE.given).items()}
    still["g_tilde"][-1] = found.x[7]
    assert found.fixed.shape == (41,) and np.ptp(found.fixed) > 0.0
    drawn = teacher.outputs(still)[-1, 0]
    assert found.fixed[7] == pytest.approx(drawn, rel=0.3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a + b - c", ["a", "b", "-c"]),
        ("-(a - b) / c", ["-a / c", "b / c"]),
        ("2.0 * (a + tanh(b + c))", ["2.0 * a", "2.0 * tanh(b + c)"]),
        ("(a + b) * (c + d)", ["(a + b) * (c + d)"]),
    ],
)
def test_terms_of_an_expression(text: str, wanted: list[str]):
    assert [to_text(node) for node in summands(parse(text))] == wanted


def test_shares_of_the_power_add_up_to_one_in_every_phase():
    found = terms(load("rnnprop_17"), NOISE)
    assert len(found) == 4
    assert sum(term.share for term in found) == pytest.approx(1.0)
    for phase in ("early", "middle", "late"):
        assert sum(term.phases[phase] for term in found) == pytest.approx(1.0)
    assert terms(load("rp_s"), NOISE) == []


def test_a_template_has_its_own_gamma_and_another_rule_the_nearest():
    assert squashing(load("psi:gamma=0.4"), NOISE).gamma == 0.4
    found = squashing(subject("-0.5 * 0.7 * tanh(g_tilde / 0.7)"), NOISE)
    assert found.gamma == pytest.approx(0.7, rel=1e-3) and found.r2 == pytest.approx(1.0)
    assert squashing(subject("-g_tilde"), NOISE).gamma == np.inf


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_updates_of_a_hand_made_optimizer_are_attributed_to_it(name: str):
    data = [with_updates(Rule.named(name), noise(seed)) for seed in (1, 0)]
    data = [dataclasses.replace(part, views=None) for part in data]  # those of coordinates are enough here
    best = attribution(*data)[0]
    assert best.name == name and best.r2 > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, rule in hand_made().items() if " " not in name and not rule.sees_tensors]
)
def test_every_hand_made_optimizer_of_coordinates_is_attributed_to_itself(name: str):
    data = [with_updates(Rule.named(name), noise(seed)) for seed in (1, 0)]
    best = attribution(*data)[0]
    assert best.name == name and best.r2 > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_what_sees_tensors_is_attributed_to_itself(name: str):
    data = [with_updates(Rule.named(name), noise(seed)) for seed in (1, 0)]
    best = attribution(*data)[0]
    assert best.name == name and best.r2 > 0.999


def test_momentum_over_normalised_gradients_is_named_in_words():
    rule = Rule.from_text("-ema(g / (sqrt(ema_hat(square(g), 0.9)) + 1e-8), 0.8)")
    data = [dataclasses.replace(with_updates(rule, noise(seed)), views=None) for seed in (1, 0)]
    found = attribution(*data)
    assert found[0].name == "momentum over normalised gradients"
    assert told("it", found) == "it is 100 % momentum over normalised gradients"


@pytest.mark.slow
@pytest.mark.parametrize(("text", "nodes"), [("-0.01 * g", 3), ("-0.3 * ema(g, 0.6)", 5)])
def test_mapping_complexity_of_a_known_rule_is_its_nodes(text: str, nodes: int, tmp_path: Path):
    rule = Rule.from_text(text)
    assert rule.complexity == nodes
    data = recording_of(rule, 0)
    file = tmp_path / "trajectories.h5"
    save_trajectories(file, data)
    config = DistillConfig(trajectories=str(file), evaluations=20_000, threads=1, quiet=True)
    found = complexity(data, config, 2)
    assert [run.seed for run in found] == [0, 1]
    assert all(run.nodes == nodes and run.r2 > 0.9999 for run in found)
    along = points(found[0].front, recorded(data))
    assert along[-1].r2 > 0.9999 and along[-1].field > 0.0


def recording(name: str, start: float, seed: int = 0) -> Trajectories:
    data = recording_of(Rule.named(name), seed)
    runs = {
        key: dataclasses.replace(
            run, loss=start * np.ones(len(run.loss)), source_json=f'{{"rule": "{name}"}}'
        )
        for key, run in data.runs.items()
    }
    return dataclasses.replace(data, runs=runs)


def test_courses_begin_at_the_same_start_and_move_by_the_updates():
    sgd, adam = recording("sgd", 2.0), recording("adam", 3.0)
    found = courses({"sgd": sgd, "adam": adam})
    assert found.losses["sgd"][0] == 2.0 and found.losses["adam"][0] == 3.0
    (title, each), *_ = found.moved.items()
    assert title.startswith("g[") and set(each) == {"sgd", "adam"}
    column = int(title[2:-1])
    *_, run = sgd.runs.values()
    np.testing.assert_allclose(each["sgd"][1:], np.cumsum(run.y[:-1, column]))
    assert each["sgd"][0] == 0.0


def test_a_learning_rate_of_the_recorded_spec_counts_in_courses():
    spec = named_spec("rule:sgd,lr=0.25")
    row = Source(spec, Rule.named("sgd")).row()
    assert row["lr"] == 0.25 and "lr" not in Source(named_spec("rule:sgd"), Rule.named("sgd")).row()
    plain, slow = recording("sgd", 2.0), recording("sgd", 2.0)
    runs = {k: dataclasses.replace(run, source_json=json.dumps(row)) for k, run in slow.runs.items()}
    found = courses({"plain": plain, "slow": dataclasses.replace(slow, runs=runs)})
    for each in found.moved.values():
        np.testing.assert_allclose(each["slow"], 0.25 * each["plain"])


def test_recordings_from_other_starts_are_refused():
    with pytest.raises(L2OError, match="same --problem, --runs and --seed"):
        courses({"sgd": recording("sgd", 2.0), "adam": recording("adam", 3.0, seed=1)})
