"""True positive rates over a grid of false positive rates."""

import numpy as np

from services.verification.statistics.scores import Floats


def rates_at(members: Floats, non_members: Floats, weights: Floats, grid: Floats) -> Floats:
    """Return for each false positive rate of `grid` the share of members above the lowest threshold that keeps to it, (len(grid),).

    Scores rise with membership; comparison is strict, so that ties count as false positives. `weights` (n,) are those of the non-members.
    """
    order = np.argsort(-non_members, kind="stable")
    ranked, above = non_members[order], np.cumsum(weights[order])
    above /= above[-1]
    sorted_members = np.sort(members)
    allowed = np.searchsorted(above, grid + 1e-12, side="right")
    thresholds = np.where(allowed < len(ranked), ranked[np.minimum(allowed, len(ranked) - 1)], -np.inf)
    return 1.0 - np.searchsorted(sorted_members, thresholds, side="right") / len(members)
