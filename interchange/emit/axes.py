"""How a generated file sees a tensor as a matrix: plain functions of its shape, copied into such files."""


def axes_of(shape, rows, usual):
    """Axes of rows and of columns, counted from the end; no rows for a tensor that is no matrix.

    ``rows`` names the axes that number the outputs, () says that there are none; None is ``usual`` for two or
    more axes. ``ValueError``: they are no axes of the tensor, or one is named twice.
    """
    n = len(shape)
    if rows is None:
        rows = usual if n >= 2 else ()
    try:
        own = tuple(range(n)[axis] - n for axis in rows)
    except (IndexError, TypeError):
        own = None
    if own is None or len(set(own)) < len(own):
        told = f"rows: expected axes of a tensor of shape {tuple(shape)}, as (0,), () or None, got {rows!r}"
        raise ValueError(told) from None
    return own, tuple(axis for axis in range(-n, 0) if axis not in own), ()


def size_of(shape, axes):
    """The product of the sizes along some axes."""
    size = 1
    for axis in axes:
        size *= shape[axis]
    return size


def kept_shape(shape, axes, kept):
    """The shape of state that has one value for each row, each column, both or neither."""
    own = [axis for side, has in zip(axes, (*kept, False), strict=True) if has for axis in side]
    return tuple(n if k - len(shape) in own else 1 for k, n in enumerate(shape))
