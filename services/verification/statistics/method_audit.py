"""The arithmetic of audits of a method: many runs in which records were forgotten or never there, and one run with canaries.

Source: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy" (U-LiRA), arXiv 2403.01218; Steinke, Nasr
and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023 (arXiv 2305.08846).
Differs: Gaussians are fitted to margins and never to right and wrong, whose spread may be 0; the run that is scored is left out of the fit; below 16
runs a side all records share one spread; the largest area of a record stands beside what permuted labels give.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from services.verification.statistics.intervals import Interval, percentile_interval
from services.verification.statistics.likelihood_ratio import LEAST_DEVIATION, PER_RECORD_FROM, Kept
from services.verification.statistics.one_run import chance_of_guesses, epsilon_of_guesses
from services.verification.statistics.roc import Rate, auc, tpr_at_fpr
from services.verification.statistics.scores import Floats

LEAST_RUNS = 4
RESAMPLES = 199
SHUFFLES = 19
MEMBERS_PER_ALARM = 10


def left_out_ratios(phi: Floats, forgotten: Kept) -> Floats:
    """Return log N(phi; forgotten) - log N(phi; never there) of every run and record (R, n), each fitted on the other runs alone.

    Of each record one run of the other side is left out too, so that both fits rest on as many runs: else the side with one less would look narrower or
    wider by its number alone, and scores that know nothing would have an area below one half.

    `phi` (R, n) are margins of the unlearned models; `forgotten` (R, n) says whether the record was learned and forgotten in that run, or was never there.

    Raises:
        ValueError: a record was forgotten, or absent, in fewer than four runs.
    """
    runs = len(phi)
    fewest = min(int(forgotten.sum(axis=0).min()), int((~forgotten).sum(axis=0).min()))
    if fewest < LEAST_RUNS:
        raise ValueError(f"each record must be forgotten in {LEAST_RUNS} runs and absent in {LEAST_RUNS}")
    found = np.empty_like(phi, dtype=np.float64)
    for run in range(runs):
        used = np.arange(runs)[:, None] != run
        used = used & (np.arange(runs)[:, None] != _partners(forgotten, run))
        sides = [_fit(phi, side & used, pooled=fewest < PER_RECORD_FROM) for side in (forgotten, ~forgotten)]
        densities = [stats.norm.logpdf(phi[run], centre, spread) for centre, spread in sides]
        found[run] = densities[0] - densities[1]
    return found


def _partners(forgotten: Kept, run: int) -> NDArray[np.int64]:
    """Return for each record the next run after `run`, in a circle, in which it was on the other side, (n,)."""
    order = np.roll(np.arange(len(forgotten)), -run)
    return order[np.argmax(forgotten[order] != forgotten[run], axis=0)]


def _fit(values: Floats, chosen: Kept, *, pooled: bool) -> tuple[Floats, Floats]:
    """Return median and deviation (n,) of each record's chosen values, one deviation for all where `pooled`."""
    centre = np.asarray(np.nanmedian(np.where(chosen, values, np.nan), axis=0), dtype=np.float64)
    squares = np.where(chosen, np.square(values - centre), 0.0)
    spread = np.sqrt(squares.sum(axis=0) / chosen.sum(axis=0))
    if pooled:
        spread = np.full(len(centre), np.sqrt(squares.sum() / chosen.sum()))
    return centre, np.maximum(spread, LEAST_DEVIATION)


class Separation(NamedTuple):
    """What the scores tell apart: the area with its interval, rates at 1 % and .1 % false alarms, and the largest area of one record.

    A rate is None where there are fewer than 10 / FPR scores of absent records to set its threshold by. `by_chance` is the largest area of a
    record that permuted labels reach in 1 of 20 trials: below it the largest says nothing.
    """

    area: float
    interval: Interval
    rates: dict[float, Rate | None]
    largest: float
    by_chance: float


def separation(scores: Floats, forgotten: Kept, *, level: float, rng: np.random.Generator) -> Separation:
    """Return how well scores (R, n) tell forgotten records from those never there; runs are resampled whole, since the scores of one are not independent."""
    area = auc(scores[forgotten], scores[~forgotten])
    drawn = [_area_of(scores, forgotten, rng.integers(len(scores), size=len(scores))) for _ in range(RESAMPLES)]
    shuffled = [_largest(scores, rng.permuted(forgotten, axis=0)) for _ in range(SHUFFLES)]
    rates = {fpr: _rate(scores, forgotten, fpr, level=level) for fpr in (0.01, 0.001)}
    return Separation(area, percentile_interval(np.array(drawn), level=level, around=area), rates, _largest(scores, forgotten), max(shuffled))


def _area_of(scores: Floats, forgotten: Kept, runs: NDArray[np.int64]) -> float:
    return auc(scores[runs][forgotten[runs]], scores[runs][~forgotten[runs]])


def _largest(scores: Floats, forgotten: Kept) -> float:
    return max(auc(scores[forgotten[:, column], column], scores[~forgotten[:, column], column]) for column in range(scores.shape[1]))


def _rate(scores: Floats, forgotten: Kept, fpr: float, *, level: float) -> Rate | None:
    """Return the true positive rate in the odd runs at the threshold of the even ones."""
    calibrate = scores[::2][~forgotten[::2]]
    if len(calibrate) < MEMBERS_PER_ALARM / fpr:
        return None
    return tpr_at_fpr(scores[1::2][forgotten[1::2]], calibrate, fpr=fpr, level=level)


class Guessed(NamedTuple):
    """What one run shows of its canaries: `right` of `guesses` right, and the bound; `epsilon` is None where not even every guess right would show any."""

    guesses: int
    right: int
    epsilon: float | None


def guessed(scores: Floats, included: NDArray[np.bool_], *, delta: float = 0.0, alpha: float = 0.05) -> Guessed:
    """Guess half of the canaries by their scores (m,), as many as included as as absent, and return what that shows of `included` (m,).

    How many are guessed is fixed by m alone, before any score is looked at. 0 means that nothing was shown, not that epsilon is 0.
    """
    canaries = len(scores)
    each = canaries // 4
    order = np.argsort(scores, kind="stable")
    right = int((~included[order[:each]]).sum() + included[order[canaries - each :]].sum())
    guesses = 2 * each
    if chance_of_guesses(0.0, canaries=canaries, guesses=guesses, right=guesses, delta=delta) >= alpha:
        return Guessed(guesses, right, None)
    return Guessed(guesses, right, epsilon_of_guesses(canaries=canaries, guesses=guesses, right=right, delta=delta, alpha=alpha))
