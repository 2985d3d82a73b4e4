"""The arithmetic of attacks that use reference models, against closed forms, scipy and the pair loop."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from services.verification.statistics import likelihood_ratio, one_run, relative_membership
from services.verification.statistics.roc import auc


def test_the_online_score_is_the_difference_of_two_log_densities():
    one = np.ones(1)

    found = likelihood_ratio.online_scores(2 * one, 2 * one, one, 0 * one, one)

    assert found[0] == pytest.approx(2.0, abs=1e-12)


def test_the_offline_score_is_the_log_of_the_normal_distribution_and_rises_with_the_margin():
    phi = np.linspace(-5, 8, 200)

    found = likelihood_ratio.offline_scores(phi, np.zeros(200), np.ones(200))

    assert likelihood_ratio.offline_scores(np.array([2.0]), np.zeros(1), np.ones(1))[0] == pytest.approx(-0.023013, abs=1e-6)
    np.testing.assert_allclose(found, stats.norm.logcdf(phi), rtol=1e-12)
    assert (np.diff(found) > 0).all()


def test_every_record_is_in_exactly_half_of_the_models():
    keep = likelihood_ratio.halves(9, 500, rng=np.random.default_rng(0))

    assert set(keep.sum(axis=0).tolist()) == {4}
    assert 0.3 < keep[0].mean() < 0.6


def test_spreads_of_members_and_non_members_are_kept_apart_from_sixteen_models_a_side():
    rng = np.random.default_rng(1)
    keep = likelihood_ratio.halves(64, 300, rng=rng)
    references = np.where(keep, rng.normal(3, 2.0, keep.shape), rng.normal(0, 0.5, keep.shape))
    phi = rng.normal(1, 1, 300)

    found = likelihood_ratio.ratios(phi, references, keep)

    for record in range(0, 300, 37):
        inside, outside = references[keep[:, record], record], references[~keep[:, record], record]
        means = [np.median(side) for side in (inside, outside)]
        spreads = [np.sqrt(np.mean((side - mean) ** 2)) for side, mean in zip((inside, outside), means, strict=True)]
        expected = stats.norm.logpdf(phi[record], means[0], spreads[0]) - stats.norm.logpdf(phi[record], means[1], spreads[1])
        assert found.scores[record] == pytest.approx(expected, rel=1e-9)
    assert found.form == "online"


def test_with_few_models_the_offline_form_is_taken_and_tells_members():
    rng = np.random.default_rng(2)
    hardness = rng.normal(0, 3, 1000)
    keep = likelihood_ratio.halves(8, 1000, rng=rng)
    references = hardness + keep * 1.0 + rng.normal(0, 1, keep.shape)
    member = rng.random(1000) < 0.5
    phi = hardness + member * 1.0 + rng.normal(0, 1, 1000)

    found = likelihood_ratio.ratios(phi, references, keep)

    assert found.form == "offline"
    assert auc(found.scores[member], found.scores[~member]) > auc(phi[member], phi[~member]) + 0.05  # .72 simulated, the margin alone .6


def test_a_record_that_every_model_learned_from_is_refused():
    with pytest.raises(ValueError, match="did not learn"):
        likelihood_ratio.ratios(np.zeros(2), np.zeros((3, 2)), np.array([[True, False]] * 3))


def test_equal_references_give_finite_scores():
    keep = likelihood_ratio.halves(40, 5, rng=np.random.default_rng(3))

    assert np.isfinite(likelihood_ratio.ratios(np.full(5, 30.0), np.zeros((40, 5)), keep).scores).all()


@pytest.mark.parametrize(("strict", "expected"), [(False, 2 / 3), (True, 1 / 3)])
def test_the_relative_score_counts_ties_unless_strict(strict, expected):
    found = relative_membership.relative_scores([2.0], [1.0, 2.0, 4.0], strict=strict)

    assert found[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize("strict", [False, True])
def test_the_sorted_form_equals_the_loop_over_pairs(gamma, strict):
    rng = np.random.default_rng(4)
    records, population = rng.integers(1, 40, 200) / 8, rng.integers(1, 40, 150) / 8

    found = relative_membership.relative_scores(records, population, gamma=gamma, strict=strict)

    loop = [np.mean([(x / z > gamma) if strict else (x / z >= gamma) for z in population]) for x in records]
    np.testing.assert_allclose(found, loop, atol=1e-12)


def test_fifty_thousand_by_fifty_thousand_stays_far_below_a_gigabyte():
    rng = np.random.default_rng(5)
    records, population = rng.random(50_000), rng.random(50_000)
    tracemalloc.start()

    relative_membership.relative_scores(records, population)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the matrix of pairs would take 20 GB


def test_the_expected_probability_has_both_forms():
    references = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.3, 0.5]])
    keep = np.array([[True, False], [True, False], [False, True], [False, True]])

    offline = relative_membership.expected_probability(references, keep, a=0.3)

    np.testing.assert_allclose(offline, [(1.3 * 0.2 + 0.7) / 2, (1.3 * 0.3 + 0.7) / 2])
    np.testing.assert_allclose(relative_membership.expected_probability(references, keep, a=None), references.mean(axis=0))


@pytest.mark.parametrize(
    ("right", "delta", "expected"),
    [(100, 0.0, 3.4930), (90, 0.0, 1.6308), (60, 0.0, 0.0519), (58, 0.0, 0.0), (100, 1e-5, 3.4875), (90, 1e-5, 1.6299)],
)
def test_the_bound_of_one_run_has_the_known_values(right, delta, expected):
    found = one_run.epsilon_of_guesses(canaries=200, guesses=100, right=right, delta=delta)

    assert found == pytest.approx(expected, abs=1e-4)


def test_guessing_at_random_is_rarely_held_against_a_private_method():
    rng = np.random.default_rng(7)

    found = [one_run.epsilon_of_guesses(canaries=200, guesses=100, right=int(rng.binomial(100, 0.5))) for _ in range(1000)]

    assert np.mean(np.array(found) > 0) <= 0.065  # 5 % and the error of a thousand draws; the exact size is .0443


@pytest.mark.parametrize(("guesses", "right"), [(201, 3), (10, 11)])
def test_more_guesses_than_there_can_be_are_refused(guesses, right):
    with pytest.raises(ValueError, match="exceed"):
        one_run.epsilon_of_guesses(canaries=200, guesses=guesses, right=right)
