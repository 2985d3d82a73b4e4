"""The forgetting quality of the NeurIPS 2023 unlearning competition: how well simple attacks tell unlearned models from retrained ones, record by record.

Source: Triantafillou et al., "Are we making progress in unlearning? Findings from the first NeurIPS unlearning competition", arXiv 2406.09073. The
formulas are those of published copies of its scoring notebook.
Differs: thresholds are read both ways, since neither side is known to have the larger margins; the logistic regression is asked about every model
once, in five folds, where the notebook asks about a few tenths, of which so few right calls as happen by chance give an infinite epsilon.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from services.verification.statistics.many_models import Beside, Chosen, beside
from services.verification.statistics.scores import Floats

DELTA = 0.01
EDGES = 0.5 * np.arange(13)
FOLDS = 5
STEPS = 40
SETTLED = 1e-6
LEAST_MODELS = 8


def epsilon_terms(fpr: ArrayLike, fnr: ArrayLike, *, delta: float = DELTA) -> tuple[Floats, Floats]:
    """Return ln(1 - delta - FPR) - ln FNR and ln(1 - delta - FNR) - ln FPR; not a number where a logarithm has none."""
    false_alarms, misses = np.asarray(fpr, dtype=np.float64), np.asarray(fnr, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(1 - delta - false_alarms) - np.log(misses), np.log(1 - delta - misses) - np.log(false_alarms)


def epsilons(fpr: Floats, fnr: Floats, *, delta: float = DELTA) -> Floats:
    """Return the epsilon of each record, (n,): the largest over attacks with rates (attacks, n), at least 0.

    An attack that makes no mistake has an infinite one, and so has one that makes hardly anything else; one that makes no mistake on one side alone
    says nothing, since its rate there is a matter of how few models there are.
    """
    first, second = epsilon_terms(fpr, fnr, delta=delta)
    found = np.fmax(first, second)
    found = np.where(np.isnan(found) | ((fpr == 0) & (fnr == 0)), np.inf, found)
    return np.maximum(np.where((fpr == 0) ^ (fnr == 0), 0.0, found).max(axis=0), 0.0)


def steps_of(epsilon: ArrayLike) -> Floats:
    """Return H = 2 / 2^k, k the number of the step of width .5 that an epsilon lies on, from 1 to 13: 1 below .5, .00024 from 6 on."""
    step = np.digitize(np.asarray(epsilon, dtype=np.float64), EDGES)
    return np.asarray(2.0 / np.power(2.0, step), dtype=np.float64)


def forgetting_quality(unlearned: Floats, retrained: Floats, *, rng: np.random.Generator, delta: float = DELTA) -> float:
    """Return F, the mean of H over records, from margins (N, n) each: 1 nothing tells the models apart, 0 everything does. N below 256 is mostly noise."""
    return float(np.mean(steps_of(record_epsilons(unlearned, retrained, rng=rng, delta=delta))))


def record_epsilons(unlearned: Floats, retrained: Floats, *, rng: np.random.Generator, delta: float = DELTA) -> Floats:
    """Return the epsilon of each record, (n,), over all thresholds and the logistic regression, from margins (N, n) each."""
    rates = [threshold_rates(unlearned, retrained), regression_rates(unlearned, retrained, rng=rng)]
    return epsilons(*(np.concatenate(side) for side in zip(*rates, strict=True)), delta=delta)


def quality_beside(unlearned: Floats, retrained: Floats, *, rng: np.random.Generator, delta: float = DELTA) -> Beside:
    """Return F of margins (N, n) against retrained (2N, n), with the F of retrained models against each other and the p-value.

    Raises:
        ValueError: fewer than 8 unlearned models, or not twice as many retrained ones.
    """
    if len(unlearned) < LEAST_MODELS:
        raise ValueError(f"F takes at least {LEAST_MODELS} models, and says little below 256")

    def statistic(pooled: Floats, chosen: Chosen) -> Floats:
        return np.array([forgetting_quality(pooled[one], pooled[~one], rng=rng, delta=delta) for one in chosen])

    return beside(statistic, unlearned, retrained, larger_is_farther=False, rng=rng)


def threshold_rates(unlearned: Floats, retrained: Floats) -> tuple[Floats, Floats]:
    """Return FPR and FNR (4N, n) of "above is unlearned", and of its opposite, at each of the 2N values of a record."""
    models = len(unlearned)
    pooled = np.concatenate([unlearned, retrained])
    order = np.argsort(pooled, axis=0, kind="stable")
    ranked, of_unlearned = np.take_along_axis(pooled, order, axis=0), order < models
    upto = [np.cumsum(side, axis=0) for side in (~of_unlearned, of_unlearned)]
    last = np.where(ranked[:-1] == ranked[1:], 2 * models, np.arange(2 * models - 1)[:, None])
    last = np.concatenate([last, np.full((1, ranked.shape[1]), 2 * models - 1)])
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]  # what equals a threshold is not above it: count up to the last of its equals
    below = [np.take_along_axis(count, last, axis=0) / models for count in upto]
    return np.concatenate([1 - below[0], below[0]]), np.concatenate([below[1], 1 - below[1]])


def regression_rates(unlearned: Floats, retrained: Floats, *, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return FPR and FNR (1, n) of a logistic regression on the margin, each model called by a fit on the other folds."""
    models, folds = len(unlearned), min(FOLDS, len(unlearned))
    fold = np.concatenate([rng.permutation(models) % folds for _ in range(2)])
    pooled = np.concatenate([unlearned, retrained])
    labels = np.arange(2 * models) < models
    called = np.zeros(pooled.shape, dtype=np.bool_)
    for held in range(folds):
        slope, offset = fitted(pooled[fold != held], labels[fold != held])
        called[fold == held] = slope * pooled[fold == held] + offset > 0
    return called[models:].mean(axis=0, keepdims=True), (~called[:models]).mean(axis=0, keepdims=True)


