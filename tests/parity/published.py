"""Published optimizers written down in NumPy as their papers have them, one step each.

``step(state, g, theta, t)`` gives the update u of theta += lr u. ``g`` and ``theta`` are float64, [rows,
columns] of a matrix or [n] of a vector; ``state`` is a dict that begins empty.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Step = Callable[[dict, Array, Array, int], Array]


def averaged(state: dict, key: str, x: Array, decay: float) -> Array:
    state[key] = decay * state.get(key, 0.0) + (1.0 - decay) * x
    return state[key]


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Step:
    """m_hat / (sqrt(v_hat) + eps), without the minus."""

    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        m, v = averaged(state, "m", g, beta1), averaged(state, "v", g * g, beta2)
        return m / (1.0 - beta1**t) / (np.sqrt(v / (1.0 - beta2**t)) + eps)

    return step


def newton_schulz(m: Array) -> Array:
    x = m / max(np.linalg.norm(m), 1e-7)
    if m.shape[0] > m.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def with_adamw(matrix: Step) -> Step:
    vector = adam(0.9, 0.95)

    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        return -vector(state, g, theta, t) if g.ndim == 1 else matrix(state, g, theta, t)

    return step


def muon(state: dict, g: Array, theta: Array, t: int) -> Array:
    state["b"] = 0.95 * state.get("b", 0.0) + g
    return -0.2 * np.sqrt(max(g.shape)) * newton_schulz(g + 0.95 * state["b"])


def normuon(state: dict, g: Array, theta: Array, t: int) -> Array:
    o = newton_schulz(averaged(state, "m", g, 0.95))
    v = averaged(state, "v", np.mean(o * o, axis=1), 0.95)
    o = o / (np.sqrt(v)[:, None] + 1e-10)
    return -0.2 * np.sqrt(o.size) / np.linalg.norm(o) * o


def adamuon(state: dict, g: Array, theta: Array, t: int) -> Array:
    state["m"] = 0.95 * state.get("m", 0.0) + g
    o = newton_schulz(np.sign(state["m"]))
    o = o / (np.sqrt(averaged(state, "v", o * o, 0.95)) + 1e-8)
    return -0.2 * np.sqrt(o.size) / np.linalg.norm(o) * o


def lamb(weight_decay: float) -> Step:
    direction = adam(0.9, 0.999, 1e-6)

    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        r = direction(state, g, theta, t) + weight_decay * theta
        return -np.linalg.norm(theta) / np.linalg.norm(r) * r

    return step


def lars(weight_decay: float) -> Step:
    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        size = np.linalg.norm(theta)
        rate = 0.001 * size / (np.linalg.norm(g) + weight_decay * size)
        state["v"] = 0.9 * state.get("v", 0.0) + rate * (g + weight_decay * theta)
        return -state["v"]

    return step


def adafactor(rho: float) -> Step:
    """Algorithms 4 and 5, alpha_t U over the rate ``rho``."""

    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        decay, squares = 1.0 - t**-0.8, g * g + 1e-30
        if g.ndim == 2:
            r = averaged(state, "r", squares.sum(1), decay)
            c = averaged(state, "c", squares.sum(0), decay)
            v = np.outer(r, c) / r.sum()
        else:
            v = averaged(state, "v", squares, decay)
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u * u)))
        alpha = max(1e-3, np.sqrt(np.mean(theta * theta))) * min(rho, 1.0 / np.sqrt(t))
        return -alpha * u / rho

    return step


def sm3(state: dict, g: Array, theta: Array, t: int) -> Array:
    squares = g * g
    cover = [squares] if g.ndim == 1 else [squares.max(1, keepdims=True), squares.max(0, keepdims=True)]
    state["mu"] = [mu + most for mu, most in zip(state.get("mu", [0.0, 0.0]), cover, strict=False)]
    nu = state["mu"][0] if g.ndim == 1 else np.minimum(*state["mu"])
    return -np.divide(g, np.sqrt(nu), out=np.zeros_like(g), where=nu > 0.0)


def grams(state: dict, g: Array, theta: Array, t: int) -> Array:
    return -np.sign(g) * np.abs(adam()(state, g, theta, t))


def mars(state: dict, g: Array, theta: Array, t: int) -> Array:
    c = g + 0.025 * 0.95 / (1.0 - 0.95) * (g - state.get("g", g))
    state["g"] = g
    if np.linalg.norm(c) > 1.0:
        c = c / np.linalg.norm(c)
    return -adam(0.95, 0.99)(state, c, theta, t)


def adopt(state: dict, g: Array, theta: Array, t: int) -> Array:
    """The paper counts from 0, where it only sets v."""
    if t == 1:
        state["v"], state["m"] = g * g, np.zeros_like(g)
        return np.zeros_like(g)
    most = (t - 1) ** 0.25
    x = np.clip(g / np.maximum(np.sqrt(state["v"]), 1e-6), -most, most)
    averaged(state, "v", g * g, 0.9999)
    return -averaged(state, "m", x, 0.9)


def ademamix(warmup: int) -> Step:
    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        alpha, beta3 = 5.0, 0.9999
        if warmup:
            part = t / warmup
            low, high = np.log(0.9), np.log(0.9999)
            alpha = min(part * alpha, alpha)
            beta3 = min(np.exp(low * high / ((1.0 - part) * high + part * low)), beta3)
        m1 = averaged(state, "m1", g, 0.9) / (1.0 - 0.9**t)
        m2 = averaged(state, "m2", g, beta3)
        v = averaged(state, "v", g * g, 0.999) / (1.0 - 0.999**t)
        return -(m1 + alpha * m2) / (np.sqrt(v) + 1e-8)

    return step


def cautious(inner: Step) -> Step:
    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        u = -inner(state, g, theta, t)
        phi = u * g > 0.0
        return -u * phi * (phi.size / (phi.sum() + 1))

    return step


def schedule_free(inner: Step, lr: float) -> Step:
    """Sequences y, z, x from 0, with 1/t for the share of the newest z."""

    def step(state: dict, g: Array, theta: Array, t: int) -> Array:
        before = 0.1 * state.get("z", 0.0) + 0.9 * state.get("x", 0.0)
        state["z"] = state.get("z", 0.0) + lr * inner(state, g, theta, t)
        state["x"] = (1.0 - 1.0 / t) * state.get("x", 0.0) + state["z"] / t
        return (0.1 * state["z"] + 0.9 * state["x"] - before) / lr

    return step


def minus(inner: Step) -> Step:
    return lambda *given: -inner(*given)


def second_moment(state: dict, g: Array, theta: Array, t: int) -> Array:
    return -g / (np.sqrt(averaged(state, "v", g * g, 0.999) / (1.0 - 0.999**t)) + 1e-8)
