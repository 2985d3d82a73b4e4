"""How far one set of numbers is from another."""

import numpy as np
from numpy.typing import ArrayLike

from services.verification.statistics.scores import Floats


def wasserstein(first: ArrayLike, second: ArrayLike) -> float:
    """Return the Wasserstein-1 distance of two sets of numbers (n,) and (m,): the mean of |sorted a - sorted b| where they are as many.

    Otherwise it is the area between their distribution functions.
    """
    one, other = np.sort(np.asarray(first, dtype=np.float64)), np.sort(np.asarray(second, dtype=np.float64))
    if len(one) == len(other):
        return float(np.abs(one - other).mean())
    edges = np.sort(np.concatenate([one, other]))
    below = [np.searchsorted(values, edges[:-1], side="right") / len(values) for values in (one, other)]
    return float(np.sum(np.abs(below[0] - below[1]) * np.diff(edges)))


def transport_of_steps(first: Floats, second: Floats, rows: np.ndarray) -> float:
    """Return the mean over steps of the distance between the columns of two tables (n, H), on the rows of `rows` (k,)."""
    return float(np.abs(np.sort(first[rows], axis=0) - np.sort(second[rows], axis=0)).mean())
