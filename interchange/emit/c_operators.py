"""Operators as C expressions, with their derivatives (FORMATS.md section 3), for ``c_source``."""

import re

# {a}, {b}: arguments, {o}: the result. Functions with a trailing _ do not branch or call where real is float.
ROWS = {
    "add": "{a} + {b}",
    "sub": "{a} - {b}",
    "mul": "{a} * {b}",
    "div": "{a} / {b}",
    "neg": "-{a}",
    "square": "{a} * {a}",
    "cube": "{a} * {a} * {a}",
    "abs": "fabs({a})",
    "sign": "sign_({a})",
    "pow": "{b} != {b} ? {b} : sign_({a}) * pow_(fabs({a}), {b})",
    "powabs": "{a} != {a} ? {a} : {b} != {b} ? {b} : pow_(fabs({a}), {b})",
    "powreal": (
        "{a} != {a} ? {a} : {b} != {b} ? {b} : {a} < 0 && floor({b}) != {b} ? (real)NAN : "
        "({a} < 0 && floor({b} / 2) * 2 != {b} ? (real)-1 : (real)1) * pow_(fabs({a}), {b})"
    ),
    "sqrt": "sqrt(fabs({a}))",
    "root": "sqrt({a})",
    "log": "log_(fabs({a}) + (real)1e-8)",
    "logabs": "log_(fabs({a}))",
    "ln": "log_({a})",
    "log1p": "log1p({a})",
    "cbrt": "cbrt({a})",
    "exp": "exp_({a})",
    "tanh": "tanh_({a})",
    "sinh": "sinh({a})",
    "cosh": "cosh({a})",
    "asinh": "asinh({a})",
    "erf": "erf({a})",
    "erfc": "erfc({a})",
    "sin": "sin({a})",
    "cos": "cos({a})",
    "tan": "tan({a})",
    "atan": "atan({a})",
    "sigmoid": "sigmoid_({a})",
    "relu": "max_({a}, (real)0)",
    "softsign": "{a} / ((real)1 + fabs({a}))",
    "max": "max_({a}, {b})",
    "min": "min_({a}, {b})",
    "greater": "{a} > {b} ? (real)1 : (real)0",
    "aq": "{a} / sqrt((real)1 + {b} * {b})",
}
EXACT_POWERS = {2.0: "{a} * {a}", 3.0: "fabs({a} * {a} * {a})", 0.5: "sqrt(fabs({a}))"}

# One per argument; "" is 0 everywhere.
_POW_A = "{a} == 0 ? (real)0 : {b} * pow_(fabs({a}), {b} - (real)1)"
_POW_B = "{a} == 0 ? (real)0 : {o} * log_(fabs({a}))"
_LARGER = "{a} == {b} ? (real)0.5 : (real)0.5 * ((real)1 + sign_({a} - {b}))"
_SMALLER = "{a} == {b} ? (real)0.5 : (real)0.5 * ((real)1 - sign_({a} - {b}))"
DERIVATIVES = {
    "add": ("1", "1"),
    "sub": ("1", "-(real)1"),
    "mul": ("{b}", "{a}"),
    "div": ("(real)1 / {b}", "-{o} / {b}"),
    "neg": ("-(real)1",),
    "square": ("(real)2 * {a}",),
    "cube": ("(real)3 * {a} * {a}",),
    "abs": ("sign_({a})",),
    "sign": ("",),
    "pow": (_POW_A, _POW_B),
    "powabs": (f"sign_({{a}}) * ({_POW_A})", _POW_B),
    "powreal": (
        "{a} == 0 ? (real)0 : {a} < 0 && floor({b}) != {b} ? (real)NAN : "
        "({a} < 0 && floor({b} / 2) * 2 == {b} ? -{b} : {b}) * pow_(fabs({a}), {b} - (real)1)",
        _POW_B,
    ),
    "root": ("{a} == 0 ? (real)0 : (real)0.5 / {o}",),
    "ln": ("{a} == 0 ? (real)0 : (real)1 / {a}",),
    "sqrt": ("{a} == 0 ? (real)0 : (real)0.5 * sign_({a}) / {o}",),
    "log": ("sign_({a}) / (fabs({a}) + (real)1e-8)",),
    "logabs": ("{a} == 0 ? (real)0 : (real)1 / {a}",),
    "log1p": ("(real)1 / ((real)1 + {a})",),
    "cbrt": ("{a} == 0 ? (real)0 : (real)1 / ((real)3 * {o} * {o})",),
    "exp": ("{o}",),
    "tanh": ("(real)1 - {o} * {o}",),
    "sinh": ("cosh({a})",),
    "cosh": ("sinh({a})",),
    "asinh": ("(real)1 / sqrt((real)1 + {a} * {a})",),
    "erf": ("(real)1.1283791670955126 * exp_(-{a} * {a})",),
    "erfc": ("(real)-1.1283791670955126 * exp_(-{a} * {a})",),
    "sin": ("cos({a})",),
    "cos": ("-sin({a})",),
    "tan": ("(real)1 + {o} * {o}",),
    "atan": ("(real)1 / ((real)1 + {a} * {a})",),
    "sigmoid": ("sigmoid_({a}) * sigmoid_(-{a})",),
    "relu": ("{a} > 0 ? (real)1 : (real)0",),
    "softsign": ("(real)1 / (((real)1 + fabs({a})) * ((real)1 + fabs({a})))",),
    "max": (_LARGER, _SMALLER),
    "min": (_SMALLER, _LARGER),
    "greater": ("", ""),
    "aq": ("(real)1 / sqrt((real)1 + {b} * {b})", "-{o} * {b} / ((real)1 + {b} * {b})"),
}


def in_double(text: str) -> str:
    """Text for doubles: the C library's functions, whatever ``real`` is."""
    text = text.replace("(real)", "")
    return re.sub(
        r"\b(exp|tanh|log|pow)_\(", r"\1(", re.sub(r"\b(sign|max|min|sigmoid)_\(", r"\1_double(", text)
    )
