"""Equivalence tests: is an interval inside a band, and which of several readings lie beyond it."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from scipy import stats

from services.verification.statistics.intervals import Interval, normal_quantile


class Place(StrEnum):
    """Where an interval lies with respect to a band."""

    INSIDE = "inside"
    ABOVE = "above"
    BELOW = "below"
    UNDECIDED = "undecided"


def place(interval: Interval, band: Interval) -> Place:
    """Return where `interval` lies. A 90 % interval inside the band is two one-sided tests at 5 % (TOST)."""
    if interval.low > band.high:
        return Place.ABOVE
    if interval.high < band.low:
        return Place.BELOW
    if band.low <= interval.low and interval.high <= band.high:
        return Place.INSIDE
    return Place.UNDECIDED


def beyond_p(value: float, interval: Interval, band: Interval, *, level: float) -> float:
    """Return the one-sided p-value of H0: the truth lies within the band, from the side of the interval that faces the band.

    The interval's half-width over its normal quantile is taken as the standard error, so the p-value can be recomputed from what is printed:
    it is below (1 - level) / 2 exactly where the whole interval lies beyond the band.
    """
    if band.low <= value <= band.high:
        return 1.0
    distance, half = (value - band.high, value - interval.low) if value > band.high else (band.low - value, interval.high - value)
    if half <= 0:
        return 0.0
    return float(stats.norm.sf(distance * normal_quantile(level) / half))


def holm(p_values: Sequence[float], *, alpha: float) -> list[bool]:
    """Return for each p-value whether it is significant at `alpha` after Holm's step-down correction over all of them."""
    significant = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable").tolist()):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        significant[index] = True
    return significant


def detectable_effect(half_width: float, epsilon: float, *, level: float, alpha: float, tests: int, power: float = 0.8) -> float:
    """Return the difference from the reference that would have been called outside with `power`, after correction over `tests` tests."""
    standard_error = half_width / normal_quantile(level)
    return epsilon + standard_error * float(stats.norm.ppf(1 - alpha / max(tests, 1)) + stats.norm.ppf(power))


def equivalence_power(standard_error: float, epsilon: float, *, alpha: float = 0.05) -> float:
    """Return the chance that two one-sided tests at `alpha` show equivalence when the true difference is 0; 0 where they never can."""
    if standard_error <= 0:
        return 1.0
    reach = epsilon / standard_error - float(stats.norm.ppf(1 - alpha))
    return max(0.0, 2.0 * float(stats.norm.cdf(reach)) - 1.0)
