"""Sparse linear fits by orthogonal matching pursuit (Pati et al. 1993)."""

from collections.abc import Iterator

import numpy as np

_EXACT = 1e-14  # relative squared error


def pursuit(x: np.ndarray, y: np.ndarray, count: int) -> Iterator[tuple[list[int], tuple[float, ...], float]]:
    """Orthogonal matching pursuit: columns added one by one, weights of all fitted anew each time.

    Args:
        x: [columns, rows]; rows and columns that are not finite, or far beyond y, are left out.
        y: [rows].

    Yields:
        The columns so far, their weights, and the squared error relative to that of 0.
    """
    yield from Columns(x, np.isfinite(y)).pursuit(y, count)


class Columns:
    """Columns [columns, rows] with their products, which pursuits of several targets share."""

    def __init__(self, x: np.ndarray, rows: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            finite = np.isfinite(x)
            usable = np.flatnonzero(finite.mean(1) > 0.99)
            self.rows = np.flatnonzero(finite[usable].all(0) & rows)
            x = x[np.ix_(usable, self.rows)]
            norms = np.sqrt(np.square(x).mean(1))
            alive = np.isfinite(norms) & (norms > 0.0)
        self.usable, self.norms = usable[alive], norms[alive]
        self.x = x[alive] / self.norms[:, None]
        self.gram = self.x @ self.x.T

    def pursuit(self, y: np.ndarray, count: int) -> Iterator[tuple[list[int], tuple[float, ...], float]]:
        """As the function of that name, for a target that is finite in the rows."""
        x, gram, y = self.x, self.gram, y[self.rows]
        total, target = float(y @ y), x @ y
        if not len(x) or total <= 0.0:
            return
        chosen: list[int] = []
        weights = np.zeros(0)
        for _ in range(min(count, len(x))):
            gain = np.abs(target - gram[:, chosen] @ weights) if chosen else np.abs(target)
            gain[chosen] = -1.0
            chosen.append(int(gain.argmax()))
            weights = np.linalg.lstsq(gram[np.ix_(chosen, chosen)], target[chosen], rcond=1e-13)[0]
            error = self._error(chosen, weights, y) / total
            yield self._found(chosen, weights, error)
            if error < _EXACT:
                # Columns taken before the right ones were there weigh nothing beside them.
                kept = np.abs(weights) * np.sqrt(len(y)) > 1e-6 * np.sqrt(total)
                if not kept.all():
                    chosen = [i for i, keep in zip(chosen, kept, strict=True) if keep]
                    weights = np.linalg.lstsq(x[chosen].T, y, rcond=1e-13)[0]
                    yield self._found(chosen, weights, self._error(chosen, weights, y) / total)
                return

    def _error(self, chosen: list[int], weights: np.ndarray, y: np.ndarray) -> float:
        residual = y - weights @ self.x[chosen]
        return float(residual @ residual)

    def _found(
        self, chosen: list[int], weights: np.ndarray, error: float
    ) -> tuple[list[int], tuple[float, ...], float]:
        scaled = weights / self.norms[chosen]
        return [int(self.usable[i]) for i in chosen], tuple(map(float, scaled)), error
