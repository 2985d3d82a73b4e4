"""Divergences between the outputs of two models, row by row; inputs are log-probabilities (n, C), -inf allowed."""

import numpy as np
from numpy.typing import ArrayLike

from services.verification.statistics.scores import Floats

LN_2 = float(np.log(2.0))


def _weighted_log_ratio(weight: Floats, log_numerator: Floats, log_denominator: Floats) -> Floats:
    """Return weight * (log_numerator - log_denominator), 0 where the weight is 0, +inf where only the denominator vanishes."""
    present = weight > 0
    numerator = np.where(present, log_numerator, 0.0)
    denominator = np.where(present, log_denominator, 0.0)
    return weight * (numerator - denominator)


def _with_mean(log_p: ArrayLike, log_q: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return both in float64, and the log-probabilities of their mean."""
    first = np.asarray(log_p, dtype=np.float64)
    second = np.asarray(log_q, dtype=np.float64)
    return first, second, np.logaddexp(first, second) - LN_2


def jensen_shannon_bits(log_p: ArrayLike, log_q: ArrayLike) -> Floats:
    """Return JS(p, q) of each row in bits, (n,): 0 for equal rows, 1 for disjoint ones; finite on one-hot rows."""
    first, second, log_m = _with_mean(log_p, log_q)
    to_first = _weighted_log_ratio(np.exp(first), first, log_m).sum(axis=1)
    to_second = _weighted_log_ratio(np.exp(second), second, log_m).sum(axis=1)
    return np.clip(0.5 * (to_first + to_second) / LN_2, 0.0, 1.0)


def legacy_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Floats:
    """Return 1/2 (KL(m||p) + KL(m||q)) of each row, nats, divided by C, (n,); infinite where p or q is 0 and the other is not.

    This is what the code released with arXiv 2205.08096 averages; it depends on the number of classes and is not a Jensen-Shannon divergence.
    """
    first, second, log_m = _with_mean(log_p, log_q)
    m = np.exp(log_m)
    with np.errstate(invalid="ignore"):
        total = _weighted_log_ratio(m, log_m, first) + _weighted_log_ratio(m, log_m, second)
    return 0.5 * total.sum(axis=1) / first.shape[1]


def euclidean(log_p: ArrayLike, log_q: ArrayLike) -> Floats:
    """Return the Euclidean distance of the probabilities of each row, (n,), in [0, sqrt 2]."""
    difference = np.exp(np.asarray(log_p, dtype=np.float64)) - np.exp(np.asarray(log_q, dtype=np.float64))
    return np.sqrt(np.square(difference).sum(axis=1))
