"""Evolution strategies on losses whose gradients are known, without a framework."""

import numpy as np
import pytest

from interchange.meta.evolution import LAST_SHARE, Persistent, evolution, objective

DRAWS = 2000
SCALES = {"a": 0.5, "b": 2.0}
WEIGHTS = {"a": np.array([0.3, -0.2]), "b": np.array(0.7)}
CURVATURE = np.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 0.5]])
TARGET = np.array([1.0, -1.0, 0.5])


def flat(weights):
    return np.concatenate([np.ravel(weights["a"]), np.ravel(weights["b"])])


def constant(value):
    """Segments whose losses are all ``value(weights)``."""

    def run(halves, steps, keep):
        for half in halves:
            yield None, np.full(steps + 1, value(half.weights))

    return run


def quadratic(weights):
    x = flat(weights) - TARGET
    return 5.0 + 0.5 * x @ CURVATURE @ x


def interval(draws):
    """Mean and standard error of draws [draw, weight]."""
    return np.mean(draws, 0), np.std(draws, 0, ddof=1) / np.sqrt(len(draws))


def test_evolution_is_unbiased_on_a_quadratic():
    draws = [
        flat(evolution(constant(quadratic), WEIGHTS, 4, SCALES, np.random.default_rng(k), 1, 0.1)[0])
        for k in range(DRAWS)
    ]
    mean, error = interval(draws)
    exact = CURVATURE @ (flat(WEIGHTS) - TARGET)
    assert (np.abs(mean - exact) < 3.5 * error).all()
    assert (np.abs(exact) > 5.0 * error).all()  # the gradient is seen, not only noise around 0


def test_more_pairs_are_their_mean_and_lower_the_variance():
    def draw(pairs):
        return [
            flat(evolution(constant(quadratic), WEIGHTS, 1, SCALES, np.random.default_rng(k), pairs, 0.1)[0])
            for k in range(300)
        ]

    one, eight = np.var(draw(1), 0), np.var(draw(8), 0)
    assert np.all(eight < one / 4)
    generator = np.random.default_rng(0)
    alone = [flat(evolution(constant(quadratic), WEIGHTS, 1, SCALES, generator, 1, 0.1)[0]) for _ in range(3)]
    together, _ = evolution(constant(quadratic), WEIGHTS, 1, SCALES, np.random.default_rng(0), 3, 0.1)
    np.testing.assert_allclose(flat(together), np.mean(alone, 0), rtol=1e-12)


def test_halves_of_a_pair_lie_opposite_each_other_at_the_scales_sizes():
    seen = []

    def run(halves, steps, keep):
        seen.extend(halves)
        assert (steps, keep) == (7, False)
        return [(None, np.ones(8)) for _ in halves]

    _, losses = evolution(run, WEIGHTS, 7, {"b": 2.0}, np.random.default_rng(0), 3, 0.1)
    assert len(losses) == 7
    assert [half.pair for half in seen] == [0, 0, 1, 1, 2, 2]
    generator = np.random.default_rng(0)
    for up, down in zip(seen[::2], seen[1::2], strict=True):
        assert up.position is down.position is None
        for name, size in (("a", 1.0), ("b", 2.0)):
            drawn = generator.normal(size=WEIGHTS[name].shape)
            np.testing.assert_allclose(up.weights[name], WEIGHTS[name] + 0.1 * size * drawn, rtol=1e-12)
            np.testing.assert_allclose(up.weights[name] + down.weights[name], 2 * WEIGHTS[name], rtol=1e-12)


def test_the_objective_is_the_mean_of_the_last_losses_and_bounded():
    losses = np.arange(10.0, 30.0)
    assert objective(losses) == losses[-round(LAST_SHARE * 20) :].mean()
    assert objective(np.array([3.0])) == 3.0
    for bad in (np.nan, np.inf, -np.inf, 1e9):
        assert objective(np.array([2.0, 1.0, 1.0, bad])) == 20.0
    assert objective(np.array([np.nan, np.nan])) == 0.0


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_by_their_logarithms_problems_of_any_size_count_the_same(factor):
    def gradient(log, value):
        return flat(
            evolution(constant(value), WEIGHTS, 4, SCALES, np.random.default_rng(0), 2, 0.01, log=log)[0]
        )

    plain = gradient(False, quadratic)
    np.testing.assert_allclose(gradient(False, lambda w: factor * quadratic(w)), factor * plain, rtol=1e-8)
    logs = gradient(True, lambda w: factor * quadratic(w))
    np.testing.assert_allclose(logs, plain / quadratic(WEIGHTS), rtol=0.01)
    np.testing.assert_array_equal(  # no logarithm of a loss that is not positive
        gradient(True, lambda w: -quadratic(w)), gradient(False, lambda w: -quadratic(w))
    )


