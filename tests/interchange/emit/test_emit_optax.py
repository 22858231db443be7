"""Rules exported to JAX: exact numbers, and what optax expects of an optimizer."""

import math

import numpy as np
import pytest

from interchange.rule.rule import Rule
from tests.parity.rule_conformance import EVERYTHING
from tests.parity.rule_runners import load

jax = pytest.importorskip("jax", reason="JAX is not installed: extra [bench]")
optax = pytest.importorskip("optax", reason="optax is not installed: extra [bench]")
jnp = jax.numpy

ADAM = Rule.from_text(
    "c0 * ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + 1e-8)", {"c0": -1.0, "b1": 0.9, "b2": 0.999}
)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def adam():
    return load(ADAM, "optax")


def test_a_number_that_is_not_finite_is_one_in_the_file():
    rule, ones = Rule.from_text("c0 / 0.0 + 1e300 * 0.0", {"c0": 1.0}), np.ones((1, 2), np.float32)
    made = load(rule, "optax")
    u, _ = made.update(jnp.ones(2), made.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(u, rule.evaluate({"g": ones}, np.float32)[0])


@pytest.mark.parametrize("b", [0.9, 0.999, 0.9999999])
def test_one_minus_b_and_its_powers_are_exact_in_float32(b, adam):
    made = load(Rule.from_text("ema(g, b)", {"b": b}), "optax")
    u, _ = made.update(jnp.ones(1), made.init(jnp.ones(1)))
    assert np.asarray(u)[0] == np.float32(1.0 - b)
    t = np.array([1, 2, 10, 1000])
    got = adam.one_minus_power(b, jnp.asarray(t))
    np.testing.assert_allclose(got, -np.expm1(t * math.log(b)), rtol=1e-6)


STARTS = {"w": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": (np.array(0.25), np.zeros(0), np.array([-1.0]))}


def starts(dtype: object = jnp.float32):
    return jax.tree.map(lambda start: jnp.asarray(start, dtype), STARTS)


def descend(optimizer, params, steps: int = 1):
    """Steps on the sum of squares: parameters and state."""

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def signature(tree) -> list:
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def assert_equal(some, others, **tolerances):
    assert jax.tree.structure(some) == jax.tree.structure(others)
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 0, **tolerances})


def test_a_schedule_and_decoupled_decay_act_on_the_whole_rule(double):
    rule, lr = EVERYTHING, [2.0 / (1 + step) for step in range(12)]
    optimizer = load(rule, "optax").rule_optimizer(lambda count: 2.0 / (1 + count), 0.01)
    got, _ = descend(optimizer, starts("float64"), 12)
    for theta, expected in zip(jax.tree.leaves(got), jax.tree.leaves(STARTS), strict=True):
        thetas = []
        for step in range(12):
            thetas.append(expected)
            past = np.stack(thetas)
            u = rule.evaluate({"g": 2.0 * past, "theta": past})[-1]
            expected = expected * (1.0 - lr[step] * 0.01) + lr[step] * u
        np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-15)


def test_adam_as_a_rule_is_optax_adam(adam, double):
    got, state = descend(adam.rule_optimizer(0.01), starts("float64"), 100)
    expected, _ = descend(optax.adam(0.01), starts("float64"), 100)
    assert_equal(got, expected, rtol=1e-12, atol=1e-12)  # they have come from 1 to near 0
    assert [int(t) for t in jax.tree.leaves(state["t"])] == [100] * 4


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_state_is_stable_and_the_second_step_compiles_nothing(adam, kind, double):
    optimizer, params = adam.rule_optimizer(optax.constant_schedule(0.1), 0.01), starts(kind)
    state, step = optimizer.init(params), jax.jit(optimizer.update, donate_argnums=1)
    before = signature(state)
    for _ in range(3):
        updates, state = step(jax.tree.map(jnp.ones_like, params), state, params)
        assert signature(state) == before
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(kind)}
        params = optax.apply_updates(params, updates)
    assert step._cache_size() == 1
    assert {slot.dtype for slot in jax.tree.leaves(state["slots"])} == {jnp.dtype("float32")}
    assert jax.tree.structure(state["slots"][0]) == jax.tree.structure(params)
    for given in ("float64", "bfloat16"):  # whatever dtype the gradients have
        updates, state = jax.jit(optimizer.update)(starts(given), optimizer.init(params), params)
        assert signature(state) == before
        wider = {str(jnp.promote_types(given, kind))}
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == wider


def test_updates_of_bfloat16_gradients_keep_the_digits_of_float32_parameters(adam):
    optimizer, params, narrow = adam.rule_optimizer(0.01), jnp.ones(3), jnp.ones(3, jnp.bfloat16)
    for given in (params, None):  # without params nothing is narrower than the state
        updates, _ = optimizer.update(narrow, optimizer.init(params), given)
        np.testing.assert_allclose(updates, -0.01, rtol=1e-6)


