"""Temporal perception fields against their closed forms, and an LSTM's derivatives against differences."""

import math

import numpy as np
import pytest

from common.reference import teacher_step, zero_cells
from common.rng import rng
from common.tables.teachers import TEACHERS, initial_weights
from interchange.analysis.measures.perception import perception
from interchange.analysis.measures.tangents import pulse_responses
from interchange.analysis.recorded import noise
from interchange.analysis.subjects import Subject, load
from interchange.rule.rule import Rule

NOISE = noise()


def of_rule(text: str, **constants: float) -> Subject:
    return Subject(text, Rule.from_text(text, constants))


@pytest.mark.parametrize("beta", [0.5, 0.8, 0.9])
def test_fields_of_momentum_are_one_over_one_less_its_decay(beta: float):
    for subject in (
        Subject("momentum", Rule.named("momentum", beta=beta)),
        of_rule("-ema_hat(g_tilde, b)", b=beta),
    ):
        found = perception(subject, NOISE)
        assert found.total == pytest.approx(1.0 / (1.0 - beta), rel=1e-3)
        assert found.beyond < 1e-4 and list(found.fields.values()) == [found.total]


def test_the_present_alone_is_one_and_a_lag_is_its_steps():
    assert perception(load("sgd"), NOISE).total == 1.0
    assert perception(of_rule("-lag(g, 7)"), NOISE).total == pytest.approx(8.0)
    assert perception(of_rule("-(g + lag(g, 2))"), NOISE).total == pytest.approx(2.0)


def test_inputs_count_in_total_by_what_they_move():
    found = perception(of_rule("-(m_tilde + 3 * lag(g_tilde, 4))"), NOISE)
    spread = {name: values.sum() for name, values in found.sensitivity.items()}
    weight = spread["g_tilde"] / sum(spread.values())
    assert found.fields == {"m_tilde": 1.0, "g_tilde": pytest.approx(5.0)}
    assert found.total == pytest.approx(1.0 + 4.0 * weight) and 0.7 < weight < 1.0


def test_what_lies_beyond_the_lags_is_reported():
    found = perception(of_rule("-ema(g, b)", b=0.99), NOISE)
    assert found.beyond == pytest.approx((0.99**200 - 0.99**300) / (1 - 0.99**300), rel=1e-6)


def test_a_sign_has_no_field():
    assert math.isnan(perception(load("lion"), NOISE).total)


def test_what_sees_tensors_has_a_field_where_they_are_whole():
    assert perception(load("muon"), NOISE).total == pytest.approx(1.0 / (1.0 - 0.95), rel=0.3)


@pytest.mark.parametrize("name", ["rp_s", "dm"])
def test_responses_of_a_teacher_are_finite_differences(name: str):
    row = TEACHERS[name]
    weights = initial_weights(row, 0)
    x = rng(0, "responses").normal(size=(12, 3, len(row.inputs)))

    def outputs(given: np.ndarray) -> np.ndarray:
        cells, found = zero_cells(row, 3), []
        for now in given:
            out, cells = teacher_step(row, weights, now, cells)
            found.append(out)
        return np.stack(found)

    found = pulse_responses(row, weights, x, [3, 5], 6)
    for k in range(len(row.inputs)):
        for place, start in enumerate((3, 5)):
            change = np.zeros_like(x)
            change[start, :, k] = 1e-5
            wanted = (outputs(x + change) - outputs(x - change))[start : start + 6] / 2e-5
            np.testing.assert_allclose(found[k, place], wanted, rtol=1e-5, atol=1e-9)
