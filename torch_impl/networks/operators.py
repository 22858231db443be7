"""Pointwise operators in torch, one per pointwise row of interchange.language.operators.

Values equal the NumPy oracle; NaN goes through everything but ``greater``. Derivatives under autograd
follow the table's conventions (0 at the kinks of abs, sqrt, root, log, logabs, ln, cbrt, relu, and of pow,
powabs and powreal at a = 0; ties of max and min half and half) by choosing a safe argument before the
operation, so that no gradient is NaN or infinite there. Arguments are tensors or Python floats; a 0-dim or
plain number takes the dtype of the dimensioned tensor. The torch emitter copies these functions' source text
into standalone files, so bodies use torch and each other only.
"""

from collections.abc import Callable

import torch

Tensor = torch.Tensor
Value = Tensor | float


def as_tensor(a: Value) -> Tensor:
    """Numbers as 0-dim float64, which leaves the dtype of dimensioned operands alone."""
    return a if isinstance(a, torch.Tensor) else torch.tensor(a, dtype=torch.float64)


def keep_nan(out: Tensor, *args: Tensor) -> Tensor:
    """``out``, NaN wherever an argument is."""
    for arg in args:
        out = torch.where(torch.isnan(arg), torch.nan, out)
    return out


def _pair(a: Value, b: Value) -> tuple[Tensor, Tensor]:
    """Both in one dtype, so that a number below the smallest one of it is 0 in every place."""
    a, b = as_tensor(a), as_tensor(b)
    kinds = [x.dtype for x in (a, b) if x.dim()] or [a.dtype, b.dtype]
    dtype = torch.promote_types(kinds[0], kinds[-1])  # dynamo has no result_type
    return a.to(dtype), b.to(dtype)


def op_add(a: Value, b: Value) -> Value:
    return a + b


def op_sub(a: Value, b: Value) -> Value:
    return a - b


def op_mul(a: Value, b: Value) -> Value:
    return a * b


def op_div(a: Value, b: Value) -> Tensor:
    return as_tensor(a) / b


def op_neg(a: Value) -> Value:
    return -a


def op_square(a: Value) -> Value:
    return a * a


def op_cube(a: Value) -> Value:
    return a * a * a


def op_abs(a: Value) -> Tensor:
    return torch.abs(as_tensor(a))


def op_sign(a: Value) -> Tensor:
    a = as_tensor(a)
    return keep_nan(torch.sign(a), a)


def op_pow(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero = a == 0
    safe = torch.where(zero, 1.0, a)
    at_zero = 0.0 * torch.pow(torch.zeros_like(b), b.detach())
    out = torch.where(zero, at_zero, torch.sign(safe) * torch.pow(torch.abs(safe), b))
    return keep_nan(out, a, b)


def op_powabs(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero = a == 0
    safe = torch.where(zero, 1.0, a)
    at_zero = torch.pow(torch.zeros_like(b), b.detach())
    out = torch.where(zero, at_zero, torch.pow(torch.abs(safe), b))
    return keep_nan(out, a, b)


def op_powreal(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    zero, floor = a == 0, torch.floor(b.detach())
    safe, whole = torch.where(zero, 1.0, a), floor == b
    side = torch.where(whole, torch.where(torch.floor(floor / 2) * 2 == floor, 1.0, -1.0), torch.nan)
    out = torch.where(safe < 0, side.to(a.dtype), 1.0) * torch.pow(torch.abs(safe), b)
    return keep_nan(torch.where(zero, torch.pow(torch.zeros_like(b), b.detach()), out), a, b)


def op_sqrt(a: Value) -> Tensor:
    a = as_tensor(a)
    zero = a == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.abs(torch.where(zero, 1.0, a))))


def op_root(a: Value) -> Tensor:
    a = as_tensor(a)
    zero = a == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, a)))


def op_log(a: Value) -> Tensor:
    return torch.log(torch.abs(as_tensor(a)) + 1e-8)


def op_logabs(a: Value) -> Tensor:
    a = as_tensor(a)
    zero = a == 0
    return torch.where(zero, -torch.inf, torch.log(torch.abs(torch.where(zero, 1.0, a))))


