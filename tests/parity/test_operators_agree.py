"""Every backend's operators against the NumPy table: values, dtypes, NaN, first and second derivatives."""

import ctypes
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from common.kernels import build
from interchange.emit.c_kernels import helpers
from interchange.emit.c_loops import declared, loops
from interchange.emit.c_source import write_step
from interchange.language import expression as ex
from interchange.language.compiler import compile_program
from interchange.language.operators import OPERATORS, POINTWISE
from interchange.rule.rule import Rule
from tests.parity.needs import need
from tests.parity.rule_runners import onnx_file

Array = np.ndarray
BINARY = [name for name in POINTWISE if OPERATORS[name].arity == 2]
NASTY = (0.0, 1e-12, 0.3, 0.5, 1.0, 2.0, 2.5, 1e6)


def grid(name: str, values: tuple[float, ...], dtype: type = np.float64, nan: bool = False) -> list[Array]:
    """Every pair of values of both signs; ties and zeros included."""
    signed = [sign * value for value in values for sign in (1.0, -1.0)] + [np.nan] * nan
    with np.errstate(under="ignore"):
        pairs = [part.ravel().astype(dtype) for part in np.meshgrid(signed, signed)]
    return pairs[: OPERATORS[name].arity]


def oracle(name: str, args: list) -> Array:
    with np.errstate(all="ignore"):
        return OPERATORS[name].numpy(*args)


def table(package: str) -> dict[str, Callable]:
    return importlib.import_module(f"{package}_impl.networks.operators").OPERATORS


def torch_values(name: str, args: list[Array]) -> Array:
    import torch

    return table("torch")[name](*map(torch.from_numpy, args)).numpy()


def torch_derivatives(name: str, args: list[Array]) -> tuple[list[Array], list[Array]]:
    """By each argument: the first derivatives, and those of their sum; 0 where nothing is connected."""
    import torch

    tensors = [torch.from_numpy(np.array(value)).requires_grad_() for value in args]

    def derivatives(out):
        if not out.requires_grad:
            return [torch.zeros_like(t) for t in tensors]
        grads = torch.autograd.grad(out.sum(), tensors, create_graph=True, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)]

    grads = derivatives(table("torch")[name](*tensors))
    again = derivatives(sum(grads))
    return tuple([g.numpy(force=True) for g in group] for group in (grads, again))


def tf_wrapped(function: Callable, how: str) -> Callable:
    import tensorflow as tf

    return function if how == "eager" else tf.function(function, jit_compile=how == "xla")


def tf_values(how: str, name: str, args: list[Array]) -> Array:
    import tensorflow as tf

    return tf_wrapped(table("tf")[name], how)(*map(tf.constant, args)).numpy()


def tf_derivatives(name: str, args: list[Array]) -> tuple[list[Array], list[Array]]:
    import tensorflow as tf

    tensors = [tf.constant(value) for value in args]
    with tf.GradientTape() as second:
        second.watch(tensors)
        with tf.GradientTape() as first:
            first.watch(tensors)
            out = table("tf")[name](*tensors)
        grads = first.gradient(out, tensors, unconnected_gradients="zero")
        total = tf.add_n(grads)
    again = second.gradient(total, tensors, unconnected_gradients="zero")
    return tuple([g.numpy() for g in group] for group in (grads, again))


def jax_operator(name: str) -> Callable:
    from interchange.emit import jax_operators

    infix = {"add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__", "neg": "__neg__"}
    if name in infix:
        return lambda a, *rest: getattr(a, infix[name])(*rest)
    return getattr(jax_operators, f"op_{name}")


def jax_values(name: str, args: list[Array]) -> Array:
    import jax

    with jax.enable_x64(args[0].dtype == np.float64):
        return np.asarray(jax.jit(jax_operator(name))(*map(jax.numpy.asarray, args)))


def jax_derivatives(name: str, args: list[Array]) -> tuple[list[Array]]:
    import jax

    with jax.enable_x64(True):
        by_all = jax.grad(lambda *given: jax_operator(name)(*given).sum(), argnums=tuple(range(len(args))))
        return ([np.asarray(grad) for grad in by_all(*map(jax.numpy.asarray, args))],)


