"""Tug of war: the hand-worked product, and the same from models."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.tow import TugOfWar
from services.verification.reading import Unmeasured
from services.verification.statistics.tow import tug_of_war, tug_of_war_interval
from tests.unit.verification.worlds import TASK, FixedLogits, logits_for, split_of, splits_of

torch.set_num_threads(1)

LABELS = np.arange(100) % 10
DATA = splits_of(forget=split_of("f", LABELS), retain=split_of("r", LABELS, 100), verification=split_of("v", LABELS, 200))


def answering(wrong):
    """Return a model that is wrong on the first `wrong[k]` records of the k-th part and right on the others."""
    labels = np.concatenate([LABELS] * 3)
    chosen = labels.copy()
    for k, count in enumerate(wrong):
        chosen[100 * k : 100 * k + count] = (labels[100 * k : 100 * k + count] + 1) % 10
    return FixedLogits(5.0 * np.eye(10)[chosen])


def taken(models, data=DATA):
    return TugOfWar(TugOfWar.Parameters()).measure(models, data, TASK, Run(seed=1), split="forget_train")


def test_gaps_of_10_2_and_1_points_give_the_known_product():
    assert float(tug_of_war([0.10, 0.02, 0.01])) == pytest.approx(0.87318, abs=1e-5)
    assert float(tug_of_war([-0.10, 0.02, -0.01])) == pytest.approx(0.87318, abs=1e-5)
    assert float(tug_of_war([0, 0, 0])) == 1
    assert float(tug_of_war([1, 0, 0])) == 0


def test_models_with_those_gaps_give_the_known_product():
    found = taken(Models(answering((0, 0, 0)), answering((10, 5, 1)), answering((20, 3, 2))))

    assert found.value == pytest.approx(0.87318, abs=1e-5)
    assert found.detail["gaps"] == pytest.approx({"forget_train": 0.10, "retain_train": -0.02, "test": 0.01})
    assert found.low <= found.value <= found.high


def test_it_is_the_product_of_scikit_learns_accuracies():
    rng = np.random.default_rng(3)
    labels = np.concatenate([LABELS] * 3)
    tables = [logits_for(labels, right=right, rng=rng) for right in (0.9, 0.6, 0.8)]
    expected = 1.0
    for k in range(3):
        part = slice(100 * k, 100 * k + 100)
        accuracy = [accuracy_score(labels[part], table[part].argmax(1)) for table in tables[1:]]
        expected *= 1 - abs(accuracy[0] - accuracy[1])

    assert taken(Models(*(FixedLogits(table) for table in tables))).value == pytest.approx(expected, abs=1e-12)


def test_a_model_that_answers_as_the_retrained_one_has_1_and_the_retrained_one_is_held_against_its_twin():
    first, same, other = answering((20, 3, 2)), answering((20, 3, 2)), answering((30, 3, 2))

    assert taken(Models(first, same, first)).value == 1.0
    assert taken(Models(first, first, first, other)).value == pytest.approx(0.9)
    assert taken(Models(first, first, first)) == Unmeasured("no_second_retrained_model")
    assert taken(Models(first, same)) == Unmeasured("no_retrained_reference")


def test_the_attack_takes_the_place_of_forget_accuracy():
    """Retained records are certain, held-out ones are not: certain forgotten records are called members, uncertain ones are not."""
    labels = np.concatenate([LABELS] * 3)
    certain, uncertain = (np.concatenate([np.full(100, forgotten), np.full(100, 9.0), np.full(100, 1.0)]) for forgotten in (9.0, 1.0))
    known, unknown = (FixedLogits(np.eye(10)[labels] * scale[:, None]) for scale in (certain, uncertain))

    found = taken(Models(known, known, unknown))

    assert found.value == 1.0
    assert found.detail["called_members"] == {"subject": 1.0, "reference": 0.0}
    assert found.detail["tow_mia"] == 0.0


def test_the_interval_covers_the_true_product_about_as_often_as_it_says():
    """Gaps of 10, 0 and 0 points: the product of absolute values is biased down, so 80 % is asked of a nominal 90."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(100):
        parts = [rng.choice([-1, 0, 1], p=p, size=400) for p in ((0.15, 0.8, 0.05), (0.01, 0.98, 0.01), (0.02, 0.96, 0.02))]
        low, high = tug_of_war_interval(parts, level=0.9, rng=rng)
        hits += low <= 0.9 <= high

    assert hits >= 80