def op_ln(a: Value) -> Tensor:
    a = as_tensor(a)
    zero = a == 0
    return torch.where(zero, -torch.inf, torch.log(torch.where(zero, 1.0, a)))


def op_log1p(a: Value) -> Tensor:
    return torch.log1p(as_tensor(a))


def op_cbrt(a: Value) -> Tensor:
    a = as_tensor(a)
    edge = (a == 0) | torch.isinf(a)
    size = torch.abs(torch.where(edge, 1.0, a))
    root = torch.pow(size, 1.0 / 3.0)
    # 1/3 is rounded, which costs a root of 1e-300 the last two digits; one step of Newton brings them back.
    root = root - (root - size / (root * root)) / 3.0
    return torch.where(edge, a.detach(), torch.sign(a) * root)


def op_exp(a: Value) -> Tensor:
    return torch.exp(as_tensor(a))


def op_tanh(a: Value) -> Tensor:
    return torch.tanh(as_tensor(a))


def op_sinh(a: Value) -> Tensor:
    return torch.sinh(as_tensor(a))


def op_cosh(a: Value) -> Tensor:
    return torch.cosh(as_tensor(a))


def op_asinh(a: Value) -> Tensor:
    return torch.asinh(as_tensor(a))


def op_erf(a: Value) -> Tensor:
    return torch.erf(as_tensor(a))


def op_erfc(a: Value) -> Tensor:
    return torch.erfc(as_tensor(a))


def op_sin(a: Value) -> Tensor:
    return torch.sin(as_tensor(a))


def op_cos(a: Value) -> Tensor:
    return torch.cos(as_tensor(a))


def op_tan(a: Value) -> Tensor:
    return torch.tan(as_tensor(a))


def op_atan(a: Value) -> Tensor:
    return torch.atan(as_tensor(a))


def op_sigmoid(a: Value) -> Tensor:
    return torch.sigmoid(as_tensor(a))


def op_relu(a: Value) -> Tensor:
    return torch.relu(as_tensor(a))


def op_softsign(a: Value) -> Tensor:
    a = as_tensor(a)
    # Autodiff of a / (1 + abs(a)) cancels where a is large, so there it is 1 / (1 + 1 / a).
    large = (torch.abs(a) > 1) & torch.isfinite(a)
    safe, small = torch.where(large, a, 1.0), torch.where(large, 0.0, a)
    small = small / (1.0 + torch.abs(small))
    return torch.where(large, torch.sign(safe) / (1.0 + 1.0 / torch.abs(safe)), small)


def op_max(a: Value, b: Value) -> Tensor:
    return torch.maximum(as_tensor(a), as_tensor(b))


def op_min(a: Value, b: Value) -> Tensor:
    return torch.minimum(as_tensor(a), as_tensor(b))


def op_greater(a: Value, b: Value) -> Tensor:
    a, b = _pair(a, b)
    return torch.gt(a, b).to(a.dtype)


def op_aq(a: Value, b: Value) -> Tensor:
    b = as_tensor(b)
    return a / torch.sqrt(1.0 + b * b)


OPERATORS: dict[str, Callable[..., Value]] = {
    "add": op_add,
    "sub": op_sub,
    "mul": op_mul,
    "div": op_div,
    "neg": op_neg,
    "square": op_square,
    "cube": op_cube,
    "abs": op_abs,
    "sign": op_sign,
    "pow": op_pow,
    "powabs": op_powabs,
    "powreal": op_powreal,
    "sqrt": op_sqrt,
    "root": op_root,
    "log": op_log,
    "logabs": op_logabs,
    "ln": op_ln,
    "log1p": op_log1p,
    "cbrt": op_cbrt,
    "exp": op_exp,
    "tanh": op_tanh,
    "sinh": op_sinh,
    "cosh": op_cosh,
    "asinh": op_asinh,
    "erf": op_erf,
    "erfc": op_erfc,
    "sin": op_sin,
    "cos": op_cos,
    "tan": op_tan,
    "atan": op_atan,
    "sigmoid": op_sigmoid,
    "relu": op_relu,
    "softsign": op_softsign,
    "max": op_max,
    "min": op_min,
    "greater": op_greater,
    "aq": op_aq,
}
