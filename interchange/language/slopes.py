"""Derivatives of pointwise operators that take more than a line; conventions as in ``operators``."""

import numpy as np

Array = np.ndarray


def off_zero(a: Array, slope: Array) -> Array:
    return np.where(a == 0, 0.0, slope)


def d_sigmoid(a: Array, out: Array) -> tuple:
    tail = np.exp(-np.abs(a))
    return (tail / np.square(1.0 + tail),)


def d_pow(a: Array, b: Array, out: Array) -> tuple:
    size = np.abs(a)
    return off_zero(a, b * np.power(size, b - 1.0)), off_zero(a, out * np.log(size))


def d_powabs(a: Array, b: Array, out: Array) -> tuple:
    by_a, by_b = d_pow(a, b, out)
    return np.sign(a) * by_a, by_b


def d_powreal(a: Array, b: Array, out: Array) -> tuple:
    size = np.abs(a)
    # Of a**(b - 1), told by b itself, because b - 1 may round to b.
    side = np.where(np.floor(b) != b, np.nan, np.where(np.floor(b / 2) * 2 == b, -1.0, 1.0))
    side = np.where(a < 0, side, 1.0).astype(np.result_type(a, b))
    return off_zero(a, side * b * np.power(size, b - 1.0)), off_zero(a, out * np.log(size))


def d_max(a: Array, b: Array, out: Array) -> tuple:
    by_a = 0.5 * (1.0 + np.sign(a - b))
    by_a = np.where(np.equal(a, b), 0.5, by_a)
    return by_a, 1.0 - by_a


def d_min(a: Array, b: Array, out: Array) -> tuple:
    by_b, by_a = d_max(a, b, out)
    return by_a, by_b


def d_aq(a: Array, b: Array, out: Array) -> tuple:
    root = np.sqrt(1.0 + b * b)
    return 1.0 / root, -out * b / (root * root)
