"""Coordinates whose step is not finite are left alone, on every path of a step of either framework."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from common.tables.teachers import TEACHERS
from interchange.files.weights import Teacher
from interchange.rule.rule import Rule
from tests.conftest import side
from tests.helpers.samples import enlarged, gradients, start

AVERAGE = Rule.from_text("-c0 * ema_hat(g, b) - 0.1 * tanh(lag(g, 1)) / t", {"c0": 0.5, "b": 0.8})
SGD = Rule.named("sgd")
NAN = np.nan
PATHS = {
    "torch": ("compiled", "plain", "one by one", "capturable", "differentiable", "graph"),
    "tf": ("compiled", "plain", "fused", "graph", "fused graph", "xla"),
}
ROUTES = [(name, path) for name, paths in PATHS.items() for path in paths]
routes_that_tell = pytest.mark.parametrize(
    "route", [route for route in ROUTES if route != ("tf", "xla")], ids=" ".join, indirect=True
)
# Steps outside graphs are looked at alike, whichever way they went.
routes_that_look = pytest.mark.parametrize(
    "route",
    [("torch", "compiled"), ("torch", "graph"), ("tf", "compiled"), ("tf", "graph")],
    ids=" ".join,
    indirect=True,
)
SHAPES = ((4, 3), (5,), (), (0, 3))
# torch.compile takes its time, and is in the other tests of this file; "fused" is run eagerly too.
compiling_is_slow = pytest.mark.slow_with(route=(("torch", "graph"),))
pytestmark = pytest.mark.slow_with(route=(("tf", "fused graph"),))
# What is not finite -> a rule, a gradient and a learning rate of a coordinate in float32.
CAUSES = {
    "gradient": ("-sign(lag(ema(g, 0.9), 1) + g)", np.inf, 1.0),
    "update": ("-g / greater(1.5, g)", 2.0, 1.0),
    "state": ("-sign(ema(square(g), 0.9))", 1e30, 1.0),
    "moved parameter": ("-g", 3e38, 10.0),
}


@dataclasses.dataclass(frozen=True)
class Route:
    """A framework, a path of its steps, and an optimizer's settings for it."""

    impl: ModuleType
    path: str
    settings: dict[str, Any]

    def made(
        self, params: Any, given: Rule | Teacher = AVERAGE, lr: float = 0.1, **options: Any
    ) -> tuple[Any, Callable[..., None]]:
        """An optimizer and its step, by gradients."""
        optimizer = self.impl.optimizer(params, given, lr, **self.settings, **options)
        return optimizer, self.impl.stepper(optimizer, params, self.path)


