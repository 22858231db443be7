"""Operators against the NumPy table and torch: values, dtypes, NaN, first and second derivatives."""

import numpy as np
import pytest

from interchange.language.operators import OPERATORS, TEMPORAL

# torch before TensorFlow, as everywhere.
torch = pytest.importorskip("torch")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed: extra [tf]")

from tf_impl.networks.operators import OPERATORS as TF_OPERATORS  # noqa: E402
from torch_impl.networks.operators import OPERATORS as TORCH_OPERATORS  # noqa: E402

POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
BINARY = [name for name in POINTWISE if OPERATORS[name].arity == 2]
NASTY = np.array([0.0, -0.0, 1e-12, -1e-12, 0.3, -0.3, 0.5, -0.5, 1.0, -1.0, 2.0, -2.5, 1e6, -1e6, np.nan])
RUNS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def grid(name: str, values: np.ndarray = NASTY) -> list[np.ndarray]:
    """Every value, or for two arguments every pair of values; ties and zeros included."""
    if OPERATORS[name].arity == 1:
        return [values]
    return [part.ravel() for part in np.meshgrid(values, values)]


def oracle(name: str, args: list) -> np.ndarray:
    with np.errstate(all="ignore"):
        return OPERATORS[name].numpy(*args)


def tf_derivatives(name: str, args: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By each argument: the first derivatives, and those of their sum; 0 where nothing is connected."""
    tensors = [tf.constant(value) for value in args]
    with tf.GradientTape() as second:
        second.watch(tensors)
        with tf.GradientTape() as first:
            first.watch(tensors)
            out = TF_OPERATORS[name](*tensors)
        grads = first.gradient(out, tensors, unconnected_gradients="zero")
        total = tf.add_n(grads)
    again = second.gradient(total, tensors, unconnected_gradients="zero")
    return [grad.numpy() for grad in grads], [grad.numpy() for grad in again]


def torch_derivatives(name: str, args: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same in torch."""
    tensors = [torch.from_numpy(np.array(value)).requires_grad_() for value in args]

    def derivatives(out):
        if not out.requires_grad:
            return [torch.zeros_like(t) for t in tensors]
        grads = torch.autograd.grad(out.sum(), tensors, create_graph=True, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]

    grads = derivatives(TORCH_OPERATORS[name](*tensors))
    again = derivatives(sum(grads))
    return tuple([g.detach().numpy(force=True) for g in group] for group in (grads, again))


def test_the_tables_have_the_same_pointwise_rows():
    assert list(TF_OPERATORS) == POINTWISE


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_values_equal_the_oracle(name, run, dtype, tolerance):
    args = [value.astype(dtype) for value in grid(name)]
    if dtype == np.float32 and name == "tan":
        args = [np.where(np.abs(args[0]) < 1e5, args[0], 1.0).astype(dtype)]  # argument reduction differs
    got = RUNS[run](TF_OPERATORS[name])(*map(tf.constant, args)).numpy()
    assert got.dtype == dtype
    np.testing.assert_allclose(got, oracle(name, args), rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize("run", RUNS)
def test_values_at_infinity_equal_the_oracle(name, run):
    args = grid(name, np.array([np.inf, -np.inf, 1e300, -1e300, 0.5, -2.0, 0.0]))
    got = RUNS[run](TF_OPERATORS[name])(*map(tf.constant, args))
    np.testing.assert_allclose(got, oracle(name, args), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_equal_the_table(name):
    args = [value[~np.isnan(sum(grid(name)))] for value in grid(name)]
    out = oracle(name, args)
    fine = np.isfinite(out)
    args, out = [value[fine] for value in args], out[fine]
    with np.errstate(all="ignore"):
        expected = OPERATORS[name].derivative(*args, out)
    for grad, partial in zip(tf_derivatives(name, args)[0], expected, strict=True):
        np.testing.assert_allclose(grad, np.broadcast_to(partial, out.shape), rtol=1e-10, atol=1e-20)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_equal_torchs_also_second_ones_and_at_kinks(name):
    args = grid(name, np.array([0.0, -0.0, 0.3, -0.3, 1.0, -1.0, 2.0, -2.5]))
    if name in ("div", "pow", "powabs"):  # second derivatives by b of powers are 0 in torch at b = 0
        args = [value[args[1] != 0] for value in args]
    for ours, theirs in zip(tf_derivatives(name, args), torch_derivatives(name, args), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name not in ("sign", "greater")])
def test_second_derivatives_are_right(name):
    args = [np.array(value) for value in ([0.3, -0.7, 1.3], [0.9, 1.4, -2.2])][: OPERATORS[name].arity]
    step, numeric = 1e-6, []
    for i in range(len(args)):
        moved = []
        for sign in (1, -1):
            shifted = [value + sign * step * (i == k) for k, value in enumerate(args)]
            moved.append(sum(tf_derivatives(name, shifted)[0]))
        numeric.append((moved[0] - moved[1]) / (2 * step))
    for got, expected in zip(tf_derivatives(name, args)[1], numeric, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name != "div"])
def test_no_gradient_is_nan_at_zero(name):
    args = [np.zeros(3), np.full(3, 0.5)][: OPERATORS[name].arity]
    for grads in tf_derivatives(name, args):
        assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("make", [float, lambda x: tf.constant(x, tf.float64), lambda x: tf.Variable(x)])
def test_numbers_take_the_dtype_of_the_tensor(name, run, make):
    values, number = np.linspace(-2, 2, 9, dtype=np.float32), make(0.3)
    for order in (1, -1):
        operator = RUNS[run](lambda x, order=order: TF_OPERATORS[name](*(x, number)[::order]))
        got = operator(tf.constant(values))
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, oracle(name, [values, np.float32(0.3)][::order]), rtol=1e-5)


@pytest.mark.parametrize("name", POINTWISE)
def test_plain_numbers_are_enough_and_exact(name):
    args = [0.3, 0.7][: OPERATORS[name].arity]
    got = TF_OPERATORS[name](*args)
    assert got.dtype == tf.float64
    np.testing.assert_allclose(float(got), float(oracle(name, args)), rtol=1e-14, atol=0)


def test_step_counts_may_be_integers():
    for t in (7, tf.constant(7), tf.constant(7, tf.int64)):
        assert TF_OPERATORS["div"](t, 2).numpy() == 3.5
        assert TF_OPERATORS["mul"](tf.ones(2), t).dtype == tf.float32
