"""Areas under the curve, true positive rates and the epsilon they imply.

Scores are oriented so that higher means more member-like. Non-members may carry weights (class mixes made equal).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from services.verification.statistics.intervals import Interval, clopper_pearson, normal_quantile, percentile_interval, root
from services.verification.statistics.scores import Floats

CELLS = 4_000_000
EDGE = 1e-9  # at areas of 0 and 1 the equation of the score interval has a second, trivial root


def _normalised(weights: ArrayLike | None, count: int) -> Floats:
    """Return weights (count,) that sum to 1; equal ones without `weights`."""
    if weights is None:
        return np.full(count, 1.0 / count)
    given = np.asarray(weights, dtype=np.float64)
    return given / given.sum()


def placements(members: ArrayLike, non_members: ArrayLike, weights: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Return for each member the weight of non-members below it, (m,), and for each non-member the share of members above it, (n,).

    Ties count one half; both have the AUC as their (weighted) mean.
    """
    inside = np.asarray(members, dtype=np.float64)
    outside = np.asarray(non_members, dtype=np.float64)
    share = _normalised(weights, len(outside))
    order = np.argsort(outside, kind="stable")
    cumulative = np.concatenate([[0.0], np.cumsum(share[order])])
    cumulative /= cumulative[-1]  # exactly 1 at the end, so that no area is above 1 and ties give exactly one half
    ranked = outside[order]
    below, upto = np.searchsorted(ranked, inside, side="left"), np.searchsorted(ranked, inside, side="right")
    of_members = 0.5 * (cumulative[below] + cumulative[upto])
    sorted_members = np.sort(inside)
    count_below = np.searchsorted(sorted_members, outside, side="left")
    count_upto = np.searchsorted(sorted_members, outside, side="right")
    of_non_members = 1.0 - 0.5 * (count_below + count_upto) / len(inside)
    return of_members, of_non_members


def auc(members: ArrayLike, non_members: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the chance that a member scores above a non-member, ties one half: 1 separates, .5 tells nothing, 0 is inverted."""
    return float(placements(members, non_members, weights)[0].mean())


def _delong_variance(of_members: Floats, of_non_members: Floats, share: Floats) -> float:
    """Return the variance of the mean placement."""
    m, n = len(of_members), len(of_non_members)
    first = float(of_members.var(ddof=1)) / m if m > 1 else 0.0
    centre = float(np.sum(share * of_non_members))
    second = float(np.sum(np.square(share * (of_non_members - centre)))) * n / (n - 1) if n > 1 else 0.0
    return first + second


def _score_interval(area: float, m: float, n: float, z: float) -> Interval:
    """Return the interval of Newcombe's method 5, which has a width at areas of 0 and 1 as well."""
    half = (m + n) / 2 - 1

    def gap(theta: float, sign: float) -> float:
        variance = theta * (1 - theta) * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)) / (m * n)
        return theta - area + sign * z * float(np.sqrt(max(variance, 0.0)))

    low = 0.0 if area <= 0 else root(lambda t: gap(t, 1.0), 0.0, min(area, 1.0 - EDGE))
    high = 1.0 if area >= 1 else root(lambda t: gap(t, -1.0), max(area, EDGE), 1.0)
    return Interval(low, high)


def auc_interval(members: ArrayLike, non_members: ArrayLike, *, level: float, weights: ArrayLike | None = None) -> Interval:
    """Return the interval of the AUC: DeLong's, or Newcombe's score interval where every placement is equal and DeLong's has no width.

    Source: DeLong et al., Biometrics 1988; Newcombe, Statistics in Medicine 2006 (method 5).
    """
    of_members, of_non_members = placements(members, non_members, weights)
    share = _normalised(weights, len(of_non_members))
    area, z = float(of_members.mean()), normal_quantile(level)
    spread = z * float(np.sqrt(_delong_variance(of_members, of_non_members, share)))
    if spread < 1e-12 or min(len(of_members), len(of_non_members)) < 2:
        return _score_interval(area, len(of_members), 1.0 / float(np.sum(share**2)), z)
    return Interval(max(0.0, area - spread), min(1.0, area + spread))


def resampled_aucs(scores: Floats, member_counts: Floats, non_member_weights: Floats) -> Floats:
    """Return the AUC of each resample, (b,): scores (m+n,), member_counts and non_member_weights (b, m+n), 0 on the other side's rows."""
    order = np.argsort(scores, kind="stable")
    starts = np.concatenate([[0], np.nonzero(np.diff(scores[order]))[0] + 1])
    inside = np.add.reduceat(member_counts[:, order], starts, axis=1)
    outside = np.add.reduceat(non_member_weights[:, order], starts, axis=1)
    below = np.cumsum(outside, axis=1) - 0.5 * outside
    return (inside * below).sum(axis=1) / (inside.sum(axis=1) * outside.sum(axis=1))


