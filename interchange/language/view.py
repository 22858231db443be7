"""The matrix view of a tensor: one row for every output, one column for every input (FORMATS.md section 3).

Tensor operators see a tensor through its view. A tensor without one counts as one row. Which axes are the
rows is never guessed from sizes: it is what the layer, the problem or the user says.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from common.errors import L2OError

Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class View:
    """How one tensor is looked at.

    Attributes:
        shape: the tensor's own.
        split: its shape while operators look at it: ``shape``, or with one axis cut in two where the tensor
            holds several matrices (the groups of a convolution; packed queries, keys and values).
        rows: the axes of ``split`` that number the rows, counted from the end, as leading axes for steps or
            lanes may come before.
        parts: the axis of ``split`` that numbers the matrices, if there are several.
        matrix: False for a tensor without a view, which has no axes of rows.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    rows: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()
    matrix: bool = False

    @property
    def axes(self) -> Axes:
        """Axes of rows, of columns and of parts, each counted from the end of ``split``."""
        taken = self.rows + self.parts
        columns = tuple(axis for axis in range(-len(self.split), 0) if axis not in taken)
        return self.rows, columns, self.parts

    @property
    def sizes(self) -> dict[str, int]:
        """``rows`` and ``cols`` of one matrix, and ``numel`` of the tensor, as expressions read them."""
        rows, columns, _ = ([self.split[axis] for axis in axes] for axes in self.axes)
        return {"rows": math.prod(rows), "cols": math.prod(columns), "numel": math.prod(self.shape)}

    def reduced(self, kind: frozenset[str] | None) -> tuple[int, ...]:
        """The shape of a value of a kind (``Program.kinds``): 1 along the axes over which it is the same."""
        if kind is None or kind == FULL:
            return self.split
        named = dict(zip(("rows", "columns", "parts"), self.axes, strict=True))
        kept = {axis for name in kind for axis in named[name]}
        return tuple(n if k - len(self.split) in kept else 1 for k, n in enumerate(self.split))


FULL = frozenset({"rows", "columns", "parts"})


def vector(shape: Sequence[int]) -> View:
    """The view of a tensor that is no matrix: one row."""
    return View(tuple(shape), tuple(shape))


def matrix(
    shape: Sequence[int],
    rows: Sequence[int],
    columns: Sequence[int] | None = None,
    parts: int = 1,
    along: int | None = None,
) -> View:
    """A view with rows along some axes.

    Args:
        rows: axes that number the outputs.
        columns: all the others, where they are to be checked.
        parts: matrices that lie one after another.
        along: the axis along which they do; by default the first of the rows.

    Raises:
        L2OError: axes that are not the tensor's, are named twice or left out, or cannot be cut.
    """
    shape, n = tuple(shape), len(shape)
    try:
        own = tuple(range(n)[axis] for axis in rows)
        rest = tuple(axis for axis in range(n) if axis not in own)
        others = rest if columns is None else tuple(range(n)[axis] for axis in columns)
    except (IndexError, TypeError):
        raise L2OError(f"expected axes of a tensor of shape {shape}, got {rows} and {columns}") from None
    if not own or len(set(own)) != len(own) or sorted(others) != sorted(rest):
        raise L2OError(
            f"expected every axis of a tensor of shape {shape} once, as rows or as columns, and one at least "
            f"as rows, got rows {tuple(rows)} and columns {others}"
        )
    if parts == 1:
        return View(shape, shape, tuple(axis - n for axis in own), (), matrix=True)
    first = own[0] if along is None else along % n
    if not isinstance(parts, int) or parts < 1 or shape[first] % parts:
        raise L2OError(f"expected a number of matrices that divides {shape[first]}, got {parts}")
    split = (*shape[:first], parts, shape[first] // parts, *shape[first + 1 :])
    placed = tuple((axis + (axis >= first)) - len(split) for axis in own)
    return View(shape, split, placed, (first - len(split),), matrix=True)


def canonical(shape: Sequence[int], has_matrix: bool | None = None) -> View:
    """The view of a tensor in canonical layout ([in, out], [kh, kw, in, out]): the last axis has the rows.

    Args:
        has_matrix: what the problem says of the tensor; None for every tensor of two or more axes.
    """
    wanted = len(shape) >= 2 if has_matrix is None else has_matrix
    return matrix(shape, (-1,)) if wanted else vector(shape)


def outputs_first(shape: Sequence[int]) -> View:
    """The view of a tensor in torch's layout ([out, in], [out, in, kh, kw]): axis 0 has the rows."""
    return matrix(shape, (0,)) if len(shape) >= 2 else vector(shape)


def chosen(shape: Sequence[int], option: object, default: View) -> View:
    """The view that an option ``matrix`` asks for: None, True, False or (axes of rows, axes of columns).

    True is the default where that is a matrix, and otherwise rows along axis 0. After the axes there may be
    the number of matrices in the tensor, and the axis along which they lie (``matrix``).

    Raises:
        L2OError: the option is none of these, or does not fit the tensor.
    """
    if option is None or (option is True and default.matrix):
        return default
    if option is False:
        return vector(shape)
    if option is True:
        return matrix(shape, (0,))
    if isinstance(option, (tuple, list)) and 2 <= len(option) <= 4:
        return matrix(shape, *option)
    raise L2OError(
        f"matrix: expected True, False or a pair of axes, (rows, columns), as ((0,), (1, 2, 3)), got {option}"
    )


def slices(views: Sequence[View]) -> Iterator[tuple[slice, View]]:
    """The places of tensors in one flat vector [N] that holds them one after another, in C order."""
    start = 0
    for view in views:
        stop = start + math.prod(view.shape)
        yield slice(start, stop), view
        start = stop


def of_shapes(shapes: Sequence["View | Sequence[int]"]) -> tuple[View, ...]:
    """Views as they are; shapes in canonical layout as their views."""
    return tuple(each if isinstance(each, View) else canonical(each) for each in shapes)


def trial(count: int) -> tuple[View, ...]:
    """Views for ``count`` coordinates on which an expression is tried: matrices of 3 x 4 and a vector."""
    matrices = max(0, count - 4) // 12
    rest = count - 12 * matrices
    return (canonical((4, 3)),) * matrices + ((vector((rest,)),) if rest else ())


SIZES: Mapping[str, str] = {
    "rows": "rows of the matrix view: outputs",
    "cols": "columns of the matrix view: inputs",
    "numel": "coordinates of the tensor",
}
