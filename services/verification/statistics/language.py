"""Arithmetic of the metrics of language models.

Source: Maini et al., "TOFU", COLM 2024; Shi et al., "MUSE", 2024; Shi et al., "Detecting Pretraining Data from Large Language Models", ICLR 2024 (min-k).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from services.verification.statistics.scores import Floats


def truth_ratio(wrong: Sequence[float], paraphrased: float) -> float:
    """Return how likely wrong answers are beside the right one, from mean losses per token: the average of the wrong ones is inside the exponent."""
    return float(np.exp(paraphrased - np.mean(wrong)))


def forget_score(ratios: ArrayLike) -> Floats:
    """Return min(TR, 1 / TR) of each ratio: 1 where right and wrong answers are as likely."""
    held = np.asarray(ratios, dtype=np.float64)
    return np.minimum(held, 1 / held)


def truth_score(ratios: ArrayLike) -> Floats:
    """Return max(0, 1 - TR) of each ratio: 1 where wrong answers are unthinkable, 0 where they are as likely as the right one."""
    return np.maximum(0.0, 1 - np.asarray(ratios, dtype=np.float64))


def normalised_probability(right: float, wrong: Sequence[float]) -> float:
    """Return p(right) / (p(right) + sum of p(wrong)), from mean losses per token."""
    likely = np.exp(-np.array([right, *wrong], dtype=np.float64))
    return float(likely[0] / likely.sum())


def utility(parts: ArrayLike) -> float:
    """Return the harmonic mean of numbers that are not negative; one zero makes it zero."""
    held = np.asarray(parts, dtype=np.float64).ravel()
    return 0.0 if bool((held <= 0).any()) else float(len(held) / (1 / held).sum())


def same_distribution(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Return the distance of two samples' distributions and the p-value that they are one (Kolmogorov and Smirnov, two sides)."""
    found: Any = stats.ks_2samp(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    return float(found.statistic), float(found.pvalue)


def least_likely(logs: ArrayLike, share: float) -> float:
    """Return the mean of the lowest `share` of log-probabilities (T,), at least one of them."""
    ordered = np.sort(np.asarray(logs, dtype=np.float64))
    return float(ordered[: max(1, round(share * len(ordered)))].mean())


def privacy_leak(auc: float, reference: float) -> float:
    """Return 100 ((1 - AUC) - (1 - AUC_r)) / (1 - AUC_r): 0 as the retrained model, without bound as AUC_r nears 1."""
    return 100 * ((1 - auc) - (1 - reference)) / (1 - reference)
