"""How often each interval holds the truth on data drawn from known distributions, and how often a bound on epsilon refutes what holds.

The soak asks for the nominal level less two points in 2,000 runs. The short form gives three standard errors of its runs away: with a fixed seed a
false alarm of about one in a thousand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from services.verification.statistics import bootstrap, clusters, intervals, one_run, ratios, roc, tow

LEVEL = 0.9
ALLOWED = 0.02
SHARES = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02])
OTHERS = np.array([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])


@dataclass(frozen=True)
class Drawn:
    """One interval on one sample, and the truth that it should hold."""

    interval: tuple[float, float]
    truth: float

    @property
    def holds(self) -> bool:
        return self.interval[0] <= self.truth <= self.interval[1]


def proportion(rng):
    return Drawn(intervals.clopper_pearson(int(rng.binomial(80, 0.07)), 80, level=LEVEL), 0.07)


def paired_shares(rng):
    gained, lost, _ = (int(count) for count in rng.multinomial(120, [0.08, 0.04, 0.88]))
    return Drawn(intervals.paired_proportions(gained, lost, 120, level=LEVEL), 0.04)


def mean(rng):
    return Drawn(intervals.mean_interval(rng.gamma(2.0, size=120), level=LEVEL, rng=rng), 2.0)


def mean_of_groups(rng):
    groups = [f"author-{row // 4}" for row in range(200)]
    values = np.repeat(rng.normal(size=50), 4) + rng.normal(size=200)
    return Drawn(clusters.grouped_mean_interval(values, groups, level=LEVEL, rng=rng), 0.0)


def area(rng):
    members, others = rng.normal(1.0, 1.0, 100), rng.normal(size=120)
    return Drawn(roc.auc_interval(members, others, level=LEVEL), float(stats.norm.cdf(1 / sqrt(2))))


def area_of_weighted_rows(rng):
    labels, others = rng.random(100) < 0.8, rng.random(200) < 0.4
    weights = roc.class_weights(labels.astype(int), others.astype(int))
    scores = [rng.normal(size=len(side)) + side for side in (labels, others)]
    return Drawn(roc.auc_interval(*scores, level=LEVEL, weights=weights), 0.5)


def area_difference(rng):
    sides = [rng.normal(shift, 1.0, size) for shift, size in ((0.8, 100), (0.0, 120))]
    first = roc.Sides(*sides)
    second = roc.Sides(*(side + rng.normal(0, 1.0, len(side)) for side in sides))
    truth = float(stats.norm.cdf(0.8 / sqrt(2)) - stats.norm.cdf(0.8 / 2))
    return Drawn(roc.paired_auc_difference(first, second, level=LEVEL, rng=rng, resamples=299)[1], truth)


def entropy(rng):
    truth = float(bootstrap.normalised_entropy(SHARES))
    return Drawn(bootstrap.entropy_interval(rng.multinomial(200, SHARES), level=LEVEL, rng=rng, resamples=299), truth)


def entropy_difference(rng):
    mine, theirs = (rng.choice(8, size=200, p=shares) for shares in (SHARES, OTHERS))
    truth = float(bootstrap.normalised_entropy(SHARES) - bootstrap.normalised_entropy(OTHERS))
    return Drawn(bootstrap.paired_entropy_interval(mine, theirs, 8, level=LEVEL, rng=rng, resamples=299), truth)


def tug_of_war(rng):
    parts = [rng.choice([-1, 0, 1], size=size, p=[lost, 1 - lost - 0.02, 0.02]) for size, lost in ((100, 0.15), (400, 0.05), (300, 0.06))]
    truth = float(tow.tug_of_war([0.13, 0.03, 0.04]))
    return Drawn(tow.tug_of_war_interval(parts, level=LEVEL, rng=rng, resamples=299), truth)


def median(rng):
    return Drawn(ratios.median_interval(rng.lognormal(size=5), level=LEVEL, rng=rng), 1.0)


def median_of_ratios(rng):
    above, below = rng.lognormal(0.4, 0.5, 7), rng.lognormal(0.0, 0.5, 7)
    return Drawn(ratios.median_ratio(above, below, level=LEVEL, rng=rng).interval, float(np.exp(0.4)))


INTERVALS: list[Callable[[np.random.Generator], Drawn]] = [
    proportion, paired_shares, mean, mean_of_groups, area, area_of_weighted_rows, area_difference, entropy, entropy_difference, tug_of_war, median,
    median_of_ratios,
]  # fmt: skip


def coverage(drawn, runs, seed):
    rng = np.random.default_rng(seed)
    return float(np.mean([drawn(rng).holds for _ in range(runs)]))


@pytest.mark.parametrize("drawn", INTERVALS, ids=lambda drawn: drawn.__name__)
def test_an_interval_holds_the_truth_about_as_often_as_it_says(drawn):
    runs = 40

    assert coverage(drawn, runs, 1) >= LEVEL - ALLOWED - 3 * sqrt(LEVEL * (1 - LEVEL) / runs)


@pytest.mark.soak
@pytest.mark.parametrize("drawn", INTERVALS, ids=lambda drawn: drawn.__name__)
def test_an_interval_holds_the_truth_within_two_points_of_what_it_says_in_two_thousand_runs(drawn):
    assert coverage(drawn, 2000, 2) >= LEVEL - ALLOWED


def randomised_response(rng, epsilon=1.0, people=400):
    """The error counts of the best attack on a mechanism that tells one bit with `epsilon`, and no more."""
    lie = 1 / (1 + np.exp(epsilon))
    wrong = [int(rng.binomial(people, lie)) for _ in range(2)]
    return roc.epsilon_lower(false_positives=wrong[0], non_members=people, false_negatives=wrong[1], members=people)


@cache
def shown_by(right):
    return one_run.epsilon_of_guesses(canaries=200, guesses=100, right=right)


def one_run_of_response(rng, epsilon=1.0):
    return shown_by(int(rng.binomial(100, 1 / (1 + np.exp(-epsilon)))))


@pytest.mark.parametrize("bound", [randomised_response, one_run_of_response])
def test_a_bound_on_epsilon_refutes_what_holds_in_one_run_of_twenty_at_most(bound):
    rng = np.random.default_rng(3)

    assert np.mean([bound(rng) > 1.0 for _ in range(300)]) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 300)


@pytest.mark.soak
@pytest.mark.parametrize("bound", [randomised_response, one_run_of_response])
def test_a_bound_on_epsilon_refutes_what_holds_in_five_per_cent_of_five_thousand_runs_at_most(bound):
    rng = np.random.default_rng(4)

    assert np.mean([bound(rng) > 1.0 for _ in range(5000)]) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 5000)
