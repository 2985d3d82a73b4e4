"""Intervals of proportions, paired proportions and means."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from services.verification.statistics.paired_shares import score_interval
from services.verification.statistics.scores import Floats

BCA_ROWS = 5000
RESAMPLES = 999


class Interval(NamedTuple):
    """A lower and an upper bound."""

    low: float
    high: float


def normal_quantile(level: float) -> float:
    """Return z such that (-z, z) holds `level` of a standard normal: 1.645 for .90, 1.960 for .95."""
    return float(stats.norm.ppf(0.5 + level / 2))


def root(gap: Callable[[float], float], low: float, high: float) -> float:
    """Return the x between `low` and `high` at which `gap`, of opposite signs at the two, is 0."""
    solve: Any = optimize.brentq
    return float(solve(gap, low, high))


def clopper_pearson(successes: int, trials: int, *, level: float) -> Interval:
    """Return the exact interval of a proportion; [0, 1] without trials."""
    if trials == 0:
        return Interval(0.0, 1.0)
    tail = (1.0 - level) / 2
    low = float(stats.beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1.0 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return Interval(low, high)


def paired_proportions(gained: int, lost: int, trials: int, *, level: float) -> Interval:
    """Return the score interval of (gained - lost) / trials, where `gained` rows are right only in the first model and `lost` only in the second.

    It has a width even where the two models agree on every row: few rows cannot show that they agree on the next. Source: Tango, 1998.
    """
    if trials == 0:
        return Interval(-1.0, 1.0)
    low, high = score_interval(np.array([gained]), np.array([lost]), trials, z=normal_quantile(level))
    return Interval(float(low[0]), float(high[0]))


def percentile_interval(drawn: Floats, *, level: float, around: float | None = None) -> Interval:
    """Return the percentile interval of resampled values (b,), widened where it leaves out the value `around`."""
    tail = (1.0 - level) / 2
    low, high = (float(q) for q in np.quantile(drawn, [tail, 1.0 - tail]))
    return Interval(low, high) if around is None else Interval(min(low, around), max(high, around))


def _normal_mean_interval(sample: Floats, *, level: float) -> Interval:
    centre, half = float(sample.mean()), normal_quantile(level) * float(sample.std(ddof=1)) / float(np.sqrt(len(sample)))
    return Interval(centre - half, centre + half)


def mean_interval(values: ArrayLike, *, level: float, rng: np.random.Generator) -> Interval:
    """Return the BCa bootstrap interval of the mean of `values` (n,); above 5000 rows the normal one, to which it converges.

    A single row, or equal rows, give an interval without width.
    """
    sample = np.asarray(values, dtype=np.float64)
    centre = float(sample.mean())
    if len(sample) < 2 or float(np.ptp(sample)) == 0.0:
        return Interval(centre, centre)
    if len(sample) > BCA_ROWS:
        return _normal_mean_interval(sample, level=level)
    found = stats.bootstrap(
        (sample,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="BCa", batch=100, vectorized=True, rng=rng
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not (np.isfinite(low) and np.isfinite(high)):
        return _normal_mean_interval(sample, level=level)
    return Interval(low, high)