@functools.cache
def c_library(apart: bool, double: bool) -> ctypes.CDLL:
    """Every operator's value and its derivatives by both arguments.

    They are op(a + c0, b + c1), differentiated by c0 and c1 at -0.0, which leaves every a as it is; or, of
    what a whole step shares, op(c0, c1) for one pair.
    """
    a, b = (
        ex.name(f"c{k}") if apart else ex.call("add", ex.name(x), ex.name(f"c{k}"))
        for k, x in enumerate("ab")
    )
    calls = [ex.call(name, *(a, b)[: OPERATORS[name].arity]) for name in POINTWISE]
    step = write_step(compile_program(calls), {"a": "a[i]", "b": "b[i]"}, ("c0", "c1"), wrt=("c0", "c1"))
    final = []
    for k, value in enumerate(step.outputs):
        final += [f"out[{3 * k} * n + i] = {value};"]
        final += [f"out[{3 * k + 1 + j} * n + i] = {step.tangents[k].get(j, '0')};" for j in range(2)]
    body = loops(step.lines, [*step.outputs, *(d for t in step.tangents for d in t.values())], final, "    ")
    head = "void run(long n, const real *a, const real *b, const double *constant, real *out) {\n"
    once = declared(step.once, body, "    ")
    source = f'#include "rule.h"\n{helpers(once)}{head}{once}{body}}}\n'
    flags = ("-ffp-contract=off", *["-DL2O_DOUBLE"] * double)
    library, reason = build.load("operators", source, flags)
    assert library is not None, reason
    return library


def c_results(args: list[Array], once: bool) -> Array:
    """[operator, value and both derivatives, pair]; ``once``: computed once for a whole step."""
    library, dtype = c_library(once, args[0].dtype == np.float64), args[0].dtype
    a, b = args[0], args[-1]

    def run(n: int, constants: Array, out: Array) -> Array:
        library.run(ctypes.c_long(n), *(ctypes.c_void_p(x.ctypes.data) for x in (a, b, constants, out)))
        return out

    if not once:
        return run(len(a), np.array([-0.0, -0.0]), np.empty((len(POINTWISE), 3, len(a)), dtype))
    pairs = np.stack([a, b], axis=1)
    return np.stack([run(1, pair, np.empty((len(POINTWISE), 3), dtype)) for pair in pairs], axis=-1)


def c_values(once: bool, name: str, args: list[Array]) -> Array:
    return c_results(args, once)[POINTWISE.index(name), 0]


def c_derivatives(once: bool, name: str, args: list[Array]) -> tuple[list[Array]]:
    return (list(c_results(args, once)[POINTWISE.index(name), 1 : 1 + len(args)]),)


@dataclass(frozen=True)
class Backend:
    """One way to compute the operators.

    Attributes:
        rtol: of values, for every dtype it computes in.
        slopes: relative and absolute tolerance of derivatives, for every dtype they are compared in.
        flushes: what is below the smallest normal number may be taken for 0.
        more: nasty values beside the shared ones.
    """

    values: Callable[[str, list[Array]], Array]
    derivatives: Callable | None
    rtol: dict[type, float] = field(default_factory=lambda: {np.float64: 1e-12, np.float32: 1e-5})
    slopes: dict[type, tuple[float, float]] = field(default_factory=dict)
    flushes: bool = False
    more: tuple[float, ...] = ()


