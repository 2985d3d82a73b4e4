"""The likelihood-ratio attack: is a record's margin that of models which learned from it, or of models which did not?

Source: Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022 (arXiv 2112.03570).
Differs: below 16 reference models a side the offline form with one variance for all records is used, since two-sided fits of few models are worse
than a guess at the spread; the offline score is one-sided, so that it rises with the margin; variances have a floor.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from services.verification.statistics.scores import Floats

PER_RECORD_FROM = 16
LEAST_DEVIATION = 1e-3

Form = Literal["online", "offline"]
Kept = NDArray[np.bool_]


class Ratios(NamedTuple):
    """Scores (n,), higher is more member-like, and the form they were taken in."""

    scores: Floats
    form: Form


def halves(models: int, records: int, *, rng: np.random.Generator) -> Kept:
    """Return which record is in the training set of which model, (models, records) bool: each record in exactly half of the models, rounded down."""
    return rng.random((models, records)).argsort(axis=0) < models // 2


def online_scores(phi: Floats, mean_in: Floats, sd_in: Floats, mean_out: Floats, sd_out: Floats) -> Floats:
    """Return log N(phi; in) - log N(phi; out), (n,)."""
    return np.asarray(stats.norm.logpdf(phi, mean_in, sd_in) - stats.norm.logpdf(phi, mean_out, sd_out), dtype=np.float64)


def offline_scores(phi: Floats, mean_out: Floats, sd_out: Floats) -> Floats:
    """Return the log of the chance that a model which did not learn from the record has a smaller margin, (n,); monotone in phi."""
    return np.asarray(special.log_ndtr((phi - mean_out) / sd_out), dtype=np.float64)


def streisand_scores(phi: Floats, mean_out: Floats, sd_out: Floats) -> Floats:
    """Return -log N(phi; out), (n,): large on both sides, so that records which are forgotten too well stand out as well."""
    return np.asarray(-stats.norm.logpdf(phi, mean_out, sd_out), dtype=np.float64)


def ratios(phi: Floats, references: Floats, keep: Kept) -> Ratios:
    """Return the scores of the judged model's margins phi (n,) against those of reference models (R, n); `keep` (R, n) says which learned from which.

    Raises:
        ValueError: a record has no model that did not learn from it.
    """
    if not (~keep).any(axis=0).all():
        raise ValueError("a record has no reference model that did not learn from it")
    fewest = min(int(keep.sum(axis=0).min()), int((~keep).sum(axis=0).min()))
    mean_out = _median(references, ~keep)
    if fewest < PER_RECORD_FROM:
        return Ratios(offline_scores(phi, mean_out, np.full(len(phi), _pooled(references, ~keep, mean_out))), "offline")
    mean_in = _median(references, keep)
    deviations = [_deviation(references, side, mean) for side, mean in ((keep, mean_in), (~keep, mean_out))]
    return Ratios(online_scores(phi, mean_in, deviations[0], mean_out, deviations[1]), "online")


def _median(values: Floats, chosen: Kept) -> Floats:
    return np.asarray(np.nanmedian(np.where(chosen, values, np.nan), axis=0), dtype=np.float64)


def _deviation(values: Floats, chosen: Kept, centre: Floats) -> Floats:
    """Return the root of the mean square around `centre` (n,) of each record's chosen values, (n,)."""
    squares = np.where(chosen, np.square(values - centre), 0.0)
    return np.maximum(np.sqrt(squares.sum(axis=0) / chosen.sum(axis=0)), LEAST_DEVIATION)


def _pooled(values: Floats, chosen: Kept, centre: Floats) -> float:
    """Return one deviation for all records."""
    squares = np.where(chosen, np.square(values - centre), 0.0)
    return max(float(np.sqrt(squares.sum() / chosen.sum())), LEAST_DEVIATION)
