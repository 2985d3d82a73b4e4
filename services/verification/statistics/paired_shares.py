"""The score interval of the difference of two paired shares, of many tables at once.

Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design", Statistics in
Medicine 17, 1998. Numpy alone: the process that freezes plans loads it as well.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
HALVINGS = 40  # of an interval no longer than 2: the bounds are right to 2e-12
EDGE = 1.0 - 1e-12


def score_interval(gained: NDArray[np.int64], lost: NDArray[np.int64], trials: int, *, z: float) -> tuple[Floats, Floats]:
    """Return both bounds, (k,), of the difference (gained - lost) / trials; each table is solved once however often it comes.

    Args:
        gained, lost: (k,) records that only the first, or only the second, is right on. trials: records of each table, at least 1.
        z: normal quantile of the level, 1.645 for 90 %.
    """
    pairs, back = np.unique(np.stack([gained, lost], axis=1), axis=0, return_inverse=True)
    up, down = (pairs[:, place].astype(np.float64) for place in (0, 1))
    upper = _upper(np.concatenate([up, down]), np.concatenate([down, up]), trials, z)
    high, low = upper[: len(up)], -upper[len(up) :]
    back = back.reshape(-1)
    return low[back], high[back]


def _upper(gained: Floats, lost: Floats, trials: int, z: float) -> Floats:
    """Return the difference at which the score statistic falls to -z, by halving, (k,)."""
    below, above = (gained - lost) / trials, np.full(len(gained), EDGE)
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        inside = _statistic(gained, lost, trials, middle) > -z
        below, above = np.where(inside, middle, below), np.where(inside, above, middle)
    return below


def _statistic(gained: Floats, lost: Floats, trials: int, difference: Floats) -> Floats:
    """Return the score statistic of H0: p_gained - p_lost = difference, (k,); p_lost is the likeliest under H0."""
    b = -gained - lost + (2.0 * trials - gained + lost) * difference
    root = np.sqrt(np.maximum(b * b + 8.0 * trials * lost * difference * (1.0 - difference), 0.0))
    variance = trials * ((root - b) / (2.0 * trials) + difference * (1.0 - difference))
    return (gained - lost - trials * difference) / np.sqrt(np.maximum(variance, 1e-300))