def route_of(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> Route:
    impl = side(name)
    return Route(impl, path, impl.take_path(path, monkeypatch))


@pytest.fixture(params=ROUTES, ids=" ".join)
def route(request, monkeypatch) -> Route:
    return route_of(*request.param, monkeypatch)


@pytest.fixture
def looks_often(route, monkeypatch) -> None:
    """At every tenth step, not every hundredth."""
    monkeypatch.setattr(route.impl.module("optimizers.guard"), "_LOOK_EVERY", 10)


def values(impl: ModuleType, optimizer: Any, p: Any) -> list[np.ndarray]:
    """The parameter and its arrays of state, [rows, coordinates]."""
    n = int(np.prod(p.shape))
    arrays = [impl.value(p), *impl.state(optimizer, p)]
    return [a.reshape(a.size // n if n else 1, n) for a in arrays]


@compiling_is_slow
def test_a_coordinate_is_left_alone_and_all_others_go_on(route):
    """Value, weight decay and state of the coordinate stay for that step; nothing else is different."""
    impl, bad = route.impl, {1: NAN, 3: np.inf, 4: -np.inf}
    params, others = impl.parameters(start(SHAPES)), impl.parameters(start(SHAPES))
    (optimizer, step), (other, ahead) = (route.made(p, weight_decay=0.1) for p in (params, others))
    for number, row in enumerate(gradients(6, SHAPES)):
        ahead(*row)
        if number in bad:
            row[0].flat[2] = bad[number]
        before = values(impl, optimizer, params[0]) if number in bad else []
        step(*row)
        assert impl.left_alone(optimizer, params) == [number in bad, 0, 0, 0]
        for old, new in zip(before, values(impl, optimizer, params[0]) if before else [], strict=True):
            np.testing.assert_array_equal(old[:, 2], new[:, 2])
    assert impl.counts(optimizer, params) == impl.counts(other, others) == [6] * 4
    for k, (p, q) in enumerate(zip(params, others, strict=True)):
        for x, y in zip(values(impl, optimizer, p), values(impl, other, q), strict=True):
            kept = [i for i in range(x.shape[1]) if k or i != 2]
            np.testing.assert_array_equal(x[:, kept], y[:, kept])
            assert np.isfinite(x).all()


@compiling_is_slow
def test_t_stands_still_for_a_tensor_of_which_nothing_moved(route):
    """As if that tensor had had no gradient; an empty one steps on."""
    impl, grads = route.impl, gradients(5, SHAPES)
    params, alone = impl.parameters(start(SHAPES)), impl.parameters(start(SHAPES)[1:2])
    (optimizer, step), (other, ahead) = (route.made(p, weight_decay=0.1) for p in (params, alone))
    for number, row in enumerate(grads):
        if number in (0, 3):
            row[1][:] = NAN
        else:
            ahead(row[1])
        step(*row)
    assert impl.counts(optimizer, params) == [5, 3, 5, 5] and impl.counts(other, alone) == [3]
    for x, y in zip(values(impl, optimizer, params[1]), values(impl, other, alone[0]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("cause", CAUSES)
def test_gradient_update_state_and_moved_parameter_have_to_be_finite(route, cause):
    """One of them is enough, though the others may hide it; weight decay is left out too."""
    (text, bad, lr), impl = CAUSES[cause], route.impl
    params = impl.parameters([np.ones(2)], "float32")
    optimizer, step = route.made(params, Rule.from_text(text), lr, weight_decay=0.01)
    step([bad, 0.25])
    theta, *state = values(impl, optimizer, params[0])
    assert theta[0, 0] == 1.0 != theta[0, 1] and np.isfinite(theta).all()
    assert all(np.isfinite(a).all() and (a[:, 0] == 0.0).all() for a in state)
    assert impl.left_alone(optimizer, params) == impl.counts(optimizer, params) == [1]


@compiling_is_slow
@pytest.mark.parametrize("cause", CAUSES)
@routes_that_look
def test_at_the_100th_step_one_warning_for_each_tensor_says_what_and_why(route, cause):
    text, bad, lr = CAUSES[cause]
    params = route.impl.parameters([np.ones(3), np.ones(2), np.ones(4)], "float32")
    _, step = route.made(params, Rule.from_text(text), lr)
    row = [bad, 0.5, 0.25], [0.25, bad], np.full(4, 0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            step(*row)
    with pytest.warns(RuntimeWarning) as told:
        step(*row)
    for n, warning in zip((3, 2), told, strict=True):
        assert re.fullmatch(
            rf"SymbolicOptimizer: 1 of {n} coordinates of .+ of shape \({n},\) were left alone, because the "
            rf"{cause} was not finite; lower the learning rate, or look for nan or inf in the gradients",
            str(warning.message),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):  # never again for these tensors
            step(*row)


@compiling_is_slow
@pytest.mark.parametrize(
    ("dtype", "largest", "lr"),
    [
        ("float16", 65504.0, 1.0035),  # finite in float32, in which a step computes
        ("bfloat16", 3.3895313892515355e38, 1.0035),
        ("float32", 3e38, 10.0),
        ("float64", 1.7e308, 10.0),
    ],
)
def test_no_parameter_moves_to_infinity_though_it_may_to_the_largest_number(route, dtype, largest, lr):
    impl = route.impl
    params = impl.parameters([-np.ones(2)], dtype)
    optimizer, step = route.made(params, SGD, lr, weight_decay=0.01)
    step([largest, 2.0])
    theta = impl.value(params[0]).astype("float64")
    assert theta[0] == -1.0 and theta[1] == pytest.approx(-(1.0 - 0.01 * lr) - 2.0 * lr, rel=1e-2)
    assert impl.left_alone(optimizer, params) == [1]
    params = impl.parameters([np.zeros(1)], dtype)
    route.made(params, SGD, 1.0)[1]([-largest])
    assert float(impl.value(params[0])[0]) == pytest.approx(largest, rel=1e-7)


# What sees tensors has one coordinate in the update of all (tests/backends/test_structures.py).
COORDINATEWISE = [name for name in TEACHERS if name != "rp_s" and not enlarged(name).sees_tensors]


@pytest.mark.parametrize(
    ("name", "path", "teacher", "shape"),
    [
        # Shapes that could be mistaken for [hidden, n], too.
        *(
            (name, path, "rp_s", shape)
            for name, path in (("torch", "plain"), ("tf", "compiled"), ("tf", "graph"), ("tf", "xla"))
            for shape in ((5,), (2, 3), (), (1, 20), (20,), (20, 1))
            if path in ("plain", "compiled") or shape in ((), (20,))
        ),
        *((name, "plain", teacher, (2, 3)) for name in PATHS for teacher in COORDINATEWISE),
    ],
)
def test_a_teacher_keeps_all_state_of_a_coordinate(name, path, teacher, shape, monkeypatch):
    """Every hidden unit of it."""
    route = route_of(name, path, monkeypatch)
    impl, size = route.impl, int(np.prod(shape))
    params, others = (impl.parameters([np.ones(shape)], "float32") for _ in range(2))
    (optimizer, step), (_, calm) = (route.made(p, enlarged(teacher), 0.5) for p in (params, others))
    g, first = np.linspace(0.5, 1.0, size).reshape(shape), np.arange(size).reshape(shape) == 0
    # The gates and features of others stay finite at an infinite gradient.
    for spike in (None, NAN, None, np.inf if teacher == "rp_s" else NAN):
        before = None if spike is None else values(impl, optimizer, params[0])
        step(g if spike is None else np.where(first, spike, g))
        calm(g)
        after = values(impl, optimizer, params[0])
        assert all(np.isfinite(new).all() for new in after)
        for old, new in zip(before or [], after if before else [], strict=True):
            np.testing.assert_array_equal(old[:, 0], new[:, 0])
    assert impl.counts(optimizer, params) == ([4] if size > 1 else [2])
    assert impl.left_alone(optimizer, params) == [1]
    theta, calm_theta = impl.value(params[0])[~first], impl.value(others[0])[~first]
    np.testing.assert_allclose(theta, calm_theta, rtol=1e-6)
    assert size == 1 or np.abs(theta - 1.0).min() > 1e-5


def test_mode_off_lets_all_through(route):
    impl = route.impl
    params = impl.parameters([np.ones(3)], "float32")
    optimizer, step = route.made(params, SGD, nonfinite="off")
    for _ in range(101):
        step([0.0, NAN, np.inf])
    theta = impl.value(params[0])
    assert theta[0] == 1.0 and np.isnan(theta[1]) and theta[2] == -np.inf
    optimizer.check_finite()
    assert impl.counts(optimizer, params) == [101] and impl.left_alone(optimizer, params) == [0]


@routes_that_tell
def test_mode_raise_raises_at_once_after_the_finite_coordinates_moved(route):
    impl = route.impl
    params = impl.parameters([np.ones(3), np.ones(2)])
    optimizer, step = route.made(params, SGD, 0.5, nonfinite="raise")
    step(np.ones(3), np.ones(2))
    told = r"1 of 3 coordinates of .* of shape \(3,\) .* because the gradient was not finite; lower"
    with pytest.raises(impl.tells(route.path), match=told):
        step([1.0, NAN, 1.0], np.ones(2))
    np.testing.assert_array_equal(impl.value(params[0]), [0.0, 0.5, 0.0])
    np.testing.assert_array_equal(impl.value(params[1]), 0.0)
    assert impl.counts(optimizer, params) == [2, 2]
    with pytest.raises(impl.NonFiniteError, match="1 of 3"):
        optimizer.check_finite()


@pytest.mark.parametrize("given", [enlarged(name) for name in TEACHERS], ids=TEACHERS)
def test_every_teacher_raises_when_it_is_to_and_not_when_it_is_off(impl, given):
    bad = np.where(np.arange(12).reshape(4, 3) == 5, NAN, 1.0)
    lost = np.isnan(bad) | bool(given.row.structure)
    if given.sees_tensors:  # its row and its column at least
        lost = lost.any(0) | lost.any(1, keepdims=True)
    params = impl.parameters([np.ones((4, 3))])
    optimizer = impl.optimizer(params, given, nonfinite="raise")
    with pytest.raises(
        impl.NonFiniteError,
        match=rf"{lost.sum()} of 12 .* shape \(4, 3\) .* the gradient was not finite",
    ):
        impl.feed(optimizer, params, [bad])
    optimizer = impl.optimizer(params, given, nonfinite="off")
    for _ in range(3):
        impl.feed(optimizer, params, [bad])
    np.testing.assert_array_equal(np.isnan(impl.value(params[0])), lost)


@routes_that_look
@pytest.mark.usefixtures("looks_often")
def test_ten_looks_in_a_row_with_all_of_a_tensor_left_alone_raise_and_nine_do_not(route):
    """Nor do more of them where a coordinate moves; other tensors move on."""
    impl = route.impl
    params = impl.parameters([np.ones(3), np.ones(2)])
    optimizer, step = route.made(params, SGD, 1e-3)
    bad, half = ([NAN] * 3, [1.0, 1.0]), ([NAN, 1.0, NAN], [1.0, 1.0])
    with pytest.warns(RuntimeWarning, match="3 of 3 coordinates"):
        for k in range(1, 410):
            step(*(half if k == 100 or 190 < k <= 310 else bad))
    assert impl.counts(optimizer, params) == [121, 409]
    told = r"3 of 3 coordinates of .* of shape \(3,\) were left alone, because the gradient .*, at 10 looks"
    with pytest.raises(impl.tells(route.path), match=told):
        step(*bad)
    assert impl.counts(optimizer, params) == [121, 410]
    assert all(np.isfinite(impl.value(p)).all() for p in params)
    with pytest.raises(impl.NonFiniteError, match="looks in a row"):
        optimizer.check_finite()