SLOPES = {np.float64: (1e-10, 1e-20)}
JAX = (1e-30, 1e-5, 0.999, 5.5, 12.0, 30.0)
C = (1e-42, 20.0, 88.5, 1e30, np.inf)
ONNX = (0.0, 1e-30, 1e-12, 2.22056e-12, 1e-5, 9e-5, 1.1e-4, 0.3, 0.5, 0.999, 1.0, 2.0, 5.5, 9.9, 30.0, 80.0)
ONNX += (1e6, 1e20, 3e38, np.inf)
# As values: 1 in 4 million in float32, where the row's own polynomials are not the C library's.
C_RTOL = {np.float64: 4e-15, np.float32: 5e-7}
C_SLOPES = {dtype: (10.0 * rtol, float(np.finfo(dtype).tiny)) for dtype, rtol in C_RTOL.items()}
DOUBLE = np.float64
BACKENDS = {
    "torch": Backend(torch_values, torch_derivatives, slopes=SLOPES),
    **{f"tf {how}": Backend(partial(tf_values, how), None) for how in ("graph", "xla")},
    "tf eager": Backend(partial(tf_values, "eager"), tf_derivatives, slopes=SLOPES),
    "jax": Backend(
        jax_values, jax_derivatives, slopes={DOUBLE: (1e-9, 1e-20)}, flushes=True, more=JAX
    ),
    "c": Backend(partial(c_values, False), partial(c_derivatives, False), C_RTOL, C_SLOPES, more=C),
    "c once a step": Backend(
        partial(c_values, True), partial(c_derivatives, True),
        {DOUBLE: C_RTOL[DOUBLE]}, {DOUBLE: C_SLOPES[DOUBLE]}, more=C,
    ),
}  # fmt: skip
SECOND = ("torch", "tf eager")  # which have second derivatives
TF = tuple(name for name in BACKENDS if name[:2] == "tf")
every_operator = pytest.mark.parametrize("name", POINTWISE)


def backend(key: str) -> Backend:
    need(key, compiled=key.startswith("c"))
    return BACKENDS[key]


@every_operator
@pytest.mark.parametrize(
    ("key", "dtype"), [(key, dtype) for key, row in BACKENDS.items() for dtype in row.rtol]
)
def test_values_equal_the_oracle(name, key, dtype):
    row = backend(key)
    args = grid(name, (*NASTY, *row.more), dtype, nan=True)
    if dtype == np.float32 and name == "tan" and not row.more:
        args = [np.where(np.abs(args[0]) < 1e5, args[0], 1.0).astype(dtype)]  # argument reduction differs
    got = row.values(name, args)
    assert got.dtype == dtype
    atol = np.finfo(dtype).tiny if row.flushes else 0.0
    np.testing.assert_allclose(got, oracle(name, args), rtol=row.rtol[dtype], atol=atol)


@every_operator
def test_onnx_is_within_8_ulp_of_the_oracle(name):
    """What a kernel of onnxruntime may be off; tanh of denormals is off by more."""
    need("onnx")
    args = grid(name, ONNX, np.float32, nan=True)
    rule = Rule.from_text(f"{name}({', '.join(['g', 'theta'][: len(args)])})")
    (got,) = onnx_file(rule, args[0][None], args[-1][None])
    with np.errstate(all="ignore"):
        expected = OPERATORS[name].numpy(*args)
        allowed = 8 * np.spacing(np.maximum(np.abs(expected), np.finfo(np.float32).tiny))
        close = np.abs(got - expected) <= allowed
    assert got.dtype == expected.dtype == np.float32
    wrong = ~(close | (got == expected) | (np.isnan(got) & np.isnan(expected)))
    assert not wrong.any(), [(*(arg[wrong][0] for arg in args), got[wrong][0], expected[wrong][0])]


@every_operator
@pytest.mark.parametrize("key", TF)
def test_values_at_infinity_equal_the_oracle(name, key):
    args = grid(name, (np.inf, 1e300, 0.5, 2.0, 0.0))
    np.testing.assert_allclose(backend(key).values(name, args), oracle(name, args), rtol=1e-12, atol=0)


@every_operator
@pytest.mark.parametrize(
    ("key", "dtype"), [(key, dtype) for key, row in BACKENDS.items() for dtype in row.slopes]
)
def test_derivatives_equal_the_table(name, key, dtype):
    """Where the value is finite, at kinks and ties too."""
    row = backend(key)
    args = grid(name, (*NASTY, *row.more), dtype)
    out = oracle(name, args)
    fine = np.isfinite(out) & np.all(np.isfinite(args), axis=0)
    args, out = [value[fine] for value in args], out[fine]
    with np.errstate(all="ignore"):
        expected = OPERATORS[name].derivative(*args, out)
    rtol, atol = row.slopes[dtype]
    for grad, partial_ in zip(row.derivatives(name, args)[0], expected, strict=True):
        np.testing.assert_allclose(grad, np.broadcast_to(partial_, out.shape), rtol=rtol, atol=atol)


