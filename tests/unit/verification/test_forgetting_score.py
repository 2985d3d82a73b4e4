"""F_s against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.forgetting_score import ForgettingScore
from services.verification.reading import Unmeasured
from services.verification.statistics.learned import SplitCounts, advantage_interval, shuffled_accuracy
from services.verification.statistics.scores import negative_losses
from tests.unit.verification.worlds import TASK, FixedLogits, split_of, splits_of

torch.set_num_threads(1)

N = 80
DATA = splits_of(forget=split_of("f", np.full(N, 4)), verification=split_of("v", np.full(N, 4), N), kind="class", classes=(4,))


def model(train, held, seed=0):
    z = np.random.default_rng(seed).normal(size=(2 * N, 10))
    z[:N, 4] += train
    z[N:, 4] += held
    return FixedLogits(z)


def taken(subject, data=DATA):
    return ForgettingScore(ForgettingScore.Parameters()).measure(Models(subject, subject), data, TASK, Run(seed=1), split="forget_train")


@pytest.mark.parametrize("held", [3.0, 2.0, 0.0])
def test_it_is_scikit_learns_accuracy_from_one_half(held):
    subject = model(3.0, held)
    losses = -negative_losses(subject.table.numpy(), np.full(2 * N, 4))
    splitter = StratifiedShuffleSplit(10, test_size=0.1, random_state=42)
    accuracy = cross_val_score(LogisticRegression(tol=1e-8), losses[:, None], [1] * N + [0] * N, cv=splitter).mean()

    found = taken(subject)

    assert found.value == pytest.approx(abs(0.5 - accuracy), abs=1e-9)
    assert found.detail["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert found.low <= found.value <= found.high <= 0.5


def test_identical_losses_are_zero_and_separated_ones_one_half_on_either_side():
    assert taken(FixedLogits(np.zeros((2 * N, 10)))).value == 0.0
    assert taken(model(30.0, -30.0)).value == 0.5
    assert taken(model(-30.0, 30.0)).value == 0.5


@pytest.mark.parametrize("count", [5, 7, 23, 31])
def test_equal_numbers_give_one_half_exactly_for_every_number_of_rows(count):
    assert shuffled_accuracy(np.ones(count), np.ones(count), seed=42).accuracy()[0] == 0.5


def test_the_interval_is_folded_at_one_half():
    half = SplitCounts(np.ones(40), np.tile([0.0, 1.0], 20))
    always = SplitCounts(np.ones(40), np.ones(40))

    low, high = advantage_interval(half, level=0.9, rng=np.random.default_rng(0))

    assert low == 0.0
    assert high == pytest.approx(1.645 * 0.5 / np.sqrt(40), abs=0.03)
    assert advantage_interval(always, level=0.9, rng=np.random.default_rng(0)) == (0.5, 0.5)


def test_the_paired_difference_is_the_difference_of_the_values():
    first, second = model(3.0, 1.0), model(3.0, 2.5, seed=1)
    metric = ForgettingScore(ForgettingScore.Parameters())

    found = metric.difference(Models(first, first), DATA, TASK, Run(seed=1), split="forget_train", versus=second)

    assert found.value == pytest.approx(taken(first).value - taken(second).value, abs=1e-12)
    assert found.low < found.value < found.high


def test_it_is_for_class_requests_and_warns_of_few():
    subject = model(3.0, 3.0)
    few = splits_of(forget=split_of("f", np.full(34, 4)), verification=split_of("v", np.full(34, 4), N), kind="class", classes=(4,))
    least = splits_of(forget=split_of("f", np.full(4, 4)), verification=split_of("v", np.full(34, 4), N), kind="class", classes=(4,))

    assert taken(subject, splits_of(forget=DATA.forget, verification=DATA.verification)) == Unmeasured("class_requests_only")
    assert taken(subject, few).detail["few_members"]
    assert taken(subject, least) == Unmeasured("too_few_records")
