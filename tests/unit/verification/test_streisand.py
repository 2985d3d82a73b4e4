"""The Streisand check against scipy and scikit-learn, and both failures it tells apart."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.streisand import Streisand
from services.verification.reading import Unmeasured
from services.verification.statistics.ranks import mann_whitney_p
from services.verification.statistics.scores import entropies, log_probabilities, margins
from tests.unit.verification.worlds import TASK, FixedLogits, logits_for, split_of, splits_of

torch.set_num_threads(1)


def world(forget_labels, held_labels, *, confidence, kind="records", classes=(), seed=0):
    """Return a table of logits and splits; forgotten records are answered with `confidence`, held-out ones with 3."""
    rng = np.random.default_rng(seed)
    forget = logits_for(forget_labels, right=0.9, rng=rng, confidence=confidence)
    held = logits_for(held_labels, right=0.9, rng=rng)
    data = splits_of(forget=split_of("f", forget_labels), verification=split_of("v", held_labels, len(forget_labels)), kind=kind, classes=classes)
    return np.concatenate([forget, held]), data


def taken(models, data, split="forget_train", **more):
    return Streisand(Streisand.Parameters(**more)).measure(models, data, TASK, Run(seed=2), split=split)


def alone(table):
    model = FixedLogits(table)
    return Models(model, model)


EVEN = np.arange(100) % 10


def test_it_is_mann_whitneys_u_over_all_pairs_and_scikit_learns_area():
    table, data = world(EVEN, np.arange(200) % 10, confidence=3.3)
    phi = margins(table.astype(np.float32), np.concatenate([EVEN, np.arange(200) % 10]))

    found = taken(alone(table), data)

    test = stats.mannwhitneyu(phi[:100], phi[100:], alternative="two-sided")
    assert found.value == pytest.approx(test.statistic / 20_000, abs=1e-12)
    assert found.value == pytest.approx(roc_auc_score([1] * 100 + [0] * 200, phi), abs=1e-12)
    assert found.detail["p"] == pytest.approx(test.pvalue, abs=1e-12)
    entropy = entropies(log_probabilities(table.astype(np.float32)))
    assert found.detail["entropy_gap"] == pytest.approx(entropy[:100].mean() - entropy[100:].mean(), abs=1e-9)


@pytest.mark.parametrize(("confidence", "side"), [(6.0, "leak"), (0.5, "over_unlearned")])
def test_an_interval_beyond_the_band_says_which_failure_it_is(confidence, side):
    table, data = world(EVEN, np.arange(300) % 10, confidence=confidence)

    found = taken(alone(table), data)

    assert found.detail["side"] == side
    assert (found.value > 0.5) == (side == "leak")
    assert found.detail["p"] < 0.001


def test_alike_records_are_inside_where_they_are_many_and_undecided_where_they_are_few():
    many, few = (world(np.arange(n) % 10, np.arange(n) % 10, confidence=3.0, seed=3) for n in (3000, 60))

    assert taken(alone(many[0]), many[1]).detail["side"] == "inside"
    assert taken(alone(few[0]), few[1]).detail["side"] == "undecided"
    assert taken(alone(few[0]), few[1], epsilon=0.3).detail["side"] == "inside"


def test_all_tied_is_one_half():
    found = taken(alone(np.zeros((200, 10))), world(EVEN, EVEN, confidence=3.0)[1])

    assert (found.value, found.detail["p"], found.detail["entropy_gap"]) == pytest.approx((0.5, 1.0, 0.0), abs=1e-12)
    assert found.low < 0.5 < found.high


def test_held_out_records_are_matched_to_the_classes_of_the_forgotten_ones():
    forget, held = np.array([0, 0, 0, 1, 9]), np.array([0, 1, 1, 2, 2])
    table, data = world(forget, held, confidence=3.0)
    phi = margins(table.astype(np.float32), np.concatenate([forget, held]))

    found = taken(alone(table), data)

    expected = roc_auc_score([1] * 4 + [0] * 3, phi[[0, 1, 2, 3, 5, 6, 7]], sample_weight=[1] * 4 + [3, 0.5, 0.5])
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert (found.n, found.detail["compared_with"], found.detail["without_counterpart"]) == (4, 3, 1)
    assert taken(alone(table), splits_of(forget=data.forget, verification=split_of("v", [7], 9))).reason == "no_held_out_records_of_these_classes"


def test_a_class_is_compared_with_the_same_records_under_the_retrained_model():
    labels = np.full(60, 3)
    (table, data), (other, _) = (world(labels, labels, confidence=c, kind="class", classes=(3,), seed=s) for c, s in ((1.0, 1), (-1.0, 2)))
    model, retrained = FixedLogits(table), FixedLogits(other)
    phi = [margins(t[:60].astype(np.float32), labels) for t in (table, other)]

    found = taken(Models(model, model, retrained), data)
    itself = taken(Models(model, retrained, retrained), data)

    assert found.value == pytest.approx(stats.mannwhitneyu(*phi).statistic / 3600, abs=1e-12)
    assert found.detail["side"] == "leak"
    assert itself.value == pytest.approx(0.5, abs=1e-12)
    assert taken(Models(model, model), data) == Unmeasured("no_retrained_reference")
    assert taken(Models(model, model, retrained), data, split="forget_test").n == 60


def test_the_p_value_is_exact_below_50_records_with_and_without_ties():
    rng = np.random.default_rng(0)
    plain, tied = (rng.normal(size=12), rng.normal(size=9)), (rng.integers(0, 3, 6), rng.integers(0, 4, 5))

    assert mann_whitney_p(*plain, rng=rng) == pytest.approx(stats.mannwhitneyu(*plain, method="exact").pvalue)
    every = stats.permutation_test(tied, lambda a, b, axis: stats.mannwhitneyu(a, b, axis=axis).statistic, vectorized=True, n_resamples=10**6)
    assert mann_whitney_p(*tied, rng=rng) == pytest.approx(every.pvalue, abs=0.02)
    assert mann_whitney_p([1.0, 1.0], [1.0], rng=rng) == 1.0


def test_the_order_of_the_records_and_their_precision_do_not_matter():
    table, data = world(EVEN, EVEN, confidence=2.0)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))

    plain = taken(alone(table), data)
    turned = taken(alone(table), splits_of(forget=data.forget.take(order), verification=data.verification.take(order)))

    assert turned == plain
    assert plain.value == pytest.approx(stats.mannwhitneyu(margins(table[:100], EVEN), margins(table[100:], EVEN)).statistic / 10_000, abs=1e-5)
