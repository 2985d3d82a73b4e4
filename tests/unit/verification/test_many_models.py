"""Many unlearned models against many retrained ones: the divergence of margins, and the forgetting quality of the competition."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from services.verification.statistics import klom, many_models, neurips


def pairs(models, records=60, gap=0.0, seed=0):
    """Margins of `models` unlearned and twice as many retrained models, `gap` apart on every record."""
    rng = np.random.default_rng(seed)
    centre, spread = rng.normal(0, 3, records), rng.uniform(0.5, 2, records)
    drawn = centre + spread * rng.normal(size=(3 * models, records))
    drawn[:models] += gap * spread
    return drawn[:models], drawn[models:]


def entropy_of(first, second):
    edges = np.linspace(min(first.min(), second.min()), max(first.max(), second.max()), 21)
    shares = [np.clip(np.histogram(side, bins=edges)[0] / len(side), 1e-5, None) for side in (first, second)]
    return stats.entropy(*shares)


@pytest.mark.parametrize(("models", "gap"), [(20, 0.0), (100, 0.5), (300, 3.0)])
def test_the_divergence_of_each_record_is_scipys(models, gap):
    unlearned, retrained = pairs(models, gap=gap)

    found = klom.klom(unlearned, retrained)

    expected = [entropy_of(unlearned[:, record], retrained[:, record]) for record in range(60)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_equal_models_diverge_by_nothing_and_disjoint_ones_by_no_more_than_the_least_share_allows():
    unlearned, retrained = pairs(30)

    assert (klom.klom(unlearned, unlearned[::-1]) == 0).all()
    assert (klom.klom(np.ones((30, 4)), np.ones((40, 4))) == 0).all()
    apart = klom.klom(unlearned + 50, retrained)
    assert (apart > 9).all()
    assert (apart < np.log(1e5)).all()


def test_the_divergence_is_of_the_unlearned_from_the_retrained_and_not_the_other_way_round():
    both, one = np.repeat([[0.0], [1.0]], 40, axis=0), np.zeros((80, 1))

    assert klom.klom(one, both)[0] == pytest.approx(np.log(2), abs=1e-3)
    assert klom.klom(both, one)[0] == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-5), abs=1e-3)


def test_one_boundless_margin_does_not_swallow_the_bins():
    unlearned, retrained = pairs(60, records=1, gap=4.0)
    retrained[0] = 1e12

    assert klom.klom(unlearned, retrained)[0] == pytest.approx(entropy_of(unlearned, np.minimum(retrained, 100)), rel=1e-9)


def test_records_are_judged_each_alone_and_float32_agrees():
    unlearned, retrained = pairs(40, gap=1.0)

    whole = klom.klom(unlearned, retrained)

    assert klom.klom(unlearned[:, 7:8], retrained[:, 7:8])[0] == whole[7]
    np.testing.assert_allclose(klom.klom(unlearned[::-1], retrained[::-1]), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(0.0, 1.0), (0.5, 0.5), (1.21, 0.25), (3.0, 0.015625), (6.5, 0.000244140625), (np.inf, 0.000244140625)]
)
def test_a_step_of_epsilon_halves_the_score(epsilon, expected):
    assert float(neurips.steps_of(epsilon)) == expected


def test_the_terms_of_an_attack_are_those_of_the_vector():
    first, second = neurips.epsilon_terms(0.1, 0.2, delta=0.01)

    assert float(first) == pytest.approx(1.492904, abs=1e-6)
    assert float(second) == pytest.approx(2.066863, abs=1e-6)
    assert neurips.epsilons(np.array([[0.1]]), np.array([[0.2]]), delta=0.01)[0] == pytest.approx(2.066863, abs=1e-6)


@pytest.mark.parametrize(
    ("fpr", "fnr", "expected"),
    [
        (0.0, 0.0, np.inf),  # never wrong
        (0.0, 0.9, 0.0),  # right on one side by the number of models alone: discarded
        (0.9, 0.0, 0.0),
        (1.0, 1.0, np.inf),  # always wrong: its opposite is never wrong
        (1.0, 0.5, np.log(0.49)),  # one logarithm has no value, the other one counts
        (0.5, 0.5, np.log(0.49 / 0.5)),
    ],
)
def test_attacks_without_mistakes_are_infinite_or_discarded(fpr, fnr, expected):
    assert neurips.epsilons(np.array([[fpr]]), np.array([[fnr]]), delta=0.01)[0] == pytest.approx(max(expected, 0.0))


def test_a_record_has_the_epsilon_of_its_strongest_attack():
    fpr, fnr = np.array([[0.1, 0.5], [0.0, 0.4], [0.3, 0.0]]), np.array([[0.2, 0.5], [0.6, 0.4], [0.3, 0.5]])

    found = neurips.epsilons(fpr, fnr, delta=0.01)

    assert found == pytest.approx([2.066863, np.log(0.59 / 0.4)], abs=1e-6)


def test_every_threshold_is_tried_both_ways_and_ties_are_not_above_it():
    rng = np.random.default_rng(1)
    unlearned, retrained = rng.integers(0, 4, (9, 5)).astype(float), rng.integers(0, 4, (9, 5)).astype(float)

    found = [set(zip(*np.round([side[:, record] for side in neurips.threshold_rates(unlearned, retrained)], 9), strict=True)) for record in range(5)]

    for record, rates in enumerate(found):
        expected: set[tuple[float, float]] = set()
        for threshold in np.concatenate([unlearned[:, record], retrained[:, record]]):
            false_alarms, misses = np.mean(retrained[:, record] > threshold), np.mean(unlearned[:, record] <= threshold)
            expected |= {(round(false_alarms, 9), round(misses, 9)), (round(1 - false_alarms, 9), round(1 - misses, 9))}
        assert rates == expected


def test_the_logistic_regression_is_scikit_learns():
    rng = np.random.default_rng(2)
    labels = np.arange(60) < 30
    values = rng.normal(size=(60, 30)) * rng.uniform(0.1, 30, 30) + rng.normal(0, 20, 30)
    values[:30, :15] += rng.uniform(0, 60, 15)

    slope, offset = neurips.fitted(values, labels)

    for record in range(30):
        fit = LogisticRegression(tol=1e-10, max_iter=10_000, solver="newton-cholesky").fit(values[:, [record]], labels)
        assert slope[record] == pytest.approx(fit.coef_[0, 0], rel=1e-5, abs=1e-7)
        assert offset[record] == pytest.approx(fit.intercept_[0], rel=1e-5, abs=1e-5)


def test_the_regression_calls_no_model_by_a_fit_on_it():
    """Nine of ten models are alike, so that a fit which had seen the tenth would know it by heart: each outlier alone must be missed."""
    unlearned, retrained = np.zeros((10, 1)), np.zeros((10, 1))
    unlearned[0] = 1000.0

    false_alarms, misses = neurips.regression_rates(unlearned, retrained, rng=np.random.default_rng(0))

    assert float(false_alarms[0, 0] + misses[0, 0]) == pytest.approx(1.0, abs=0.21)
    far, near = neurips.regression_rates(unlearned + 5, retrained - 5, rng=np.random.default_rng(0))
    assert (far[0, 0], near[0, 0]) == (0.0, 0.0)


def test_models_that_are_plainly_apart_have_the_least_score_and_so_have_those_that_are_apart_the_other_way():
    unlearned, retrained = pairs(16, gap=30.0)

    for one, other in ((unlearned, retrained[:16]), (retrained[:16], unlearned)):
        assert neurips.forgetting_quality(one, other, rng=np.random.default_rng(0)) == 0.000244140625


@pytest.mark.parametrize(("test", "models"), [(klom.klom_beside, 24), (neurips.quality_beside, 24)])
def test_what_was_left_behind_has_a_small_p_value_beside_a_null_that_has_none(test, models):
    unlearned, retrained = pairs(models, gap=1.5)

    left = test(unlearned, retrained, rng=np.random.default_rng(1))
    nothing = test(*pairs(models, seed=3), rng=np.random.default_rng(1))

    assert left.p == 1 / 200
    assert nothing.p > 0.05
    assert abs(nothing.value - nothing.null) < abs(left.value - left.null)
    assert (left.value > left.null) is (test is klom.klom_beside)


@pytest.mark.parametrize("test", [klom.klom_beside, neurips.quality_beside])
def test_of_exchangeable_models_few_have_a_small_p_value(test, monkeypatch):
    """Of 60 worlds in which nothing is left a p-value of .1 comes up 6 times; more than 14 would be chance in one of a thousand."""
    monkeypatch.setattr(many_models, "SHUFFLES", 19)

    found = [test(*pairs(20, records=12, seed=seed), rng=np.random.default_rng(seed)).p for seed in range(60)]

    assert sum(p <= 0.1 for p in found) <= 14
    assert np.mean(found) == pytest.approx(0.525, abs=4 * 0.29 / np.sqrt(60))


@pytest.mark.parametrize(("test", "least"), [(klom.klom_beside, 20), (neurips.quality_beside, 8)])
def test_too_few_models_are_refused(test, least):
    unlearned, retrained = pairs(least)
    test(unlearned, retrained, rng=np.random.default_rng(0))

    with pytest.raises(ValueError, match=f"at least {least} models"):
        test(unlearned[1:], retrained[2:], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="two for each unlearned one"):
        test(unlearned, retrained[1:], rng=np.random.default_rng(0))


def test_the_final_score_weighs_the_quality_by_what_accuracy_is_left():
    assert neurips.final_score(0.5, retain=(0.9, 1.0), test=(0.8, 0.64)) == pytest.approx(0.5 * 0.9 * 1.25)
    assert neurips.final_score(0.5, retain=(0.9, 1.0), test=(0.8, 0.0)) is None


FLOOR = {8: (1.21, 0.27), 32: (1.31, 0.29), 128: (1.14, 0.32), 256: (0.87, 0.52), 512: (0.50, 0.80)}


@pytest.mark.soak
def test_below_256_models_the_forgetting_quality_of_nothing_left_is_mostly_noise():
    """Both sides are of one distribution: F ought to be 1. The table is of another simulation, by thresholds alone. Few models make a rare epsilon infinite."""
    rng, found = np.random.default_rng(6), {}
    for models in FLOOR:
        epsilon = neurips.record_epsilons(*(rng.normal(size=(models, 1500)) for _ in range(2)), rng=rng)
        found[models] = (float(epsilon[np.isfinite(epsilon)].mean()), float(neurips.steps_of(epsilon).mean()))

    assert found[8][1] < found[32][1] < found[128][1] < found[256][1] < found[512][1] < 0.9
    assert found[32][0] > found[128][0] > found[256][0] > found[512][0] > 0.4
    for models, (epsilon, quality) in FLOOR.items():
        assert found[models] == (pytest.approx(epsilon, abs=0.08), pytest.approx(quality, abs=0.04))


@pytest.mark.soak
def test_the_floor_of_the_divergence_falls_with_the_number_of_models():
    rng = np.random.default_rng(7)

    floors = [np.percentile(klom.klom(*(rng.normal(size=(models, 1500)) for _ in range(2))), 95) for models in (20, 32, 128, 512)]

    assert floors[0] > floors[1] > floors[2] > floors[3]
    assert floors[1] > 2  # of 32 models nothing below two nats says anything
    assert floors[3] < 0.1
