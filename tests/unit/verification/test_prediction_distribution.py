"""The prediction distribution against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.verification.metric import Models
from services.verification.metrics.prediction_distribution import PredictionDistribution
from services.verification.reading import Unmeasured
from tests.unit.verification.worlds import FixedLogits, split_of, splits_of

torch.set_num_threads(1)

FOUR = Classification(4)
DATA = splits_of(forget=split_of("f", np.zeros(100)), kind="class", classes=(0,))


def giving(*counts):
    """Return a model that gives `counts[k]` of the forgotten records to class k + 1, and a still larger logit to the forgotten class 0."""
    chosen = np.repeat(np.arange(len(counts)) + 1, counts)
    z = np.eye(4)[chosen] * 3.0
    z[:, 0] = 5.0
    return FixedLogits(z)


def taken(model, data=DATA):
    return PredictionDistribution(PredictionDistribution.Parameters()).measure(Models(model, model), data, FOUR, Run(seed=1), split="forget_train")


def test_shares_of_80_10_and_10_percent_have_the_known_entropy():
    found = taken(giving(80, 10, 10))

    assert found.value == pytest.approx(0.581672, abs=1e-6)
    assert found.value == pytest.approx(stats.entropy([0.8, 0.1, 0.1]) / np.log(3), abs=1e-12)
    assert found.detail["shares"] == pytest.approx({"1": 0.8, "2": 0.1, "3": 0.1})
    assert (found.detail["largest_share"], found.detail["largest_class"]) == (0.8, "1")
    expected = stats.binomtest(80, 100).proportion_ci(0.9, method="exact")
    assert (found.detail["largest_share_low"], found.detail["largest_share_high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.low < found.value < found.high


def test_a_spike_is_zero_and_an_even_spread_one():
    assert taken(giving(100, 0, 0)).value == 0.0
    even = taken(FixedLogits(np.eye(4)[np.arange(99) % 3 + 1]), splits_of(forget=split_of("f", np.zeros(99)), kind="class", classes=(0,)))
    assert even.value == pytest.approx(1.0)


def test_only_retained_classes_are_counted_and_all_of_them_for_single_records():
    records = splits_of(forget=split_of("f", np.zeros(100)))

    assert list(taken(giving(80, 10, 10)).detail["shares"]) == ["1", "2", "3"]
    assert taken(giving(80, 10, 10), records).detail["shares"]["0"] == 1.0
    three_gone = splits_of(forget=split_of("f", np.zeros(100)), kind="class", classes=(0, 1, 2))
    assert taken(giving(80, 10, 10), three_gone) == Unmeasured("too_few_retained_classes")


def test_the_difference_has_that_of_the_largest_shares_and_it_is_held_in_a_band():
    spiky, spread = giving(80, 10, 10), giving(40, 30, 30)
    metric = PredictionDistribution(PredictionDistribution.Parameters())

    found = metric.difference(Models(spiky, spiky), DATA, FOUR, Run(seed=1), split="forget_train", versus=spread)

    assert found.value == pytest.approx(taken(spiky).value - taken(spread).value, abs=1e-12)
    assert found.detail["largest_share"] == pytest.approx(0.4)
    assert PredictionDistribution.direction == "band"