def fitted(values: Floats, labels: Chosen) -> tuple[Floats, Floats]:
    """Return slope and offset (n,) of a logistic regression of labels (m,) on each column of values (m, n), slope penalised by half its square.

    Newton's method on all columns at once; a step that does not lower a column's loss is halved for it.
    """
    centre = values.mean(axis=0)
    x, y = values - centre, labels[:, None].astype(np.float64)
    slope, offset, length = (np.full(values.shape[1], start) for start in (0.0, 0.0, 1.0))
    loss = _loss(x, y, slope, offset)
    for _ in range(STEPS):
        p = special.expit(slope * x + offset)
        curvature = p * (1 - p)
        down = ((p - y) * x).sum(axis=0) + slope, (p - y).sum(axis=0)
        mixed, square, flat = (curvature * x).sum(axis=0), (curvature * x * x).sum(axis=0) + 1.0, curvature.sum(axis=0) + 1e-9  # never singular
        area = square * flat - mixed * mixed
        step = (flat * down[0] - mixed * down[1]) / area, (square * down[1] - mixed * down[0]) / area
        tried = slope - length * step[0], offset - length * step[1]
        after = _loss(x, y, *tried)
        lower = after <= loss
        slope, offset, loss = (np.where(lower, new, old) for new, old in ((tried[0], slope), (tried[1], offset), (after, loss)))
        length = np.where(lower, 1.0, length / 2)
        if max(np.abs(length * part).max() for part in step) < SETTLED:
            break
    return slope, offset - slope * centre


def _loss(x: Floats, y: Floats, slope: Floats, offset: Floats) -> Floats:
    z = slope * x + offset
    return (np.logaddexp(0.0, z) - y * z).sum(axis=0) + 0.5 * slope * slope


def final_score(quality: float, *, retain: tuple[float, float], test: tuple[float, float]) -> float | None:
    """Return F times the accuracies of unlearned over retrained models on retained and on held-out records; None where a retrained one is 0."""
    if not (retain[1] > 0 and test[1] > 0):
        return None
    return quality * (retain[0] / retain[1]) * (test[0] / test[1])
