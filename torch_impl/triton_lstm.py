"""The coordinate-wise LSTM optimizer as Triton kernels: steps, and the derivatives of a window of steps.

A program takes a block of B coordinates through the whole network, its state in registers. Arrays are [unit,
coordinate]; sizes are padded to powers of two, 16 at least, by rows of zeros, which stay 0 in a cell.
Weights lie one after the other in canonical order, padded by gate. A network is ``F`` inputs, ``P`` units of
Linear + ELU (0: none), cells of ``H0`` and ``H1`` units (0: none); ``FP`` and so on are the padded sizes,
``DP`` that of the first cell's inputs; the weights of the cells and of the output begin at ``AT0``, ``AT1``,
``ATO``. Launched by ``torch_impl.triton_network``, the only module that imports this one.
"""

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """tanh with a polynomial in x^2 near 0, where 1 - 2 / (exp(2 x) + 1) loses digits (common/lstm.c)."""
    z = x * x
    p = 0.0205909842 * z - 0.0056599848 * z * z - 0.0537210666
    p = p * z + 0.133311275
    p = p * z - 0.333332605
    p = p * z + 1.0
    return tl.where(z < 0.390625, x * p, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def _elu(x):
    near = x + x * x * ((x * 0.008375645 + 0.0416682888) * x * x + x * 0.1666666667 + 0.5)
    below = tl.where(x > -0.1, near, tl.exp(tl.minimum(x, 0.0)) - 1.0)
    return tl.where(x > 0.0, x, below)


@triton.jit
def _matrix(at, down: tl.constexpr, across: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Packed weights [R, K], steps ``down`` and ``across`` apart."""
    return tl.load(at + tl.arange(0, R)[:, None] * down + tl.arange(0, K)[None, :] * across)


@triton.jit
def _vector(at, R: tl.constexpr):
    """Packed weights [R] as [R, 1]."""
    return tl.load(at + tl.arange(0, R))[:, None]


@triton.jit
def _load(at, apart, cols, end, R: tl.constexpr, RP: tl.constexpr):
    """Rows [R, B] of an array, ``apart`` apart, as [RP, B]; zeros beyond the rows and from column ``end``."""
    r = tl.arange(0, RP)[:, None]
    return tl.load(
        at + r.to(tl.int64) * apart + cols[None, :], mask=(r < R) & (cols[None, :] < end), other=0.0
    )


@triton.jit
def _store(at, apart, cols, end, value, R: tl.constexpr, RP: tl.constexpr):
    """The inverse of ``_load``."""
    r = tl.arange(0, RP)[:, None]
    tl.store(at + r.to(tl.int64) * apart + cols[None, :], value, mask=(r < R) & (cols[None, :] < end))


@triton.jit
def _enter(phi, x, FP: tl.constexpr, PP: tl.constexpr, DOT: tl.constexpr):
    """Linear + ELU [PP, B] of inputs [FP, B]."""
    return _elu(tl.dot(_matrix(phi, FP, 1, PP, FP), x, input_precision=DOT) + _vector(phi + PP * FP, PP))


@triton.jit
def _sum(w, x, h, Q: tl.constexpr, DP: tl.constexpr, HP: tl.constexpr, DOT: tl.constexpr):
    """What goes into gate ``Q`` (i, f, g, o) of a cell, [HP, B]."""
    a = tl.dot(_matrix(w + Q * HP * DP, DP, 1, HP, DP), x, input_precision=DOT)
    a = tl.dot(_matrix(w + 4 * HP * DP + Q * HP * HP, HP, 1, HP, HP), h, acc=a, input_precision=DOT)
    return a + _vector(w + 4 * HP * (DP + HP) + Q * HP, HP)


@triton.jit
def _cell(w, x, h, c, DP: tl.constexpr, HP: tl.constexpr, DOT: tl.constexpr):
    """Gates i, f, g, o, the new c, and tanh of it, each [HP, B]."""
    i = tl.sigmoid(_sum(w, x, h, 0, DP, HP, DOT))
    f = tl.sigmoid(_sum(w, x, h, 1, DP, HP, DOT))
    g = _tanh(_sum(w, x, h, 2, DP, HP, DOT))
    o = tl.sigmoid(_sum(w, x, h, 3, DP, HP, DOT))
    now = f * c + i * g
    return i, f, g, o, now, _tanh(now)


@triton.jit
def _leave(w, h, HP: tl.constexpr, SQUASH: tl.constexpr):
    """The output [B]."""
    y = tl.sum(_vector(w, HP) * h, axis=0) + tl.load(w + HP)
    if SQUASH:
        y = _tanh(y)
    return y


@triton.jit
def _down(w, di, df, dg, do, KP: tl.constexpr, HP: tl.constexpr, DOT: tl.constexpr):
    """What the gates' derivatives [HP, B] give below their weights [4, HP, KP]: [KP, B]."""
    a = tl.dot(_matrix(w, 1, KP, KP, HP), di, input_precision=DOT)
    a = tl.dot(_matrix(w + HP * KP, 1, KP, KP, HP), df, acc=a, input_precision=DOT)
    a = tl.dot(_matrix(w + 2 * HP * KP, 1, KP, KP, HP), dg, acc=a, input_precision=DOT)
    return tl.dot(_matrix(w + 3 * HP * KP, 1, KP, KP, HP), do, acc=a, input_precision=DOT)


@triton.jit
def _pull_cell(
    w, x, h, c, dh, dc, grad, apart, cols, end, BELOW: tl.constexpr, H: tl.constexpr, DP: tl.constexpr,
    HP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One cell backward: dh, dc of the state before, and of the input where BELOW.

    Args:
        x, h, c: input and the state before; dh, dc: of the state after.
        grad: the four gates' derivatives go here, [4 H] rows ``apart`` apart.
    """
    i, f, g, o, _, t = _cell(w, x, h, c, DP, HP, DOT)
    d = dc + dh * o * (1.0 - t * t)
    do = dh * t * o * (1.0 - o)
    di = d * g * i * (1.0 - i)
    df = d * c * f * (1.0 - f)
    dg = d * i * (1.0 - g * g)
    rows = tl.cast(apart, tl.int64) * H
    _store(grad, apart, cols, end, di, H, HP)
    _store(grad + rows, apart, cols, end, df, H, HP)
    _store(grad + 2 * rows, apart, cols, end, dg, H, HP)
    _store(grad + 3 * rows, apart, cols, end, do, H, HP)
    below = x
    if BELOW:
        below = _down(w, di, df, dg, do, DP, HP, DOT)
    dh = _down(w + 4 * HP * DP, di, df, dg, do, HP, HP, DOT)
    return dh, d * f, below


@triton.jit(do_not_specialize=["first", "low", "steps", "n", "columns", "apart", "after", "hop"])
def roll(
    phi, x, h0, c0, h1, c1, to_h0, to_c0, to_h1, to_c1, out, first, low, steps, n, columns, apart, after, hop,
    F: tl.constexpr, P: tl.constexpr, H0: tl.constexpr, H1: tl.constexpr,
    FP: tl.constexpr, PP: tl.constexpr, DP: tl.constexpr, HP0: tl.constexpr, HP1: tl.constexpr,
    AT0: tl.constexpr, AT1: tl.constexpr, ATO: tl.constexpr, SQUASH: tl.constexpr, B: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Steps ``first`` and on of inputs x [T, F, n], at coordinates ``low`` and on.

    Args:
        h0, c0, h1, c1: the state before, ``columns`` coordinates in rows ``apart`` apart.
        to_h0 and so on: the state after each step, rows ``after`` apart, ``hop`` from step to step (0: in its
            place); may be the arrays of the state before where there is one step.
        out: outputs [steps, columns].
    """
    cols = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    a, b = _load(h0, apart, cols, columns, H0, HP0), _load(c0, apart, cols, columns, H0, HP0)
    if H1 > 0:
        c, d = _load(h1, apart, cols, columns, H1, HP1), _load(c1, apart, cols, columns, H1, HP1)
    tl.debug_barrier()  # all is read before anything is written in its place
    for t in range(steps):
        at = (tl.cast(first, tl.int64) + t) * F * n + low
        z = _load(x + at, n, cols, n - low, F, FP)
        if P > 0:
            z = _enter(phi, z, FP, PP, DOT)
        _, _, _, o, b, squashed = _cell(phi + AT0, z, a, b, DP, HP0, DOT)
        a = o * squashed
        place = tl.cast(hop, tl.int64) * t
        _store(to_h0 + place, after, cols, columns, a, H0, HP0)
        _store(to_c0 + place, after, cols, columns, b, H0, HP0)
        if H1 > 0:
            _, _, _, o, d, squashed = _cell(phi + AT1, a, c, d, HP0, HP1, DOT)
            c = o * squashed
            _store(to_h1 + place, after, cols, columns, c, H1, HP1)
            _store(to_c1 + place, after, cols, columns, d, H1, HP1)
        y = _leave(phi + ATO, c, HP1, SQUASH) if H1 > 0 else _leave(phi + ATO, a, HP0, SQUASH)
        tl.store(out + tl.cast(columns, tl.int64) * t + cols, y, mask=cols < columns)


@triton.jit(do_not_specialize=["first", "low", "steps", "n", "apart", "kept", "size"])
def pull(
    phi, x, v, h0, c0, h1, c1, dh0, dc0, dh1, dc1, xs, pre, dpre, g0, g1, dy, first, low, steps, n, apart,
    kept, size, F: tl.constexpr, P: tl.constexpr, H0: tl.constexpr, H1: tl.constexpr,
    FP: tl.constexpr, PP: tl.constexpr, DP: tl.constexpr, HP0: tl.constexpr, HP1: tl.constexpr,
    AT0: tl.constexpr, AT1: tl.constexpr, ATO: tl.constexpr, SQUASH: tl.constexpr, B: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """A window of steps backward: the derivatives of <v, out> in all that weights are added to.

    Args:
        x: inputs [T, F, n]; v: [T, n]; both from step ``first`` and coordinate ``low`` on.
        h0, c0, h1, c1: states [row, step, size] before each step and after the last; rows ``kept`` apart.
        dh0, dc0, dh1, dc1: of the state after the window, then of that before, [row, size].
        xs, pre, dpre, g0, g1, dy: the inputs, what ELU gives, and derivatives in its argument, the gates'
            sums and the output before tanh; rows of steps of ``size`` coordinates, ``apart`` apart.
    """
    cols = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    a, b = _load(dh0, size, cols, size, H0, HP0), _load(dc0, size, cols, size, H0, HP0)
    if H1 > 0:
        c, d = _load(dh1, size, cols, size, H1, HP1), _load(dc1, size, cols, size, H1, HP1)
    for k in range(steps):
        t = steps - 1 - k
        now = tl.cast(first, tl.int64) + t
        place = tl.cast(size, tl.int64) * t
        up = tl.load(v + now * n + low + cols, mask=cols < n - low, other=0.0)
        if H1 > 0:
            after = _load(h1 + place + size, kept, cols, size, H1, HP1)
            y = _leave(phi + ATO, after, HP1, SQUASH)
        else:
            after = _load(h0 + place + size, kept, cols, size, H0, HP0)
            y = _leave(phi + ATO, after, HP0, SQUASH)
        if SQUASH:
            up = up * (1.0 - y * y)
        tl.store(dy + place + cols, up, mask=cols < size)
        if H1 > 0:
            c += _vector(phi + ATO, HP1) * up[None, :]
            below = _load(h0 + place + size, kept, cols, size, H0, HP0)
            h, m = _load(h1 + place, kept, cols, size, H1, HP1), _load(c1 + place, kept, cols, size, H1, HP1)
            c, d, below = _pull_cell(
                phi + AT1, below, h, m, c, d, g1 + place, apart, cols, size, 1, H1, HP0, HP1, DOT
            )
            a += below
        else:
            a += _vector(phi + ATO, HP0) * up[None, :]
        z = _load(x + now * F * n + low, n, cols, n - low, F, FP)
        _store(xs + place, apart, cols, size, z, F, FP)
        if P > 0:
            z = _enter(phi, z, FP, PP, DOT)
            _store(pre + place, apart, cols, size, z, P, PP)
        h, m = _load(h0 + place, kept, cols, size, H0, HP0), _load(c0 + place, kept, cols, size, H0, HP0)
        a, b, below = _pull_cell(
            phi + AT0, z, h, m, a, b, g0 + place, apart, cols, size, P > 0, H0, DP, HP0, DOT
        )
        if P > 0:
            below = below * tl.where(z > 0.0, 1.0, z + 1.0)
            _store(dpre + place, apart, cols, size, below, P, PP)
    _store(dh0, size, cols, size, a, H0, HP0)
    _store(dc0, size, cols, size, b, H0, HP0)
    if H1 > 0:
        _store(dh1, size, cols, size, c, H1, HP1)
        _store(dc1, size, cols, size, d, H1, HP1)
