"""Intervals, areas and tests against scipy, scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import roc_auc_score

from services.verification.statistics import bootstrap, divergence, equivalence, intervals, learned, roc, scores
from services.verification.statistics.equivalence import Place
from services.verification.statistics.intervals import Interval
from services.verification.statistics.paired_shares import score_interval

torch.set_num_threads(1)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.036217), (5, 0.016432, 0.112835)])
def test_clopper_pearson_at_95_percent_has_the_known_bounds(hits, low, high):
    assert intervals.clopper_pearson(hits, 100, level=0.95) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 300), st.data())
@settings(max_examples=40, deadline=None)
def test_clopper_pearson_equals_scipys_exact_interval(trials, data):
    hits = data.draw(st.integers(0, trials))

    expected = stats.binomtest(hits, trials).proportion_ci(0.9, method="exact")

    assert intervals.clopper_pearson(hits, trials, level=0.9) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_paired_interval_has_the_closed_form_of_the_score_test_when_models_agree_everywhere():
    z2 = stats.norm.ppf(0.95) ** 2

    for trials in (10, 100, 1000):
        bound = z2 / (trials + z2)
        assert intervals.paired_proportions(0, 0, trials, level=0.9) == pytest.approx((-bound, bound), abs=1e-6)


@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (0, 5), (100, 0), (40, 40)])
def test_paired_interval_turns_its_sign_with_the_models_and_holds_the_estimate(gained, lost):
    low, high = intervals.paired_proportions(gained, lost, 100, level=0.9)
    turned = intervals.paired_proportions(lost, gained, 100, level=0.9)

    assert low - 1e-9 <= (gained - lost) / 100 <= high + 1e-9
    assert turned == pytest.approx((-high, -low), abs=1e-6)


def likeliest_statistic(gained, lost, trials, difference):
    """The score statistic with the share of `lost` that a search over the likelihood under H0 finds, not the closed form."""

    def unlikelihood(share):
        return -(gained * np.log(share + difference) + lost * np.log(share) + (trials - gained - lost) * np.log1p(-2 * share - difference))

    edges = (max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12)
    share = optimize.minimize_scalar(unlikelihood, bounds=edges, method="bounded", options={"xatol": 1e-13}).x
    return (gained - lost - trials * difference) / np.sqrt(trials * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(("gained", "lost", "trials"), [(3, 9, 60), (5, 5, 60), (20, 20, 60), (1, 30, 400)])
def test_at_the_bounds_of_the_paired_interval_the_score_statistic_is_the_normal_quantile(gained, lost, trials):
    low, high = intervals.paired_proportions(gained, lost, trials, level=0.9)

    assert likeliest_statistic(gained, lost, trials, low) == pytest.approx(stats.norm.ppf(0.95), abs=1e-5)
    assert likeliest_statistic(gained, lost, trials, high) == pytest.approx(-stats.norm.ppf(0.95), abs=1e-5)


def test_many_tables_at_once_have_the_intervals_that_each_has_alone():
    counts = np.array([[0, 0], [3, 9], [12, 0], [3, 9], [60, 0], [0, 60]])

    low, high = score_interval(counts[:, 0], counts[:, 1], 60, z=stats.norm.ppf(0.95))

    for place, (gained, lost) in enumerate(counts.tolist()):
        assert (low[place], high[place]) == pytest.approx(intervals.paired_proportions(gained, lost, 60, level=0.9), abs=1e-11)
    assert (high[4], low[5]) == pytest.approx((1.0, -1.0), abs=1e-9)


def test_paired_interval_covers_the_true_difference_about_as_often_as_it_says():
    """90 % nominal; 400 runs have a standard error of 1.5 points, so 85 % is a false alarm of about 1 in 3000."""
    generator = rng(3)
    drawn = generator.multinomial(120, [0.08, 0.04, 0.88], size=400)
    found = [intervals.paired_proportions(int(row[0]), int(row[1]), 120, level=0.9) for row in drawn]

    assert np.mean([low <= 0.04 <= high for low, high in found]) > 0.85


def test_mean_interval_agrees_with_the_t_interval_on_normal_data_and_repeats():
    values = rng(1).normal(2.0, 1.0, size=400)

    found = intervals.mean_interval(values, level=0.9, rng=rng(5))

    expected = stats.t.interval(0.9, 399, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx(expected, abs=0.02)
    assert found == intervals.mean_interval(values, level=0.9, rng=rng(5))


def test_mean_interval_of_equal_rows_has_no_width_and_of_many_rows_is_the_normal_one():
    many = rng(2).normal(size=6000)

    assert intervals.mean_interval(np.ones(9), level=0.9, rng=rng()) == (1.0, 1.0)
    assert intervals.mean_interval(many, level=0.9, rng=rng()) == pytest.approx(
        stats.norm.interval(0.9, loc=many.mean(), scale=stats.sem(many)), abs=1e-9
    )


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=25), st.lists(st.integers(-3, 3), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_auc_is_mann_whitney_with_ties(inside, outside):
    expected = stats.mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))

    assert roc.auc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert roc.auc(inside, outside) == pytest.approx(roc_auc_score([1] * len(inside) + [0] * len(outside), [*inside, *outside]), abs=1e-12)


def test_auc_of_separated_tied_and_inverted_scores():
    assert roc.auc([2, 3], [0, 1]) == 1
    assert roc.auc([1, 1], [1, 1, 1]) == 0.5
    assert roc.auc([0], [1, 2]) == 0


@pytest.mark.parametrize("count", [30, 60, 91, 160])
def test_auc_of_separated_and_of_tied_scores_is_exact_whatever_the_number_and_weights(count):
    weights = rng(count).random(count)

    assert roc.auc(np.ones(count), np.zeros(count)) == roc.auc(np.ones(count), np.zeros(count), weights) == 1
    assert roc.auc(np.zeros(count), np.zeros(count), weights) == 0.5


def test_weighted_auc_is_that_of_scikit_learn_and_of_repeated_rows():
    generator = rng(4)
    inside, outside = generator.normal(0.3, 1, 40).round(1), generator.normal(size=30).round(1)
    weights = generator.integers(1, 5, 30)

    found = roc.auc(inside, outside, weights)

    labels, joined = [1] * 40 + [0] * 30, np.concatenate([inside, outside])
    assert found == pytest.approx(roc_auc_score(labels, joined, sample_weight=np.concatenate([np.ones(40), weights])), abs=1e-12)
    assert found == pytest.approx(roc.auc(inside, np.repeat(outside, weights)), abs=1e-12)


def test_class_weights_give_non_members_the_members_mix():
    weights = roc.class_weights([0, 0, 0, 1], [0, 1, 1, 2])

    assert weights.tolist() == [3, 0.5, 0.5, 0]


def test_auc_interval_at_the_null_has_the_known_half_width():
    """n = 500 a side: .036 at 95 %; the DeLong estimate scatters by a few percent around it."""
    generator = rng(7)
    halves = []
    for _ in range(20):
        low, high = roc.auc_interval(generator.normal(size=500), generator.normal(size=500), level=0.95)
        halves.append((high - low) / 2)

    assert np.mean(halves) == pytest.approx(1.96 / math.sqrt(6 * 500), rel=0.03)


def test_auc_interval_of_a_perfect_attack_keeps_a_width_that_shrinks_with_the_sample():
    small, large = (roc.auc_interval(np.ones(n), np.zeros(n), level=0.95) for n in (10, 1000))

    assert small.high == large.high == 1
    assert small.low < large.low < 1
    assert large.low > 0.99


def covering(runs, members=100, others=120, seed=11):
    generator = rng(seed)
    hits = 0
    for _ in range(runs):
        inside, outside = generator.normal(size=members), generator.normal(size=others)
        low, high = roc.auc_interval(inside, outside, level=0.95)
        hits += low <= 0.5 <= high
    return hits / runs


def test_auc_interval_covers_one_half_on_exchangeable_data_in_93_percent_of_runs():
    """95 % nominal over 200 runs: 93 % is missed by chance in about one of ten seeds, so the seed is fixed."""
    assert covering(200) >= 0.93


@pytest.mark.soak
def test_auc_interval_covers_one_half_on_exchangeable_data_in_93_percent_of_a_thousand_runs():
    assert covering(1000, seed=12) >= 0.93
    assert covering(1000, members=60, others=400, seed=13) >= 0.93


def test_paired_auc_difference_equals_the_difference_of_areas_and_is_tighter_than_either():
    generator = rng(8)
    base_in, base_out = generator.normal(0.3, 1, 300), generator.normal(size=300)
    first = roc.Sides(base_in + generator.normal(0, 0.1, 300), base_out + generator.normal(0, 0.1, 300))
    second = roc.Sides(base_in, base_out)

    value, (low, high) = roc.paired_auc_difference(first, second, level=0.9, rng=rng(1))

    assert value == pytest.approx(roc.auc(*first) - roc.auc(*second), abs=1e-12)
    assert low <= value <= high
    alone = roc.auc_interval(*first, level=0.9)
    assert high - low < 0.3 * (alone.high - alone.low)


def test_resampled_areas_are_the_areas_of_the_resampled_rows():
    generator = rng(9)
    inside, outside = generator.integers(0, 5, 12).astype(float), generator.integers(0, 5, 9).astype(float)
    counts, weights = generator.multinomial(12, np.full(12, 1 / 12)), generator.multinomial(9, np.full(9, 1 / 9))

    found = roc.resampled_aucs(
        np.concatenate([inside, outside]), np.concatenate([counts, np.zeros(9)])[None] * 1.0, np.concatenate([np.zeros(12), weights])[None] * 1.0
    )

    assert found[0] == pytest.approx(roc.auc(np.repeat(inside, counts), np.repeat(outside, weights)), abs=1e-12)


def test_paired_difference_of_equal_scores_is_zero_and_of_saturated_ones_stays_wide():
    sides = roc.Sides(np.arange(30.0) + 100, np.arange(20.0))
    shifted = roc.Sides(sides.members + 1, sides.non_members)

    assert roc.paired_auc_difference(sides, sides, level=0.9, rng=rng()) == (0.0, (0.0, 0.0))
    _, (low, high) = roc.paired_auc_difference(sides, shifted, level=0.9, rng=rng())
    assert high == pytest.approx(1 - 0.05 ** (1 / 20))
    assert low == -high


def test_true_positive_rate_uses_an_order_statistic_and_counts_ties_as_false_positives():
    calibrate = np.arange(100.0)

    rate = roc.tpr_at_fpr([98.0, 95.0, 94.0, 94.5], calibrate, fpr=0.05, level=0.95)

    assert rate.threshold == 94
    assert rate.value == 0.75
    assert roc.tpr_at_fpr([1.0, 1.0], np.ones(100), fpr=0.05, level=0.95).value == 0


@pytest.mark.parametrize(("fp", "fn", "expected"), [(0, 0, 3.2813), (5, 50, 1.2613), (50, 50, 0.0)])
def test_lower_epsilon_has_the_known_values(fp, fn, expected):
    found = roc.epsilon_lower(false_positives=fp, non_members=100, false_negatives=fn, members=100)

    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.47, 0.54, Place.INSIDE), (0.48, 0.60, Place.UNDECIDED), (0.56, 0.60, Place.ABOVE), (0.40, 0.44, Place.BELOW)],
)
def test_an_interval_is_placed_against_the_band(low, high, expected):
    assert equivalence.place(Interval(low, high), Interval(0.45, 0.55)) is expected


def test_p_value_beyond_the_band_is_one_half_alpha_where_the_interval_touches_it():
    band = Interval(-0.05, 0.05)

    assert equivalence.beyond_p(0.10, Interval(0.05, 0.15), band, level=0.9) == pytest.approx(0.05, abs=1e-9)
    assert equivalence.beyond_p(-0.10, Interval(-0.3, -0.05), band, level=0.9) == pytest.approx(0.05, abs=1e-9)
    assert equivalence.beyond_p(0.04, Interval(-0.1, 0.2), band, level=0.9) == 1
    assert equivalence.beyond_p(0.2, Interval(0.2, 0.2), band, level=0.9) == 0


def test_holm_steps_down_and_stops_at_the_first_that_fails():
    assert equivalence.holm([0.01, 0.04, 0.03, 0.005], alpha=0.05) == [True, False, False, True]
    assert equivalence.holm([], alpha=0.05) == []


@pytest.mark.parametrize(("n", "m", "expected"), [(200, 200, 0.07), (200, 3000, 0.53), (500, 500, 0.73), (500, 3000, 0.95), (180, 180, 0.0)])
def test_power_of_equivalence_has_the_known_values(n, m, expected):
    assert equivalence.equivalence_power(math.sqrt((1 / n + 1 / m) / 12), 0.05) == pytest.approx(expected, abs=0.012)


def test_permutation_test_is_exact_for_few_rows_and_close_to_the_t_test_for_many():
    few = np.array([1.0, 2.0, 3.0, 4.0])
    many = rng(6).normal(0.2, 1, 100)

    assert bootstrap.paired_permutation_p(few, rng=rng()) == 2 / 16
    assert bootstrap.paired_permutation_p(many, rng=rng()) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.02)


def test_normalised_entropy_is_scipys_over_the_logarithm_of_the_classes():
    assert float(bootstrap.normalised_entropy([8, 1, 1])) == pytest.approx(0.581672, abs=1e-6)
    assert float(bootstrap.normalised_entropy([8, 1, 1])) == pytest.approx(stats.entropy([8, 1, 1]) / math.log(3), abs=1e-12)
    assert float(bootstrap.normalised_entropy([5, 0])) == 0
    assert float(bootstrap.normalised_entropy([4, 4, 4])) == pytest.approx(1)


def test_modified_entropy_has_the_known_values_alone_and_among_batch_mates():
    p = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])

    together = scores.modified_entropies(p, [0, 1, 2])

    assert together[:2] == pytest.approx([0.162167, 2.140867], abs=1e-6)
    assert together == pytest.approx(np.concatenate([scores.modified_entropies(p[[i]], [i]) for i in range(3)]))


def test_entropy_margin_and_loss_have_their_closed_forms():
    z = rng(3).normal(size=(50, 10)) * 3
    y = rng(4).integers(0, 10, 50)
    p = np.exp(scores.log_probabilities(z))
    true = p[np.arange(50), y]

    assert scores.entropies(np.full((1, 10), -math.log(10)))[0] == pytest.approx(2.302585, abs=1e-6)
    assert scores.entropies(np.log(p)) == pytest.approx(stats.entropy(p, axis=1))
    assert scores.margins(z, y) == pytest.approx(np.log(true / (1 - true)), abs=1e-8)
    assert -scores.negative_losses(z, y) == pytest.approx(
        torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y), reduction="none").numpy(), abs=1e-12
    )


def test_margin_of_a_certain_row_is_finite():
    z = np.zeros((1, 3))
    z[0, 0] = 800.0

    assert scores.margins(z, [0])[0] == pytest.approx(800 - math.log(2))


@pytest.mark.parametrize("function", [divergence.jensen_shannon_bits, divergence.legacy_divergence, divergence.euclidean])
def test_divergences_treat_each_row_alone_and_agree_in_float32(function):
    first, second = (scores.log_probabilities(rng(seed).normal(size=(40, 7)) * 2) for seed in (1, 2))

    whole = function(first, second)

    assert whole == pytest.approx(np.concatenate([function(first[[i]], second[[i]]) for i in range(40)]), abs=1e-12)
    assert whole == pytest.approx(function(first.astype(np.float32), second.astype(np.float32)), abs=1e-5)


def test_jensen_shannon_is_scipys_squared_distance_over_classes_not_over_rows():
    p, q = (rng(seed).dirichlet(np.ones(6), size=30) for seed in (5, 6))

    found = divergence.jensen_shannon_bits(np.log(p), np.log(q))

    assert found == pytest.approx(jensenshannon(p, q, base=2, axis=1) ** 2, abs=1e-12)
    assert found.mean() != pytest.approx((jensenshannon(p, q, base=2, axis=0) ** 2).mean(), abs=1e-3)


def test_cross_fitted_attack_finds_planted_members_and_nothing_in_exchangeable_rows():
    generator = rng(2)
    features = generator.normal(size=(400, 4))
    planted = learned.cross_fitted_scores(features[:200] + 3, features[200:], np.ones(200), rng=rng(1))
    exchangeable = learned.cross_fitted_scores(features[:200], features[200:], np.ones(200), rng=rng(1))

    assert roc.auc(*planted) > 0.99
    assert 0.36 < roc.auc(*exchangeable) < 0.62
