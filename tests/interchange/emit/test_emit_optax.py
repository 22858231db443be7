"""Rules exported to JAX: values and derivatives against the oracle; what optax expects of an optimizer."""

import functools
import importlib.util
import math

import numpy as np
import pytest

from interchange.emit import TARGETS
from interchange.language.execute import evaluate_with_tangents
from interchange.rule.rule import Rule

jax = pytest.importorskip("jax", reason="JAX is not installed: extra [bench]")
optax = pytest.importorskip("optax", reason="optax is not installed: extra [bench]")
jnp = jax.numpy

ADAM = Rule.from_text(
    "c0 * ema_hat(g, b1) / (sqrt(ema_hat(square(g), b2)) + 1e-8)", {"c0": -1.0, "b1": 0.9, "b2": 0.999}
)
RULES = {
    "rnnprop": Rule.from_text(
        "c0 * tanh(m_tilde / c1) + c2 * ema(g, c3) * cummax(powabs(g, c1)) - lag(c0, 1) * theta * 0.125",
        {"c0": -0.98, "c1": 0.61, "c2": -0.12, "c3": 0.87},
        {"m_tilde": "ema_hat(g, 0.95) / (sqrt(ema_hat(square(g), 0.999)) + 1e-12)"},
        scale=0.1,
    ),
    "adam": ADAM,
    "running": Rule.from_text("sqrt(cumsum(square(g))) - cummax(-abs(g)) + t * lag(g, 3) / 7.0"),
    "number": Rule.from_text("c0 / 0.0 + 1e300 * 0.0", {"c0": 1.0}),
}


@pytest.fixture(params=[np.float64, np.float32])
def dtype(request):
    """JAX computes in float64 only where it is told to."""
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def module(tmp_path):
    """Rule -> its generated file as a module."""

    def load(rule: Rule):
        path = tmp_path / "generated.py"
        path.write_text(TARGETS["optax"].emit(rule))
        spec = importlib.util.spec_from_file_location("generated", path)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return load


@pytest.fixture
def adam(module):
    return module(ADAM)


def nasty_steps(steps: int = 80) -> np.ndarray:
    rng = np.random.default_rng(5)
    values = [0.0, -0.0, 1e-12, -1e-12, 1e6, -1e6, 1.0, -1.0, 0.3]
    g = rng.choice(values, size=(steps, 7))
    g[:, :3] = rng.normal(size=(steps, 3)) * 10.0 ** rng.uniform(-6, 3, size=(steps, 3))
    g[:20, 6] = 0.0
    return g


@pytest.mark.parametrize("name", RULES)
def test_many_steps_equal_the_oracle(name, module, dtype):
    rule, g = RULES[name], nasty_steps().astype(dtype)
    theta = np.linspace(-1, 1, g.size).reshape(g.shape).astype(dtype)
    made = module(rule)
    # Compiled as a whole, XLA fuses products into sums: closer to the truth, not to the oracle in float32.
    update = jax.jit(made.update) if dtype == np.float64 else made.update
    state, got = made.init(jnp.asarray(theta[0])), []
    assert len(state["slots"]) == rule.state_floats
    for row, at in zip(g, theta, strict=True):
        u, state = update(jnp.asarray(row), state, jnp.asarray(at))
        got.append(np.asarray(u))
    assert got[0].dtype == dtype
    assert int(state["t"]) == len(g)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    expected = rule.evaluate({"g": g, "theta": theta}, dtype)
    np.testing.assert_allclose(np.stack(got), expected, rtol=tolerance, atol=tolerance * 1e-3)


@pytest.mark.parametrize("b", [0.9, 0.999, 0.9999999])
def test_one_minus_b_and_its_powers_are_exact_in_float32(b, module):
    made = module(Rule.from_text("ema(g, b)", {"b": b}))
    u, _ = made.update(jnp.ones(1), made.init(jnp.ones(1)))
    assert np.asarray(u)[0] == np.float32(1.0 - b)
    t = np.array([1, 2, 10, 1000])
    got = module(ADAM).one_minus_power(b, jnp.asarray(t))
    np.testing.assert_allclose(got, -np.expm1(t * math.log(b)), rtol=1e-6)


def test_updates_are_differentiable_by_constants(module, double):
    rule = RULES["rnnprop"]
    rng = np.random.default_rng(0)
    g, theta = rng.normal(size=(12, 5)) * np.array([1, 0, 1, 1, 0]), rng.normal(size=(12, 5))
    made, names = module(rule), list(rule.constants)

    def total(constants):
        state = made.init(jnp.zeros(5))
        for row, at in zip(g, theta, strict=True):
            u, state = made.update(jnp.asarray(row), state, jnp.asarray(at), constants)
        return u.sum()

    got = jax.jit(jax.grad(total))({key: jnp.asarray(value) for key, value in rule.constants.items()})
    _, tangents = evaluate_with_tangents(rule.program(), {**rule.constants, "g": g, "theta": theta}, names)
    expected = rule.scale * tangents[:, -1].sum(axis=1)
    np.testing.assert_allclose([float(got[name]) for name in names], expected, rtol=1e-10)


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


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_optimizer_equals_the_rule_with_decoupled_decay(module, double, decay):
    rule, lr = RULES["rnnprop"], [2.0 / (1 + step) for step in range(12)]
    got, _ = descend(
        module(rule).rule_optimizer(lambda count: 2.0 / (1 + count), decay), starts("float64"), 12
    )
    for theta, expected in zip(jax.tree.leaves(got), jax.tree.leaves(STARTS), strict=True):
        thetas = []
        for step in range(12):
            thetas.append(expected)
            past = np.stack(thetas)
            u = rule.evaluate({"g": 2.0 * past, "theta": past})[-1]
            expected = expected * (1.0 - lr[step] * decay) + lr[step] * u
        np.testing.assert_allclose(theta, expected, rtol=1e-12, atol=1e-15)


