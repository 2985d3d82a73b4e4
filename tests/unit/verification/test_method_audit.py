"""Audits of a method: many runs of forgetting against runs that never saw a record, and one run with canaries."""

import numpy as np
import pytest
from scipy import stats

from services.verification.statistics import method_audit
from services.verification.statistics.likelihood_ratio import halves
from services.verification.statistics.roc import auc


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(method_audit, "RESAMPLES", 49)
    monkeypatch.setattr(method_audit, "SHUFFLES", 9)


def worlds(gap, runs=32, records=120, seed=0):
    """Margins of unlearned models: `gap` is what forgetting left behind of a record."""
    rng = np.random.default_rng(seed)
    forgotten = halves(runs, records, rng=rng)
    return rng.normal(0, 2, records) + gap * forgotten + rng.normal(size=forgotten.shape), forgotten


def test_a_target_is_in_no_fit_of_its_own():
    phi, forgotten = worlds(0.5)
    changed = phi.copy()
    changed[3] = 1e6

    found, after = (method_audit.left_out_ratios(values, forgotten) for values in (phi, changed))

    for record in (0, 17, 119):
        beside = next(run % 32 for run in range(4, 36) if forgotten[run % 32, record] != forgotten[3, record])
        used = ~np.isin(np.arange(32), [3, beside])
        sides = [phi[used & side[:, record], record] for side in (forgotten, ~forgotten)]
        means = [np.median(side) for side in sides]
        spreads = [np.sqrt(np.mean((side - mean) ** 2)) for side, mean in zip(sides, means, strict=True)]
        expected = [stats.norm.logpdf(phi[3, record], *fit) for fit in zip(means, spreads, strict=True)]
        assert {len(side) for side in sides} == {15}
        assert found[3, record] == pytest.approx(expected[0] - expected[1], rel=1e-9)
    assert np.isfinite(after).all()
    assert (found[3] != after[3]).all()


def test_below_sixteen_runs_a_side_all_records_share_one_spread():
    phi, forgotten = worlds(1.0, runs=12, records=40)

    found = method_audit.left_out_ratios(phi, forgotten)

    used = np.ones((12, 40), dtype=bool)
    used[5] = False
    for record in range(40):
        used[next(run % 12 for run in range(6, 18) if forgotten[run % 12, record] != forgotten[5, record]), record] = False
    sides = [np.where(side & used, phi, np.nan) for side in (forgotten, ~forgotten)]
    means = [np.nanmedian(side, axis=0) for side in sides]
    spreads = [np.sqrt(np.nanmean((side - mean) ** 2)) for side, mean in zip(sides, means, strict=True)]
    expected = stats.norm.logpdf(phi[5], means[0], spreads[0]) - stats.norm.logpdf(phi[5], means[1], spreads[1])
    np.testing.assert_allclose(found[5], expected, rtol=1e-9)


@pytest.mark.parametrize("runs", [12, 40])
def test_a_constant_column_is_finite(runs):
    phi, forgotten = worlds(0.0, runs=runs, records=10)
    phi[:, 4] = 1.0

    found = method_audit.left_out_ratios(phi, forgotten)

    assert np.isfinite(found).all()
    assert runs < 32 or auc(found[forgotten[:, 4], 4], found[~forgotten[:, 4], 4]) == 0.5


def test_a_record_without_runs_on_both_sides_is_refused():
    phi, forgotten = worlds(0.0, runs=7)

    with pytest.raises(ValueError, match="forgotten in 4 runs and absent in 4"):
        method_audit.left_out_ratios(phi, forgotten)


def found_in(gap, seed=0, **shape):
    phi, forgotten = worlds(gap, seed=seed, **shape)
    scores = method_audit.left_out_ratios(phi, forgotten)
    return method_audit.separation(scores, forgotten, level=0.95, rng=np.random.default_rng(1))


def test_what_unlearning_left_behind_shows_and_exchangeable_worlds_do_not():
    left, nothing = found_in(2.0), found_in(0.0)

    assert left.interval.low > 0.85
    assert left.largest > left.by_chance
    assert nothing.interval.low < 0.5 < nothing.interval.high
    assert nothing.largest < nothing.by_chance + 0.1


def test_over_many_exchangeable_worlds_the_area_is_one_half():
    areas = []
    for seed in range(6):
        phi, forgotten = worlds(0.0, runs=32, records=200, seed=seed)
        areas.append(auc(*(method_audit.left_out_ratios(phi, forgotten)[side] for side in (forgotten, ~forgotten))))

    assert np.mean(areas) == pytest.approx(0.5, abs=0.006)  # 38,400 scores: a standard error of about .003; one run less on one side gave .486


def test_one_record_that_was_not_forgotten_shows_in_the_largest_though_the_mean_hides_it():
    phi, forgotten = worlds(0.0, runs=64, records=60)
    phi[:, 7] += 6 * forgotten[:, 7]

    scores = method_audit.left_out_ratios(phi, forgotten)
    found = method_audit.separation(scores, forgotten, level=0.95, rng=np.random.default_rng(1))

    assert abs(found.area - 0.5) < 0.03
    assert found.largest > 0.99 > found.by_chance


def test_a_rate_is_printed_only_where_ten_absent_records_lie_beyond_its_threshold(monkeypatch):
    monkeypatch.setattr(method_audit, "RESAMPLES", 2)
    monkeypatch.setattr(method_audit, "SHUFFLES", 1)
    small, large = found_in(1.0, runs=32, records=100), found_in(1.0, runs=32, records=1300)

    assert small.rates == {0.01: None, 0.001: None}
    assert large.rates[0.001].value < large.rates[0.01].value
    assert large.rates[0.01].interval.low < large.rates[0.01].value


def test_half_of_the_canaries_are_guessed_whatever_the_scores():
    rng = np.random.default_rng(2)
    included = rng.random(200) < 0.5

    for scores in (rng.normal(size=200), np.zeros(200), included + 0.0):
        assert method_audit.guessed(scores, included).guesses == 100
    assert method_audit.guessed(included + 0.0, included)[1:] == pytest.approx((100, 3.4930), abs=1e-4)
    assert method_audit.guessed(-1.0 * included, included)[1:] == (0, 0.0)


@pytest.mark.parametrize(("canaries", "refused"), [(8, True), (11, True), (12, False), (200, False)])
def test_canaries_too_few_to_show_anything_are_refused(canaries, refused):
    included = np.arange(canaries) % 2 == 0

    assert (method_audit.guessed(included * 1.0, included).epsilon is None) is refused


def test_scores_that_know_nothing_rarely_show_anything():
    rng = np.random.default_rng(3)

    shown = [method_audit.guessed(rng.normal(size=200), rng.random(200) < 0.5).epsilon for _ in range(200)]

    assert np.mean(np.array(shown) > 0) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
