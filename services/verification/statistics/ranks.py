"""Tests by ranks."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from services.verification.statistics.roc import CELLS, resampled_aucs

EXACT_BELOW = 50
RESAMPLES = 9999


def mann_whitney_p(first: ArrayLike, second: ArrayLike, *, rng: np.random.Generator) -> float:
    """Return the two-sided p-value of H0: first (n,) and second (m,) come from one distribution.

    Below 50 rows in the first: exact where there is no tie, else by random permutations; from 50: the normal approximation with ties.
    """
    inside, outside = (np.asarray(side, dtype=np.float64) for side in (first, second))
    joined = np.concatenate([inside, outside])
    if np.ptp(joined) == 0:
        return 1.0
    if len(inside) >= EXACT_BELOW:
        return float(stats.mannwhitneyu(inside, outside, method="asymptotic").pvalue)
    if len(np.unique(joined)) == len(joined):
        return float(stats.mannwhitneyu(inside, outside, method="exact").pvalue)
    if min(len(inside), len(outside)) < 2:  # scipy permutes only sides of two rows and more
        zeros = [np.zeros(len(side), dtype=np.int64) for side in (inside, outside)]
        return within_classes_p(inside, outside, *zeros, rng=rng)
    method: Any = stats.PermutationMethod(n_resamples=RESAMPLES, batch=1000, rng=rng)
    return float(stats.mannwhitneyu(inside, outside, method=method).pvalue)


def within_classes_p(
    members: ArrayLike, non_members: ArrayLike, member_classes: ArrayLike, non_member_classes: ArrayLike, *, rng: np.random.Generator
) -> float:
    """Return the two-sided p-value of the AUC (non-members weighted to the members' class mix) under H0: within a class both sides are exchangeable.

    One class without a tie: the exact distribution of the ranks. Else members and non-members change places at random within each class, as often
    as `RESAMPLES`, and the p-value is (1 + those at least as far from .5) / (1 + all), which is valid at any number of records.
    """
    inside, outside = (np.asarray(side, dtype=np.float64) for side in (members, non_members))
    scores = np.concatenate([inside, outside])
    classes = np.concatenate([np.asarray(side, dtype=np.int64) for side in (member_classes, non_member_classes)])
    held, wanted = np.unique(classes), len(inside)
    if len(held) == 1 and len(np.unique(scores)) == len(scores):
        return float(stats.mannwhitneyu(inside, outside, method="exact").pvalue)
    weights, rows = np.zeros(len(scores)), {label: np.nonzero(classes == label)[0] for label in held.tolist()}
    counts = {label: int(np.sum(where < wanted)) for label, where in rows.items()}
    for label, where in rows.items():
        weights[where] = counts[label] / max(len(where) - counts[label], 1)
    is_member = (np.arange(len(scores)) < wanted).astype(np.float64)[None]
    observed = abs(float(resampled_aucs(scores, is_member, (1 - is_member) * weights)[0]) - 0.5)
    beyond, step = 0, max(1, CELLS // len(scores))
    for start in range(0, RESAMPLES, step):
        drawn = np.zeros((min(step, RESAMPLES - start), len(scores)))
        for label, where in rows.items():
            places = (np.arange(len(where)) < counts[label]).astype(np.float64)
            drawn[:, where] = rng.permuted(np.tile(places, (len(drawn), 1)), axis=1)
        beyond += int(np.sum(np.abs(resampled_aucs(scores, drawn, (1 - drawn) * weights) - 0.5) >= observed - 1e-12))
    return (1 + beyond) / (1 + RESAMPLES)
