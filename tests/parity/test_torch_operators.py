"""Torch's operators against the NumPy table: values, dtypes, NaN, and derivatives under autograd."""

import numpy as np
import pytest

from interchange.language.operators import OPERATORS, TEMPORAL

torch = pytest.importorskip("torch")
torch_operators = pytest.importorskip("torch_impl.networks.operators").OPERATORS

POINTWISE = [name for name in OPERATORS if name not in TEMPORAL]
NASTY = np.array([0.0, -0.0, 1e-12, -1e-12, 0.3, -0.3, 0.5, -0.5, 1.0, -1.0, 2.0, -2.5, 1e6, -1e6, np.nan])


def grid(name: str, dtype: type = np.float64) -> list[np.ndarray]:
    """Every value, or for two arguments every pair of values; ties and zeros included."""
    if OPERATORS[name].arity == 1:
        return [NASTY.astype(dtype)]
    return [part.ravel().astype(dtype) for part in np.meshgrid(NASTY, NASTY)]


def oracle(name: str, args: list) -> np.ndarray:
    with np.errstate(all="ignore"):
        return OPERATORS[name].numpy(*args)


def test_the_tables_have_the_same_pointwise_rows():
    assert list(torch_operators) == POINTWISE


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_values_equal_the_oracle(name, dtype, tolerance):
    args = grid(name, dtype)
    if dtype == np.float32 and name == "tan":
        args = [np.where(np.abs(args[0]) < 1e5, args[0], 1.0).astype(dtype)]  # argument reduction differs
    got = torch_operators[name](*map(torch.from_numpy, args))
    assert got.numpy().dtype == dtype
    np.testing.assert_allclose(got.numpy(), oracle(name, args), rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivatives_equal_the_table(name):
    args = [value[~np.isnan(sum(grid(name)))] for value in grid(name)]
    out = oracle(name, args)
    fine = np.isfinite(out)
    args, out = [value[fine] for value in args], out[fine]
    with np.errstate(all="ignore"):
        expected = OPERATORS[name].derivative(*args, out)
    tensors = [torch.from_numpy(value).requires_grad_() for value in args]
    result = torch_operators[name](*tensors)
    grads = [None] * len(args)
    if result.requires_grad:
        grads = torch.autograd.grad(result.sum(), tensors, allow_unused=True)
    for grad, partial in zip(grads, expected, strict=True):
        grad = np.zeros_like(out) if grad is None else grad.numpy()
        np.testing.assert_allclose(grad, np.broadcast_to(partial, out.shape), rtol=1e-10, atol=1e-20)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name != "div"])
def test_no_gradient_is_nan_at_zero(name):
    args = [
        torch.zeros(3, dtype=torch.float64, requires_grad=True),
        torch.full((3,), 0.5, requires_grad=True),
    ]
    result = torch_operators[name](*args[: OPERATORS[name].arity])
    if result.requires_grad:
        grads = torch.autograd.grad(result.sum(), args, allow_unused=True)
        assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


@pytest.mark.parametrize("name", [name for name in POINTWISE if OPERATORS[name].arity == 2])
@pytest.mark.parametrize("number", [0.3, torch.tensor(0.3, dtype=torch.float64)])
def test_numbers_take_the_dtype_of_the_tensor(name, number):
    values = np.linspace(-2, 2, 9, dtype=np.float32)
    tensor, scalar = torch.from_numpy(values), np.float32(0.3)
    for args, same in [((tensor, number), [values, scalar]), ((number, tensor), [scalar, values])]:
        got = torch_operators[name](*args)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.numpy(), oracle(name, same), rtol=1e-5)


@pytest.mark.parametrize("name", POINTWISE)
def test_plain_numbers_are_enough(name):
    args = [0.3, 0.7][: OPERATORS[name].arity]
    np.testing.assert_allclose(float(torch_operators[name](*args)), float(oracle(name, args)), rtol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "pow", "sqrt", "log", "aq"])
def test_second_derivatives_are_right(name):
    values = [[0.3, -0.7], [0.9, 1.4]][: OPERATORS[name].arity]
    args = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    assert torch.autograd.gradgradcheck(torch_operators[name], args)


@pytest.mark.parametrize("number", [False, True])
def test_all_operators_are_one_graph_of_torch_compile(number):
    """Where dynamo has to leave a graph within a step of an optimizer, all of the step goes uncompiled."""

    def all_of(x, y):
        return [f(*(x, y)[: OPERATORS[name].arity]) for name, f in torch_operators.items()]

    torch._dynamo.reset()
    x, y = torch.linspace(0.1, 0.9, 5), 0.7 if number else torch.linspace(0.2, 0.8, 5)
    got = torch.compile(all_of, backend="eager", fullgraph=True)(x, y)
    assert all(map(torch.equal, got, all_of(x, y)))
