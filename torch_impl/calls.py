"""Pointwise and running operators as torch calls that write into a buffer, for torch_impl.eager.

A form takes places and gives a call, which takes the tensors by place and the step's numbers by index.
"""

from collections.abc import Callable
from typing import Any

import torch

from torch_impl.operators import OPERATORS

Tensor = torch.Tensor
Call = Callable[[list[Any], list[float]], Any]
Form = Callable[..., Call]

_UNARY = {
    name: getattr(torch, name)
    for name in (
        *("neg", "abs", "exp", "tanh", "sinh", "cosh", "asinh", "erf", "erfc", "sin", "cos", "tan", "atan"),
        *("log1p", "sigmoid"),
    )
}
_BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "greater": torch.gt,
}


def _unary(function: Callable[..., Tensor]) -> Form:
    return lambda o, a: lambda r, f: function(r[a], out=r[o])


def _binary(function: Callable[..., Tensor]) -> Form:
    return lambda o, a, b: lambda r, f: function(r[a], r[b], out=r[o])


def _scaled(function: Callable[..., Tensor]) -> Form:
    """a + m * b or a - m * b."""
    return lambda o, a, b, m: lambda r, f: function(r[a], r[b], alpha=f[m], out=r[o])


def _copied(function: Callable[..., Any]) -> Form:
    """An operator without a form of its own here."""
    return lambda o, *args: lambda r, f: r[o].copy_(function(*(r[a] for a in args)))


def _ema(o: int, s: int, x: int, b: int, rest: int) -> Call:
    return lambda r, f: torch.mul(r[s], r[b], out=r[o]).add_(r[x], alpha=f[rest])


def _lerp(o: int, s: int, x: int, rest: int) -> Call:
    return lambda r, f: torch.lerp(r[s], r[x], f[rest], out=r[o])


def _cummax(o: int, s: int, x: int, t: int) -> Call:
    return lambda r, f: r[o].copy_(r[x]) if f[t] == 1.0 else torch.maximum(r[s], r[x], out=r[o])


# Calls whose result may overwrite an argument that is not needed any more, and those where it may not.
IN_PLACE: dict[str, Form] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "square": lambda o, a: lambda r, f: torch.mul(r[a], r[a], out=r[o]),
    "root": _unary(torch.sqrt),
    "sqrt": lambda o, a: lambda r, f: torch.abs(r[a], out=r[o]).sqrt_(),
    "log": lambda o, a: lambda r, f: torch.abs(r[a], out=r[o]).add_(1e-8).log_(),
    "logabs": lambda o, a: lambda r, f: torch.abs(r[a], out=r[o]).log_(),
    "relu": lambda o, a: lambda r, f: torch.clamp_min(r[a], 0.0, out=r[o]),
    "add scaled": _scaled(torch.add),
    "sub scaled": _scaled(torch.sub),
    "lerp": _lerp,
}
APART: dict[str, Form] = {
    "ema": _ema,
    "cummax": _cummax,
    "cube": lambda o, a: lambda r, f: torch.mul(r[a], r[a], out=r[o]).mul_(r[a]),
    "softsign": lambda o, a: lambda r, f: torch.div(r[a], torch.abs(r[a], out=r[o]).add_(1.0), out=r[o]),
    "fill": lambda o, a: lambda r, f: r[o].copy_(r[a]),
}


def form(op: str) -> Form:
    """How ``op`` is called."""
    return IN_PLACE.get(op) or APART.get(op) or _copied(OPERATORS[op])