def test_adam_as_a_rule_is_optax_adam(adam, double):
    got, state = descend(adam.rule_optimizer(0.01), starts("float64"), 100)
    expected, _ = descend(optax.adam(0.01), starts("float64"), 100)
    assert_equal(got, expected, rtol=1e-12, atol=1e-12)  # they have come from 1 to near 0
    assert [int(t) for t in jax.tree.leaves(state["t"])] == [100] * 4


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_state_is_stable_and_the_second_step_compiles_nothing(adam, kind):
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


def test_state_keeps_the_dtype_of_the_parameters_whatever_the_gradients_have(adam, double):
    optimizer, params = adam.rule_optimizer(0.1, 0.01), starts("float32")
    before = signature(optimizer.init(params))
    for kind in ("float64", "bfloat16"):
        updates, state = jax.jit(optimizer.update)(starts(kind), optimizer.init(params), params)
        assert signature(state) == before
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == {kind}


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


def test_coordinates_that_are_not_finite_are_left_alone_and_counted(adam):
    optimizer = adam.rule_optimizer(0.1, weight_decay=0.01)
    params, state = descend(optimizer, starts(), 3)
    update = jax.jit(optimizer.update)
    ones = jax.tree.map(jnp.ones_like, params)
    bad = {**ones, "w": jnp.array([[math.nan, 1.0], [1e30, 1.0]])}
    kept = [slot["w"][:, 0] for slot in state["slots"]]
    updates, state = update(bad, state, params)
    assert (np.asarray(updates["w"]) == 0.0).tolist() == [[True, False], [True, False]]
    assert_equal([slot["w"][:, 0] for slot in state["slots"]], kept)
    assert int(state["skipped"]["w"]) == 2 and [int(t) for t in jax.tree.leaves(state["t"])] == [4] * 4
    with pytest.warns(RuntimeWarning, match=r"2 coordinates of params\['w'\] were left alone"):
        adam.look(state)
    _, state = update(ones, state, params)
    adam.look(state)
    whole = {**ones, "w": jnp.full((2, 2), math.nan)}
    for _ in range(5, 999):
        _, state = update(whole, state, params)
    assert [int(t) for t in jax.tree.leaves(state["t"])] == [999, 999, 999, 5]
    with pytest.warns(RuntimeWarning, match="4 coordinates"):
        adam.look(state)
    _, state = update(whole, state, params)
    with pytest.raises(RuntimeError, match="at ten looks in a row 4 coordinates"):
        adam.look(state)


@pytest.mark.parametrize(("kind", "g"), [("float16", 6e4), ("bfloat16", 3e38), ("float32", 3e38)])
def test_no_parameter_moves_to_infinity(kind, g, module):
    optimizer = module(Rule.from_text("-g")).rule_optimizer(1.0)
    params, largest = jnp.array([-1e4 if kind == "float16" else -3e38, 1.0], kind), jnp.array([g, 1.0], kind)
    updates, state = jax.jit(optimizer.update)(largest, optimizer.init(params), params)
    assert optax.apply_updates(params, updates).tolist() == [float(params[0]), 0.0]
    assert int(state["skipped"]) == 1
    updates, _ = optimizer.update(largest, optimizer.init(params))  # who knows of what
    assert (updates == -largest).all()


@pytest.mark.parametrize(("name", "spike"), [("lion", math.inf), ("adam", math.inf), ("adam", 3e38)])
def test_after_a_spike_a_coordinate_ends_where_its_neighbour_does(name, spike, module):
    optimizer, params = module(Rule.named(name)).rule_optimizer(0.01), jnp.ones(2)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(300):
        g = jnp.where(jnp.array([step == 5, False]), spike, 2.0 * params)
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.abs(params).max() < 0.05 and int(state["t"]) == 300


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
    state = repeated.init(params)
    for _ in range(2):
        updates, state = repeated.update(jax.tree.map(lambda p: 2 * p, params), state, params)
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
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(descend(optimizer, params, 5)[0]))

    slope = (loss(0.8, 1e-6) - loss(0.8, -1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.8), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "start", "target"),
    [
        (lambda x: jnp.sum((x - jnp.arange(2.0)) ** 2), [-1.0, 10.0], [0.0, 1.0]),
        (lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, [-1.0, 1.5], [1.0, 1.0]),
    ],
    ids=["quadratic", "rosenbrock"],
)
def test_it_converges_where_optax_tests_its_own(adam, loss, start, target):
    optimizer = adam.rule_optimizer(0.03)

    @functools.partial(jax.jit, static_argnums=1)
    def descent(params, steps):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    np.testing.assert_allclose(descent(jnp.array(start), 5000), target, atol=1e-2)


def test_bad_settings_are_refused_with_what_was_expected(adam, module):
    for settings in ({"learning_rate": -1.0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="learning_rate >= 0"):
            adam.rule_optimizer(**settings)
    with pytest.raises(ValueError, match=r"known: .*b1"):
        adam.rule_optimizer(constants={"beta": 0.5})
    with pytest.raises(ValueError, match="expected 3 constants"):
        adam.rule_optimizer(constants=np.zeros(2))
    ones = jnp.ones(2)
    for optimizer in (adam.rule_optimizer(weight_decay=0.1), module(RULES["rnnprop"]).rule_optimizer()):
        with pytest.raises(ValueError, match="expected params"):
            optimizer.update(ones, optimizer.init(ones))
    optimizer = adam.rule_optimizer()
    with pytest.raises(TypeError, match="real floating"):
        optimizer.update(jnp.ones(2, jnp.complex64), optimizer.init(ones))
