"""Means of records that come in groups: whole groups are resampled, since the answers about one person are not independent."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from services.verification.statistics.intervals import RESAMPLES, Interval, percentile_interval
from services.verification.statistics.scores import Floats


def groups_of(ids: Sequence[str]) -> list[str]:
    """Return the group of each record: its id up to the last slash (`author-180/07`), or the id itself."""
    return [one.rpartition("/")[0] or one for one in ids]


def group_sums(values: ArrayLike, groups: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the sum of `values` (n,) in each group, and how many they are."""
    sample = np.asarray(values, dtype=np.float64)
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(place, weights=sample).astype(np.float64), np.bincount(place).astype(np.float64)


def grouped_mean_interval(values: ArrayLike, groups: Sequence[str], *, level: float, rng: np.random.Generator) -> Interval:
    """Return the percentile bootstrap interval of the mean of `values` (n,), groups resampled; of records where there is one group alone."""
    sums, counts = group_sums(values, groups)
    if len(sums) < 2:
        sums, counts = np.asarray(values, dtype=np.float64), np.ones(len(groups))
    drawn = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
    return percentile_interval(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), level=level, around=float(sums.sum() / counts.sum()))
