"""The attacks with reference models beside plain implementations of the same formulas, one record and one pair at a time."""

import resource

import numpy as np
import pytest
from scipy import stats

from services.verification.statistics.likelihood_ratio import halves, ratios
from services.verification.statistics.relative_membership import expected_probability, relative_scores


def plain_ratio(phi, references, keep):
    """LiRA as its paper has it, record by record: per-record Gaussians from 16 models a side, else one-sided with the spread of all records."""
    sides = [min(int(keep[:, i].sum()), int((~keep[:, i]).sum())) for i in range(len(phi))]
    found = []
    residuals = [value - np.median(references[~keep[:, i], i]) for i in range(len(phi)) for value in references[~keep[:, i], i]]
    pooled = max(np.sqrt(np.mean(np.square(residuals))), 1e-3)
    for i, value in enumerate(phi):
        inside, outside = references[keep[:, i], i], references[~keep[:, i], i]
        if min(sides) < 16:
            found.append(stats.norm.logcdf(value, np.median(outside), pooled))
            continue
        fits = [(np.median(side), max(np.sqrt(np.mean((side - np.median(side)) ** 2)), 1e-3)) for side in (inside, outside)]
        found.append(stats.norm.logpdf(value, *fits[0]) - stats.norm.logpdf(value, *fits[1]))
    return np.array(found)


@pytest.mark.parametrize("models", [4, 9, 31, 32, 48])
def test_the_likelihood_ratio_is_that_of_the_plain_loop(models):
    rng = np.random.default_rng(models)
    keep = halves(models, 60, rng=rng)
    references = np.round(rng.normal(keep * 1.5, 1.0, keep.shape), 1)
    phi = np.round(rng.normal(0.7, 1.5, 60), 1)

    found = ratios(phi, references, keep)

    np.testing.assert_allclose(found.scores, plain_ratio(phi, references, keep), rtol=1e-12, atol=1e-12)


def plain_relative(of_target, references, keep, population, others, *, a, gamma, strict):
    """RMIA as its paper has it: for every record and member of the population the ratio of their ratios, and how many exceed gamma."""

    def expected(values, kept, i):
        if a is None:
            return np.mean(values[:, i])
        return ((1 + a) * np.mean(values[~kept[:, i], i]) + (1 - a)) / 2

    of_records = [of_target[i] / expected(references, keep, i) for i in range(len(of_target))]
    nobody = np.zeros_like(others, dtype=bool)
    of_population = [population[j] / expected(others, nobody, j) for j in range(len(population))]
    return [np.mean([(x > gamma * z) if strict else (x >= gamma * z) for z in of_population]) for x in of_records]


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("a", [None, 0.3])
def test_the_relative_score_is_that_of_the_matrix_of_pairs(a, gamma, strict):
    rng = np.random.default_rng(9)
    keep = halves(6, 80, rng=rng)
    constant = np.full((6, 80), 0.5)  # with powers of two every ratio is exact, so that ties are ties
    target, population = 2.0 ** rng.integers(-6, 0, 80), 2.0 ** rng.integers(-6, 0, 70)
    expected = plain_relative(target, constant, keep, population, constant[:, :70], a=a, gamma=gamma, strict=strict)

    of_records = target / expected_probability(constant, keep, a=a)
    of_population = population / expected_probability(constant[:, :70], np.zeros((6, 70), dtype=bool), a=a)
    found = relative_scores(of_records, of_population, gamma=gamma, strict=strict)

    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(np.unique(found)) < 10  # most are ties


def test_without_ties_the_relative_score_is_that_of_the_matrix_of_pairs_too():
    rng = np.random.default_rng(10)
    keep = halves(8, 60, rng=rng)
    references, target = rng.random((8, 60)), rng.random(60)
    others, population = rng.random((8, 50)), rng.random(50)
    expected = plain_relative(target, references, keep, population, others, a=0.3, gamma=1.5, strict=False)

    of_records = target / expected_probability(references, keep)
    of_population = population / expected_probability(others, np.zeros((8, 50), dtype=bool))

    np.testing.assert_allclose(relative_scores(of_records, of_population, gamma=1.5), expected, atol=1e-12)


@pytest.mark.soak
def test_the_whole_attack_on_fifty_thousand_by_fifty_thousand_stays_below_a_gigabyte():
    rng = np.random.default_rng(11)
    keep = halves(16, 50_000, rng=rng)
    references, target, population = rng.random((16, 50_000)), rng.random(50_000), rng.random(50_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    of_records = target / expected_probability(references, keep)
    of_population = population / expected_probability(references, np.zeros_like(keep))
    scores = relative_scores(of_records, of_population)
    found = ratios(target, references, keep).scores

    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 1e9
    assert scores.shape == found.shape == (50_000,)
    assert 0 <= scores.min() <= scores.max() <= 1
