"""The relative membership attack: for what share of a population is a record at least `gamma` times as likely under the model as it ought to be?

Source: Zarifzadeh et al., "Low-Cost High-Power Membership Inference Attacks", ICML 2024 (arXiv 2312.03262).
Differs: the released code fills a matrix of every record against every member of the population; sorting the population once gives the same numbers
in O((n + m) log m) time and O(n + m) memory.
"""

import numpy as np
from numpy.typing import ArrayLike

from services.verification.statistics.likelihood_ratio import Kept
from services.verification.statistics.scores import Floats

OFFLINE_A = 0.3
LEAST_PROBABILITY = 1e-300


def relative_scores(of_records: ArrayLike, of_population: ArrayLike, *, gamma: float = 1.0, strict: bool = False) -> Floats:
    """Return for each record (n,) the share of the population (m,) whose ratio it exceeds `gamma` times (or equals it, unless `strict`).

    Both are ratios p_target(x) / P(x). 0 is the least member-like, 1 the most.
    """
    ranked = np.sort(np.asarray(of_population, dtype=np.float64))
    wanted = np.asarray(of_records, dtype=np.float64) / gamma
    return np.searchsorted(ranked, wanted, side="left" if strict else "right").astype(np.float64) / len(ranked)


def expected_probability(references: Floats, keep: Kept, *, a: float | None = OFFLINE_A) -> Floats:
    """Return P(x) (n,) from the probabilities (R, n) of reference models: their mean, or offline ((1 + a) P_out + (1 - a)) / 2.

    `a` is None for the online form, which takes models that learned from a record and those that did not alike. It must not be tuned on the
    judged model.
    """
    if a is None:
        return np.maximum(references.mean(axis=0), LEAST_PROBABILITY)
    outside = np.where(keep, 0.0, references).sum(axis=0) / (~keep).sum(axis=0)
    return np.maximum(((1 + a) * outside + (1 - a)) / 2, LEAST_PROBABILITY)
