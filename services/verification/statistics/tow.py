"""Tug of war: the product of one minus each gap in accuracy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from services.verification.statistics.intervals import Interval, percentile_interval
from services.verification.statistics.scores import Floats


def tug_of_war(gaps: ArrayLike) -> Floats:
    """Return the product over the last axis of 1 - |gap|, gaps (..., parts): 1 where no accuracy differs, 0 where one differs by everything."""
    return np.prod(1.0 - np.abs(np.asarray(gaps, dtype=np.float64)), axis=-1)


def tug_of_war_interval(parts: Sequence[ArrayLike], *, level: float, rng: np.random.Generator, resamples: int = 999) -> Interval:
    """Return the percentile bootstrap interval, the records of each part resampled apart and both models in pairs.

    Each part (n,) holds right(subject) - right(reference) of its records: -1, 0 or 1.
    """
    drawn: list[Floats] = []
    for part in parts:
        signs = np.asarray(part, dtype=np.int64)
        counts = np.bincount(signs + 1, minlength=3)
        resampled = rng.multinomial(len(signs), counts / len(signs), size=resamples)
        drawn.append((resampled[:, 2] - resampled[:, 0]) / len(signs))
    value = float(tug_of_war([np.mean(np.asarray(part, dtype=np.float64)) for part in parts]))
    return percentile_interval(tug_of_war(np.stack(drawn, axis=1)), level=level, around=value)