# Influence balancing (after Vicol et al. 2021): p <- 0.9 p + w, and each loss falls with the w of now
# but rises with p, which all earlier w's have made. Short unrolls see the wrong sign.
DECAY, GAIN, STEPS, PIECE = 0.9, np.array([6.0, 0.5]), 30, 3
START = {"w": np.array([0.2, -0.1])}


def balance(halves, steps, keep):
    for half in halves:
        p, w = (np.zeros(2) if half.position is None else half.position), half.weights["w"]
        losses = [100.0]
        for _ in range(steps):
            p = DECAY * p + w
            losses.append(100.0 + 0.5 * (p + 1.0) @ (p + 1.0) - GAIN @ w)
        yield p, np.array(losses)


def exact_slope():
    """Of the mean loss of the whole epoch, by differences: exact, as it is quadratic."""

    def value(w):
        return next(iter(balance([Half(w)], STEPS, True)))[1][1:].mean()

    class Half:
        position = None

        def __init__(self, w):
            self.weights = {"w": w}

    return np.array([(value(START["w"] + e) - value(START["w"] - e)) / 2.0 for e in np.eye(2)])


def test_persistent_evolution_is_unbiased_where_truncated_evolution_is_not():
    persistent, truncated = [], []
    for draw in range(DRAWS // 2):
        particles = Persistent(balance, {}, 0.3, 1, np.random.default_rng(draw), STEPS)
        persistent.append(sum(particles.gradient(START, PIECE)[0]["w"] for _ in range(0, STEPS, PIECE)))
        generator, p, total = np.random.default_rng(draw), np.zeros(2), 0.0
        for _ in range(0, STEPS, PIECE):
            fresh = Persistent(balance, {}, 0.3, 1, generator, STEPS)
            fresh._positions = [p, p]
            fresh._firsts = [100.0, 100.0]
            total += fresh.gradient(START, PIECE)[0]["w"]
            for _ in range(PIECE):
                p = DECAY * p + START["w"]
        truncated.append(total)
    exact = exact_slope()
    mean, error = interval(persistent)
    assert (np.abs(mean - exact) < 3.5 * error).all()
    biased, error = interval(truncated)
    assert (np.abs(biased - exact) > 20.0 * error).all()
    assert biased[0] < 0.0 < exact[0]
    assert mean[0] > 0.0


def test_persistent_evolution_of_one_piece_is_evolution_of_the_mean_loss():
    got, losses = Persistent(balance, {}, 0.3, 2, np.random.default_rng(5), STEPS).gradient(START, STEPS)

    def whole(halves, steps, keep):
        return [(None, np.full(2, found[1:].mean())) for _, found in balance(halves, STEPS, keep)]

    expected, _ = evolution(whole, START, 1, {}, np.random.default_rng(5), 2, 0.3)
    np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-12)
    assert len(losses) == STEPS and losses[0] == 100.0


def test_halves_go_on_from_where_they_stood_and_sums_of_noise_go_with_them():
    seen = []

    def run(halves, steps, keep):
        seen.append([half.position for half in halves])
        for number, half in enumerate(halves):
            yield (len(seen), number), np.array([50.0, *[half.weights["w"][0] + 50.0] * steps])

    particles = Persistent(run, {}, 0.1, 2, np.random.default_rng(0), 10)
    first, _ = particles.gradient(START, 5)
    second, _ = particles.gradient(START, 5)
    assert seen == [[None] * 4, [(1, 0), (1, 1), (1, 2), (1, 3)]]
    e = np.random.default_rng(0).normal(size=(2, 2, 2))  # [piece, pair, weight]
    np.testing.assert_allclose(first["w"], 0.5 * np.mean(e[0] * e[0, :, :1], 0), rtol=1e-9)
    np.testing.assert_allclose(second["w"], 0.5 * np.mean((e[0] + e[1]) * e[1, :, :1], 0), rtol=1e-9)


def test_a_particle_that_diverged_has_a_bounded_loss_and_relative_ones_are_in_units_of_the_first():
    def diverging(halves, steps, keep):
        for number, _ in enumerate(halves):
            yield None, np.array([2.0, *[np.nan if number == 0 else 1.0] * steps])

    got, _ = Persistent(diverging, {}, 1.0, 1, np.random.default_rng(0), 4).gradient(START, 4)
    e = np.random.default_rng(0).normal(size=2)
    np.testing.assert_allclose(got["w"], e * (20.0 - 1.0) / 2.0, rtol=1e-12)

    def gradient(relative, factor):
        def run(halves, steps, keep):
            return [(p, factor * found) for p, found in balance(halves, steps, keep)]

        particles = Persistent(run, {}, 0.3, 1, np.random.default_rng(0), STEPS, relative)
        return [particles.gradient(START, PIECE)[0]["w"] for _ in range(2)]

    for factor in (1.0, 1e4):
        np.testing.assert_allclose(gradient(True, factor), np.array(gradient(False, 1.0)) / 100.0, rtol=1e-10)
