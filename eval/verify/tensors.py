"""How far two tensors of many batches are apart, without keeping them.

difference = TensorDifference()
difference.add(reference, candidate)        # again and again
difference.max, difference.mean, difference.cosine
"""

from typing import Any

import numpy as np
import numpy.typing as npt


class TensorDifference:
    """Sums over all elements so far."""

    def __init__(self) -> None:
        self.max = 0.0  # of the absolute differences
        self._count = 0
        self._absolute = 0.0
        self._sums = np.zeros(5)  # a, b, aa, bb, ab

    def add(self, reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> None:
        """Add two arrays of one shape; a NaN or an infinity anywhere stays in all three numbers."""
        a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        if a.shape != b.shape:
            raise ValueError(f"{reference.shape} and {candidate.shape} are not one shape")
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
            self.max = float(np.maximum(self.max, apart.max(initial=0.0)))  # keeps a NaN, which max() may lose
            self._absolute += float(apart.sum())
            self._sums += [a.sum(), b.sum(), a @ a, b @ b, a @ b]
        self._count += a.size

    @property
    def mean(self) -> float:
        """The mean absolute difference."""
        return self._absolute / max(1, self._count)

    @property
    def cosine(self) -> float:
        """The cosine of both, less the reference's mean.

        Logits lie around one large negative number; without taking it off, the cosine of any two would be near 1.
        """
        if self.max == 0:
            return 1.0
        a, b, aa, bb, ab = self._sums
        with np.errstate(invalid="ignore"):
            mean = a / max(1, self._count)
            shift = mean * mean * self._count
            along = ab - mean * (a + b) + shift
            lengths = (aa - 2 * mean * a + shift) * (bb - 2 * mean * b + shift)
        return float(along / np.sqrt(lengths)) if lengths > 0 else float("nan" if np.isnan(lengths) else 0.0)
