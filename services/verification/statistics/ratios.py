"""Medians and ratios of a few repeated runs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from services.verification.statistics.intervals import Interval, percentile_interval
from services.verification.statistics.scores import Floats

RESAMPLES = 9999


def _medians(values: Floats, *, rng: np.random.Generator) -> Floats:
    return np.median(values[rng.integers(0, len(values), size=(RESAMPLES, len(values)))], axis=1)


def median_interval(values: ArrayLike, *, level: float, rng: np.random.Generator) -> Interval:
    """Return the percentile bootstrap interval of the median of `values` (n,), widened to the order statistics that hold it at `level`.

    Of seven values the bootstrap alone is the second to the sixth, which hold the median in .875 of samples whatever `level` of .90 says. Order
    statistics go by the sign test (binomial); of fewer values than that takes, both extremes.
    """
    sample = np.sort(np.asarray(values, dtype=np.float64))
    low, high = percentile_interval(_medians(sample, rng=rng), level=level)
    place = max(1, int(binom.ppf((1 - level) / 2, len(sample), 0.5)))
    return Interval(min(low, float(sample[place - 1])), max(high, float(sample[-place])))


class Ratio(NamedTuple):
    """The median of paired ratios with its bootstrap interval on the log scale, None where a ratio is 0; `per_pair` holds the ratios."""

    value: float
    interval: Interval
    log_interval: Interval | None
    per_pair: Floats


def median_ratio(numerators: ArrayLike, denominators: ArrayLike, *, level: float, rng: np.random.Generator) -> Ratio:
    """Return the median of numerators / denominators (n,), in pairs; denominators are positive, and a numerator of 0 has no logarithm."""
    above, below = (np.asarray(side, dtype=np.float64) for side in (numerators, denominators))
    ratios = above / below
    value = float(np.median(ratios))
    if np.any(above == 0):
        return Ratio(value, Interval(float(ratios.min()), float(ratios.max())), None, ratios)
    log_interval = median_interval(np.log(ratios), level=level, rng=rng)
    low, high = (float(np.exp(end)) for end in log_interval)
    return Ratio(value, Interval(min(low, value), max(high, value)), log_interval, ratios)
