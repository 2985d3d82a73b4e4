"""Tests by ranks."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

EXACT_BELOW = 50
RESAMPLES = 9999


def mann_whitney_p(first: ArrayLike, second: ArrayLike, *, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of H0: first (n,) and second (m,) come from one distribution.

    Below 50 rows in the first: exact where there is no tie, else by random permutations; from 50: the normal approximation with ties.
    """
    inside, outside = (np.asarray(side, dtype=np.float64) for side in (first, second))
    joined = np.concatenate([inside, outside])
    if np.ptp(joined) == 0:
        return 1.0
    if len(inside) >= EXACT_BELOW:
        return float(stats.mannwhitneyu(inside, outside, method="asymptotic").pvalue)
    if len(np.unique(joined)) == len(joined):
        return float(stats.mannwhitneyu(inside, outside, method="exact").pvalue)
    method: Any = stats.PermutationMethod(n_resamples=RESAMPLES, batch=1000, rng=rng)
    return float(stats.mannwhitneyu(inside, outside, method=method).pvalue)