def test_numbers_of_python_are_leaves(adam):
    optimizer, params = adam.rule_optimizer(0.01), {"w": 1.0, "b": np.float32(2.0)}
    updates, _ = optimizer.update({"w": 0.5, "b": 0.25}, optimizer.init(params), params)
    expected, _ = optimizer.update(
        jax.tree.map(jnp.asarray, {"w": 0.5, "b": 0.25}), optimizer.init(params), params
    )
    assert_equal(updates, expected)
    with pytest.raises(TypeError, match="expected real floating-point params, got int"):
        optimizer.update({"w": 0.5}, optimizer.init({"w": 1}), {"w": 1})


def test_it_runs_under_cond_and_scan(adam):
    optimizer, params = adam.rule_optimizer(0.1), starts()
    expected, _ = descend(optimizer, params, 5)

    def step(carry, take):
        def update(params, state):
            updates, state = optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.cond(take, update, lambda *same: same, *carry), None

    (got, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.array([True, False] * 5))
    assert_equal(got, expected, rtol=1e-5, atol=1e-6)
    assert int(state["count"]) == 5


def test_without_parameters_nobody_knows_what_moves_to_infinity():
    optimizer, largest = load(Rule.from_text("-g"), "optax").rule_optimizer(1.0), jnp.array([3e38, 1.0])
    params = jnp.array([-3e38, 1.0])
    updates, state = jax.jit(optimizer.update)(largest, optimizer.init(params), params)
    assert updates.tolist() == [0.0, -1.0] and int(state["skipped"]) == 1
    updates, _ = optimizer.update(largest, optimizer.init(params))
    assert (updates == -largest).all()


def test_none_and_masked_leaves_are_left_alone(adam):
    optimizer, params = adam.rule_optimizer(0.1), {**starts(), "none": None}
    got, _ = descend(optimizer, params, 2)
    plain, _ = descend(optimizer, starts(), 2)
    assert got["none"] is None
    assert_equal({key: got[key] for key in plain}, plain)
    masked = optax.masked(optimizer, {"w": False, "b": True})
    state = masked.init(starts())
    updates, state = jax.jit(masked.update)(starts(), state, starts())
    np.testing.assert_array_equal(updates["w"], starts()["w"])
    assert len(jax.tree.leaves(state.inner_state["t"])) == 3
    state = optimizer.init(starts())
    missing = {"w": None, "b": starts()["b"]}
    updates, state = optimizer.update(missing, state, starts())
    assert updates["w"] is None
    assert [int(t) for t in jax.tree.leaves(state["t"])] == [1, 1, 1, 0]


def test_the_wrappers_of_optax_work(adam):
    params = starts()
    plain, _ = descend(adam.rule_optimizer(0.1), params, 4)
    chained = optax.chain(optax.clip_by_global_norm(1e6), adam.rule_optimizer(0.2), optax.scale(0.5))
    assert_equal(descend(chained, params, 4)[0], plain, rtol=1e-6)
    repeated = optax.MultiSteps(adam.rule_optimizer(0.1), every_k_schedule=2)
    state, update = repeated.init(params), jax.jit(repeated.update)
    for _ in range(2):
        updates, state = update(jax.tree.map(lambda p: 2 * p, params), state, params)
    assert_equal(
        optax.apply_updates(params, updates), descend(adam.rule_optimizer(0.1), params)[0], rtol=1e-6
    )
    extra = adam.rule_optimizer(0.1).update(params, chained.init(params)[1], params, value=1.0, unknown=2)
    assert jax.tree.structure(extra[0]) == jax.tree.structure(params)


def test_constants_can_be_injected_changed_and_differentiated(adam, double):
    params, values = starts("float64"), np.array(list(ADAM.constants.values()))
    injected = optax.inject_hyperparams(adam.rule_optimizer)(learning_rate=0.1, constants=values)
    assert_equal(descend(injected, params, 3)[0], descend(adam.rule_optimizer(0.1), params, 3)[0], rtol=1e-12)
    state = injected.init(params)
    state.hyperparams["constants"] = state.hyperparams["constants"].at[0].set(-2.0)
    updates, _ = jax.jit(injected.update)(params, state, params)
    expected, _ = adam.rule_optimizer(0.2).update(params, adam.rule_optimizer().init(params), params)
    assert_equal(updates, expected, rtol=1e-12)

    def loss(c, shift=0.0):
        optimizer = adam.rule_optimizer(0.1, constants={"b1": c + shift})
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(descend(optimizer, params, 2)[0]))

    slope = (loss(0.8, 1e-6) - loss(0.8, -1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.8), slope, rtol=1e-6)


def test_bad_settings_are_refused_with_what_was_expected(adam):
    for settings in ({"learning_rate": -1.0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="learning_rate >= 0"):
            adam.rule_optimizer(**settings)
    with pytest.raises(ValueError, match=r"known: .*b1"):
        adam.rule_optimizer(constants={"beta": 0.5})
    with pytest.raises(ValueError, match="expected 3 constants"):
        adam.rule_optimizer(constants=np.zeros(2))
    ones = jnp.ones(2)
    for optimizer in (adam.rule_optimizer(weight_decay=0.1), load(EVERYTHING, "optax").rule_optimizer()):
        with pytest.raises(ValueError, match="expected params"):
            optimizer.update(ones, optimizer.init(ones))
    optimizer = adam.rule_optimizer()
    with pytest.raises(TypeError, match="real floating"):
        optimizer.update(jnp.ones(2, jnp.complex64), optimizer.init(ones))
