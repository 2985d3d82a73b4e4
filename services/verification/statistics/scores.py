"""Per-record scores of a classifier's outputs; z (n, C) logits, y (n,) labels, everything in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def _log_sum_exp(values: Floats) -> Floats:
    """Return the logarithm of the sum of exponentials of each row, (n,)."""
    return np.asarray(special.logsumexp(values, axis=1), dtype=np.float64)


def log_probabilities(z: ArrayLike) -> Floats:
    """Return the log soft-max of each row, (n, C), natural logarithm."""
    logits = np.asarray(z, dtype=np.float64)
    return logits - _log_sum_exp(logits)[:, None]


def negative_losses(z: ArrayLike, y: ArrayLike) -> Floats:
    """Return the log-probability of the true label, (n,), nats; higher is more member-like."""
    labels = np.asarray(y, dtype=np.int64)
    return log_probabilities(z)[np.arange(len(labels)), labels]


def margins(z: ArrayLike, y: ArrayLike) -> Floats:
    """Return phi = z_y - logsumexp of the other logits, (n,), which is ln p_y / (1 - p_y) without an epsilon; higher is more member-like."""
    logits = np.asarray(z, dtype=np.float64)
    labels = np.asarray(y, dtype=np.int64)
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return logits[rows, labels] - _log_sum_exp(others)


def entropies(log_p: ArrayLike) -> Floats:
    """Return the entropy of each row of log-probabilities, (n,), nats, with 0 ln 0 = 0: 0 when certain, ln C when uniform."""
    log_probability = np.asarray(log_p, dtype=np.float64)
    p = np.exp(log_probability)
    return -np.sum(np.where(p > 0, p * np.where(p > 0, log_probability, 0.0), 0.0), axis=1)


def modified_entropies(p: ArrayLike, y: ArrayLike) -> Floats:
    """Return -(1 - p_y) ln p_y - sum of p_j ln(1 - p_j) over the other classes, (n,): 0 when certain and right, large when certain and wrong.

    Source: Song and Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", USENIX Security 2021.
    """
    probability = np.asarray(p, dtype=np.float64)
    labels = np.asarray(y, dtype=np.int64)
    rows = np.arange(len(labels))
    true = probability[rows, labels]
    terms = np.asarray(special.xlogy(probability, 1.0 - probability), dtype=np.float64)
    terms[rows, labels] = special.xlogy(1.0 - true, true)
    return -np.sum(terms, axis=1)


def attack_features(z: ArrayLike, y: ArrayLike) -> Floats:
    """Return (n, 4): entropy, largest probability, loss of the true label, margin phi."""
    log_p = log_probabilities(z)
    return np.stack([entropies(log_p), np.exp(log_p.max(axis=1)), -negative_losses(z, y), margins(z, y)], axis=1)
