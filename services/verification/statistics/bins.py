"""Bins that several samples share, few enough and round enough that no record can be read off them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.verification.statistics.scores import Floats

RECORDS_PER_BIN = 4
MOST_BINS = 30
LEAST_BINS = 4
FLOOR = 1e-6
SPREAD = 100.0


def bin_count(records: int) -> int:
    """Return how many bins so many records are cut into: one for every four, at least 4 and at most 30."""
    return max(LEAST_BINS, min(MOST_BINS, records // RECORDS_PER_BIN))


def skewed(samples: Sequence[Floats]) -> bool:
    """Say whether non-negative values span so much that only a logarithmic axis shows them: the upper decile is 100 times the lower."""
    pooled = np.concatenate(list(samples))
    low, high = np.quantile(np.maximum(pooled, FLOOR), [0.1, 0.9])
    return bool(pooled.min() >= 0 and high / low > SPREAD)


def shared_edges(samples: Sequence[Floats], bins: int, *, log: bool = False) -> Floats:
    """Return the edges (bins + 1,) of equal bins over all samples; the ends are rounded outwards, so that they are nobody's value.

    With `log` the bins are equal on the logarithmic axis, and what lies below 1e-6 counts as 1e-6.
    """
    pooled = np.concatenate(list(samples))
    if log:
        exponents = np.log10(np.maximum(pooled, FLOOR))
        return np.power(10.0, np.linspace(np.floor(exponents.min()), _above(float(exponents.max())), bins + 1))
    low, high = float(pooled.min()), float(pooled.max())
    step = _round_step(max(high - low, FLOOR))
    bottom, top = np.floor(low / step) * step, np.ceil(high / step) * step
    return np.linspace(bottom, top if top > bottom else bottom + step, bins + 1)


def counts_in(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return how many values fall into each bin, (k,); what lies beyond an end counts to the last bin there, so that none is lost."""
    inside = np.clip(values, edges[0], edges[-1])
    return np.histogram(inside, bins=edges)[0].astype(np.int64)


def _round_step(span: float) -> float:
    """Return a step of 1, 2 or 5 times a power of ten, of which `span` is five to ten."""
    decade = 10.0 ** np.floor(np.log10(span))
    return float(decade / (5 if span < 2 * decade else 2 if span < 5 * decade else 1))


def _above(exponent: float) -> float:
    """Return the next half decade above, so that the top edge leaves room for the largest value."""
    return float(np.floor(exponent * 2 + 1) / 2)