@every_operator
def test_tensorflows_derivatives_equal_torchs_also_second_ones_and_at_kinks(name):
    args = grid(name, (0.0, 0.3, 1.0, 2.0, 2.5))
    if name in (
        "div",
        "pow",
        "powabs",
        "powreal",
    ):  # second derivatives by b of powers are 0 in torch at b = 0
        args = [value[args[1] != 0] for value in args]
    theirs, ours = (backend(key).derivatives(name, args) for key in SECOND)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name not in ("sign", "greater")])
@pytest.mark.parametrize("key", SECOND)
def test_second_derivatives_are_right(name, key):
    derivatives, step, numeric = backend(key).derivatives, 1e-6, []
    args = [np.array(value) for value in ([0.3, -0.7, 1.3], [0.9, 1.4, -2.2])][: OPERATORS[name].arity]
    for i in range(len(args)):
        moved = []
        for sign in (1, -1):
            shifted = [value + sign * step * (i == k) for k, value in enumerate(args)]
            moved.append(sum(derivatives(name, shifted)[0]))
        numeric.append((moved[0] - moved[1]) / (2 * step))
    for got, expected in zip(derivatives(name, args)[1], numeric, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name != "div"])
@pytest.mark.parametrize("key", SECOND)
def test_no_gradient_is_nan_at_zero(name, key):
    args = [np.zeros(3), np.full(3, 0.5)][: OPERATORS[name].arity]
    for grads in backend(key).derivatives(name, args):
        assert all(np.isfinite(grad).all() for grad in grads)


def applied(key: str, name: str, values: Array, kind: str, order: int) -> Array:
    if key == "torch":
        import torch

        number = torch.tensor(0.3, dtype=torch.float64) if kind == "tensor" else 0.3
        return table("torch")[name](*(torch.from_numpy(values), number)[::order]).numpy()
    import tensorflow as tf

    make = {"number": float, "tensor": lambda x: tf.constant(x, tf.float64), "variable": tf.Variable}
    number = make[kind](0.3)
    return tf_wrapped(lambda x: table("tf")[name](*(x, number)[::order]), key[3:])(
        tf.constant(values)
    ).numpy()


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    ("key", "kind"),
    [(key, kind) for key in ("torch", *TF) for kind in ("number", "tensor", *["variable"] * (key in TF))],
)
@pytest.mark.parametrize("order", [1, -1])
def test_numbers_take_the_dtype_of_the_tensor(name, key, kind, order):
    backend(key)
    values = np.linspace(-2, 2, 9, dtype=np.float32)
    got = applied(key, name, values, kind, order)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, oracle(name, [values, np.float32(0.3)][::order]), rtol=1e-5)


@every_operator
@pytest.mark.parametrize("key", SECOND)
def test_plain_numbers_are_enough_and_exact(name, key):
    backend(key)
    args = [0.3, 0.7][: OPERATORS[name].arity]
    got = table(key.split()[0])[name](*args)
    assert key == "torch" or got.dtype.name == "float64"
    np.testing.assert_allclose(float(got), float(oracle(name, args)), rtol=1e-14, atol=0)


def test_step_counts_may_be_integers_in_tensorflow():
    backend("tf eager")
    import tensorflow as tf

    for t in (7, tf.constant(7), tf.constant(7, tf.int64)):
        assert table("tf")["div"](t, 2).numpy() == 3.5
        assert table("tf")["mul"](tf.ones(2), t).dtype == tf.float32


@pytest.mark.parametrize("number", [False, True])
def test_all_operators_are_one_graph_of_torch_compile(number):
    """Where dynamo has to leave a graph within a step of an optimizer, all of the step goes uncompiled."""
    backend("torch")
    import torch

    rows = table("torch")

    def all_of(x, y):
        return [f(*(x, y)[: OPERATORS[name].arity]) for name, f in rows.items()]

    torch._dynamo.reset()
    x, y = torch.linspace(0.1, 0.9, 5), 0.7 if number else torch.linspace(0.2, 0.8, 5)
    got = torch.compile(all_of, backend="eager", fullgraph=True)(x, y)
    assert all(map(torch.equal, got, all_of(x, y)))