class Sides(NamedTuple):
    """Scores of one model: members (m,), non_members (n,); rows are the same in two models that are compared."""

    members: Floats
    non_members: Floats


def paired_auc_difference(
    first: Sides, second: Sides, *, level: float, rng: np.random.Generator, weights: ArrayLike | None = None, resamples: int = 999
) -> tuple[float, Interval]:
    """Return AUC(first) - AUC(second) on the same rows, with a percentile bootstrap interval over members and non-members apart.

    Where no resample differs although the scores do, the interval is the widest that such a sample leaves possible (1 - tail^(1/n)).
    """
    m, n = len(first.members), len(first.non_members)
    share = _normalised(weights, n)
    value = auc(*first, share) - auc(*second, share)
    if np.array_equal(first.members, second.members) and np.array_equal(first.non_members, second.non_members):
        return 0.0, Interval(0.0, 0.0)
    joined = [np.concatenate([sides.members, sides.non_members]) for sides in (first, second)]
    found: list[Floats] = []
    step = max(1, CELLS // (m + n))
    for start in range(0, resamples, step):
        b = min(step, resamples - start)
        inside = np.concatenate([rng.multinomial(m, np.full(m, 1.0 / m), size=b).astype(np.float64), np.zeros((b, n))], axis=1)
        outside = np.concatenate([np.zeros((b, m)), rng.multinomial(n, np.full(n, 1.0 / n), size=b) * share], axis=1)
        found.append(resampled_aucs(joined[0], inside, outside) - resampled_aucs(joined[1], inside, outside))
    differences = np.concatenate(found)
    low, high = percentile_interval(differences, level=level)
    if high - low < 1e-12:
        half = 1.0 - ((1.0 - level) / 2) ** (1.0 / min(m, n))
        return value, Interval(max(-1.0, value - half), min(1.0, value + half))
    return value, Interval(min(low, value), max(high, value))


def class_weights(members: ArrayLike, non_members: ArrayLike) -> Floats:
    """Return weights (n,) that give the non-members' labels the class mix of the members' labels (m,); 0 for classes without a member."""
    inside = np.asarray(members, dtype=np.int64)
    outside = np.asarray(non_members, dtype=np.int64)
    size = int(max(inside.max(initial=0), outside.max(initial=0))) + 1
    wanted = np.bincount(inside, minlength=size).astype(np.float64)
    held = np.bincount(outside, minlength=size).astype(np.float64)
    ratio = np.divide(wanted, held, out=np.zeros(size), where=held > 0)
    return ratio[outside]


class Rate(NamedTuple):
    """A true positive rate at a frozen threshold, with its interval."""

    value: float
    interval: Interval
    threshold: float


def tpr_at_fpr(members: ArrayLike, calibrate: ArrayLike, *, fpr: float, level: float) -> Rate:
    """Return the share of members above the threshold at which at most `fpr` of the calibration non-members lie strictly above or on it.

    The threshold is an order statistic of `calibrate`; comparison is strict for members, and ties count as false positives.
    """
    held = np.sort(np.asarray(calibrate, dtype=np.float64))[::-1]
    allowed = int(np.floor(fpr * len(held) + 1e-9))
    threshold = float(held[allowed]) if allowed < len(held) else float("-inf")
    inside = np.asarray(members, dtype=np.float64)
    hits = int(np.sum(inside > threshold))
    return Rate(hits / len(inside), clopper_pearson(hits, len(inside), level=level), threshold)


def epsilon_lower(*, false_positives: int, non_members: int, false_negatives: int, members: int, delta: float = 0.0, alpha: float = 0.05) -> float:
    """Return the largest epsilon that the error counts refute at `alpha`; 0 means that nothing was shown, not that epsilon is 0."""
    fpr = float(stats.beta.ppf(1 - alpha / 2, false_positives + 1, non_members - false_positives)) if false_positives < non_members else 1.0
    fnr = float(stats.beta.ppf(1 - alpha / 2, false_negatives + 1, members - false_negatives)) if false_negatives < members else 1.0
    terms = [float(np.log((1 - delta - a) / b)) for a, b in ((fpr, fnr), (fnr, fpr)) if 1 - delta - a > 0]
    return max([0.0, *terms])
