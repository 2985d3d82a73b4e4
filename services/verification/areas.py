"""Readings that are areas under the curve, of one model and of two on the same records."""

from collections.abc import Mapping

from services.learning.run import Run
from services.verification.outputs import generator_of
from services.verification.reading import Reading
from services.verification.statistics.roc import Sides, auc, auc_interval, paired_auc_difference
from services.verification.statistics.scores import Floats


def area(sides: Sides, weights: Floats, *, level: float, n: int, detail: Mapping[str, object]) -> Reading:
    """Return the AUC with DeLong's interval; `weights` (m,) are those of the non-members."""
    low, high = auc_interval(*sides, level=level, weights=weights)
    return Reading(auc(*sides, weights), low, high, level, n, detail)


def area_difference(mine: Sides, theirs: Sides, weights: Floats, run: Run, purpose: str, *, level: float, n: int) -> Reading:
    """Return AUC(mine) - AUC(theirs) on the same rows, both sides resampled in pairs as the run's seed and `purpose` have it."""
    value, (low, high) = paired_auc_difference(mine, theirs, level=level, rng=generator_of(run, purpose), weights=weights)
    return Reading(value, low, high, level, n)
