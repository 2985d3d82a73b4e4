"""F_r: scikit-learn's transferred attack, and why it is no gate."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.forgetting_rate import ForgettingRate
from services.verification.reading import Unmeasured
from services.verification.statistics.learned import balanced
from tests.unit.verification.worlds import TASK, FixedLogits, split_of, splits_of

torch.set_num_threads(1)

TRAIN, HELD = 120, 70


def world(*, label=4):
    return splits_of(
        forget=split_of("f", np.full(TRAIN, label)), verification=split_of("v", np.full(HELD, label), TRAIN), kind="class", classes=(label,)
    )


def model(train, held, *, seed=0, label=4):
    """Return a model that gives its training rows the logit `train` on the label, its held-out rows `held`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(TRAIN + HELD, 10)) * 0.5
    z[:TRAIN, label] += train
    z[TRAIN:, label] += held
    return FixedLogits(z)


def taken(original, unlearned, data=None, **more):
    return ForgettingRate(ForgettingRate.Parameters(**more)).measure(
        Models(original, unlearned), data or world(), TASK, Run(seed=1), split="forget_train"
    )


def softmax(z):
    return torch.softmax(torch.as_tensor(z).double(), dim=1).numpy()


def test_it_is_scikit_learns_support_vector_machine_carried_over():
    original, unlearned = model(4.0, 3.0), model(2.0, 1.5, seed=1)
    before, after = softmax(original.table), softmax(unlearned.table)
    rng = np.random.default_rng(42)
    inside, outside = np.sort(rng.permutation(TRAIN)[:HELD]), np.sort(rng.permutation(HELD)[:HELD])
    features = np.concatenate([before[:TRAIN][inside], before[TRAIN:][outside]])
    scaler = StandardScaler().fit(features)
    machine = SVC(kernel="linear", random_state=42).fit(scaler.transform(features), [1] * HELD + [0] * HELD)
    called = int((machine.predict(scaler.transform(after[:TRAIN])) == 0).sum())

    found = taken(original, unlearned)

    assert (found.value, found.n) == (called / TRAIN, TRAIN)
    expected = stats.binomtest(called, TRAIN).proportion_ci(0.9, method="exact")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.detail["null"]["value"] == pytest.approx((machine.predict(scaler.transform(after[TRAIN:])) == 0).mean())
    assert found.detail["fitted_rows_a_side"] == HELD


def test_a_model_that_kept_its_outputs_has_the_attacks_misses_and_one_that_gives_members_held_out_outputs_has_nearly_one():
    original = model(9.0, 3.0)

    assert taken(original, original).value < 0.1
    assert taken(original, model(3.0, 3.0, seed=2)).value > 0.9


def test_it_follows_the_shape_of_the_outputs_and_not_memory_so_its_null_moves_with_it():
    """The unlearned model is uniform on every row, seen or not: F_r and its null agree, and neither speaks of memory."""
    original, uniform = model(9.0, 3.0), FixedLogits(np.zeros((TRAIN + HELD, 10)))

    found = taken(original, uniform)

    assert found.value == found.detail["null"]["value"] == 1.0
    assert ForgettingRate.direction == "info"


def test_it_is_for_class_requests_with_held_out_records_and_warns_of_few():
    original = model(9.0, 3.0)
    records = splits_of(forget=split_of("f", np.full(TRAIN, 4)), verification=split_of("v", np.full(HELD, 4), TRAIN))
    alone = splits_of(forget=split_of("f", np.full(TRAIN, 4)), kind="class", classes=(4,))
    thin = splits_of(forget=split_of("f", np.full(TRAIN, 4)), verification=split_of("v", np.full(34, 4), TRAIN), kind="class", classes=(4,))

    assert taken(original, original, records) == Unmeasured("class_requests_only")
    assert taken(original, original, alone) == Unmeasured("no_held_out_records_of_these_classes")
    assert taken(original, original, thin).detail["few_members"]
    assert not taken(original, original).detail["few_members"]


def test_classes_are_fitted_apart_and_pooled():
    data = splits_of(forget=split_of("f", [4] * 60 + [5] * 60), verification=split_of("v", [4] * 35 + [5] * 35, TRAIN), kind="class", classes=(4, 5))
    z = np.random.default_rng(0).normal(size=(TRAIN + HELD, 10)) * 0.1
    labels = np.array([4] * 60 + [5] * 60 + [4] * 35 + [5] * 35)
    z[np.arange(len(z)), labels] += np.where(np.arange(len(z)) < TRAIN, 9.0, 2.0)
    forgot_four = z.copy()
    forgot_four[:60, 4] -= 7.0

    found = taken(FixedLogits(z), FixedLogits(forgot_four), data)

    assert found.value == pytest.approx(0.5)
    assert found.detail["fitted_rows_a_side"] == 35


def test_the_balanced_sample_has_the_smaller_size_and_repeats():
    first, second = balanced(np.arange(50.0), np.arange(7.0), rows=5, seed=42)
    again, _ = balanced(np.arange(50.0), np.arange(7.0), rows=5, seed=42)

    assert (len(first), len(second)) == (5, 5)
    assert first.tolist() == again.tolist() == sorted(first.tolist())
    assert [len(side) for side in balanced(np.arange(50.0), np.arange(7.0), rows=1500, seed=42)] == [7, 7]
