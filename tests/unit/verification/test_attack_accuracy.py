"""Indiscernibility and NoMUS: the formulas by hand, scikit-learn's attack, and what they cannot see."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.indiscernibility import Indiscernibility
from services.verification.metrics.nomus import NormalisedUnlearningScore
from services.verification.reading import Unmeasured
from services.verification.statistics.attack_accuracy import indiscernibility, nomus
from services.verification.statistics.scores import negative_losses
from tests.unit.verification.worlds import TASK, FixedLogits, split_of, splits_of

torch.set_num_threads(1)

N = 80
LABELS = np.arange(N) % 4
DATA = splits_of(forget=split_of("f", LABELS), verification=split_of("v", LABELS, N))


def model(forgotten, held, seed=0):
    """Return a model whose true labels stand out by `forgotten` on forgotten records and by `held` on held-out ones."""
    z = np.random.default_rng(seed).normal(size=(2 * N, 10))
    z[np.arange(2 * N), np.concatenate([LABELS, LABELS])] += np.repeat([forgotten, held], N)
    return FixedLogits(z)


def taken(metric, subject, data=DATA):
    return metric(metric.Parameters()).measure(Models(subject, subject), data, TASK, Run(seed=1), split="forget_train")


@pytest.mark.parametrize(("attack", "expected"), [(0.5, 1.0), (0.6, 0.8), (0.4, 0.8), (1.0, 0.0), (0.0, 0.0), (0.75, 0.5)])
def test_indiscernibility_is_the_distance_from_a_coin_turned_over(attack, expected):
    assert indiscernibility(attack) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("test", "attack", "expected"), [(1.0, 0.5, 1.0), (0.9, 0.6, 0.85), (0.9, 0.4, 0.85), (0.0, 1.0, 0.0), (0.8, 0.0, 0.4)])
def test_nomus_is_half_accuracy_and_half_indiscernibility(test, attack, expected):
    assert nomus(test, attack) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("held", [3.0, 2.0, 0.5])
def test_both_are_made_of_scikit_learns_numbers(held):
    subject = model(3.0, held)
    labels = np.concatenate([LABELS, LABELS])
    order = np.concatenate([side + np.argsort(LABELS, kind="stable") for side in (0, N)])
    losses = -negative_losses(subject.table.numpy(), labels)[order]
    splitter = StratifiedShuffleSplit(10, test_size=0.1, random_state=42)
    attack = cross_val_score(LogisticRegression(tol=1e-8), losses[:, None], [1] * N + [0] * N, cv=splitter).mean()
    test = accuracy_score(LABELS, subject.table.numpy()[N:].argmax(1))

    hidden, score = taken(Indiscernibility, subject), taken(NormalisedUnlearningScore, subject)

    assert hidden.detail["attack_accuracy"] == pytest.approx(attack, abs=1e-9)
    assert hidden.value == pytest.approx(1 - abs(attack - 0.5) / 0.5, abs=1e-9)
    assert score.value == pytest.approx(0.5 * test + 0.5 * (1 - 2 * abs(attack - 0.5)), abs=1e-9)
    assert hidden.low <= hidden.value <= hidden.high <= 1
    assert score.low <= score.value <= score.high <= 1


def test_identical_losses_are_indiscernible_and_separated_ones_are_not_whichever_side_is_lower():
    assert taken(Indiscernibility, FixedLogits(np.zeros((2 * N, 10)))).value == 1.0
    assert taken(Indiscernibility, model(30.0, -30.0)).value == 0.0
    assert taken(Indiscernibility, model(-30.0, 30.0)).value == 0.0


def test_a_label_that_is_harder_than_another_does_not_tell_the_sides_apart():
    """Label 1 has large losses on both sides and is rare among the held-out records: unmatched, 40 and 70 of 80 calls by label are right, .625."""
    forget, held = np.repeat([0, 1], 40), np.repeat([0, 1], [70, 10])
    z = np.zeros((160, 10))
    z[np.arange(160), np.concatenate([forget, held])] = np.where(np.concatenate([forget, held]) == 1, -5.0, 5.0)
    data = splits_of(forget=split_of("f", forget), verification=split_of("v", held, 80))

    found = taken(Indiscernibility, FixedLogits(z), data)

    assert found.value > 0.9
    assert found.n == 50


def test_of_class_requests_nomus_takes_the_accuracy_of_the_retained_classes():
    forget, held = np.full(40, 3), np.concatenate([np.full(40, 3), np.full(40, 5)])
    z = np.zeros((120, 10))
    z[:80, 0] = z[80:, 5] = 9.0  # every record of class 3 is called 0, every other is right
    data = splits_of(forget=split_of("f", forget), verification=split_of("v", held, 40), kind="class", classes=(3,))

    found = taken(NormalisedUnlearningScore, FixedLogits(z), data)

    assert found.detail["test_accuracy"] == 1.0
    assert found.value == 1.0


@pytest.mark.parametrize("metric", [Indiscernibility, NormalisedUnlearningScore])
def test_what_cannot_be_asked_is_unmeasured_with_the_reason(metric):
    subject = model(3.0, 3.0)
    few = splits_of(forget=split_of("f", LABELS[:4]), verification=split_of("v", LABELS, N))
    others = splits_of(forget=split_of("f", LABELS), verification=split_of("v", LABELS + 4, N))

    assert taken(metric, subject, few) == Unmeasured("too_few_records")
    assert taken(metric, subject, others) == Unmeasured("no_held_out_records_of_these_classes")
    assert taken(metric, subject, splits_of(forget=DATA.forget)) == Unmeasured("no_records")


@pytest.mark.parametrize("metric", [Indiscernibility, NormalisedUnlearningScore])
def test_they_only_inform_and_warn_of_few_records(metric):
    few = splits_of(forget=split_of("f", LABELS[:40]), verification=split_of("v", LABELS, N))

    assert metric.direction == "info"
    assert taken(metric, model(3.0, 3.0), few).detail["few_members"]
    assert not taken(metric, model(3.0, 3.0)).detail["few_members"]


@pytest.mark.parametrize(("metric", "truth"), [(Indiscernibility, 1.0), (NormalisedUnlearningScore, 0.5 * 0.9 + 0.5)])
def test_the_interval_holds_the_truth_of_exchangeable_records_about_as_often_as_it_says(metric, truth):
    """Ninety per cent intervals in 40 worlds where nine of ten answers are right on both sides; fewer than 31 would be chance once in a thousand."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(40):
        z = np.abs(rng.normal(size=(2 * N, 10)))
        z[np.arange(2 * N), np.concatenate([LABELS, LABELS])] = np.where(rng.random(2 * N) < 0.9, 9.0, -9.0)
        found = taken(metric, FixedLogits(z))
        held += found.low <= truth <= found.high

    assert held >= 31
