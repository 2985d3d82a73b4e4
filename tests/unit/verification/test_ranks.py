"""Permutation tests of few records: exact where they can be, within classes where there are several."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from services.learning.run import Run
from services.verification.attacks.mia_v2 import MembershipInference
from services.verification.metric import Models
from services.verification.statistics.ranks import mann_whitney_p, within_classes_p
from services.verification.statistics.roc import auc, class_weights
from tests.unit.verification.worlds import TASK, FixedLogits, logits_for, split_of, splits_of


def test_of_one_class_without_ties_the_p_value_is_the_exact_one_beyond_eight_records_too():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 1, 30), rng.normal(size=25)

    found = within_classes_p(first, second, np.zeros(30), np.zeros(25), rng=rng)

    assert found == pytest.approx(stats.mannwhitneyu(first, second, method="exact").pvalue, rel=1e-12)
    assert found != pytest.approx(stats.mannwhitneyu(first, second, method="auto").pvalue, rel=1e-3)


@pytest.mark.parametrize("own", [0, 3, 19])
def test_one_record_with_a_tie_has_the_p_value_of_all_places_it_could_have(own):
    scores = np.sort(np.random.default_rng(1).normal(size=20))
    scores[4] = scores[3]
    apart = [abs(auc(np.array([one]), np.delete(scores, place)) - 0.5) for place, one in enumerate(scores)]

    found = mann_whitney_p(scores[[own]], np.delete(scores, own), rng=np.random.default_rng(2))

    assert found == pytest.approx(np.mean(np.array(apart) >= apart[own] - 1e-12), abs=0.02)


def test_of_several_classes_it_is_that_of_all_exchanges_within_them():
    inside, outside = np.array([3.0, 1.0, 9.0, 7.0, 8.0]), np.array([2.0, 1.0, 0.0, 6.0, 5.0])
    of_members, of_others = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])
    scores, classes = np.concatenate([inside, outside]), np.concatenate([of_members, of_others])
    every = []
    for low in combinations(np.nonzero(classes == 0)[0], 2):
        for high in combinations(np.nonzero(classes == 1)[0], 3):
            member = np.isin(np.arange(10), [*low, *high])
            every.append(auc(scores[member], scores[~member], class_weights(classes[member], classes[~member])) - 0.5)
    observed = auc(inside, outside, class_weights(of_members, of_others)) - 0.5

    found = within_classes_p(inside, outside, of_members, of_others, rng=np.random.default_rng(1))

    assert len(every) == 100
    assert found == pytest.approx(np.mean(np.abs(every) >= abs(observed) - 1e-12), abs=0.02)  # 9999 draws: off by .02 once in 10^4 at most


def test_a_class_that_scores_higher_is_no_evidence_where_members_are_more_often_of_it():
    rng = np.random.default_rng(2)
    of_members, of_others = np.repeat([0, 1], [5, 35]), np.repeat([0, 1], [60, 20])

    found = within_classes_p(6.0 * of_members + rng.random(40), 6.0 * of_others + rng.random(80), of_members, of_others, rng=rng)

    assert found > 0.05


def test_equal_scores_have_the_p_value_one():
    assert within_classes_p([1.0, 1.0], [1.0, 1.0], [0, 1], [0, 1], rng=np.random.default_rng(0)) == 1.0


@pytest.mark.parametrize(("members", "stated"), [(49, True), (50, False)])
def test_the_default_gate_states_it_below_fifty_records(members, stated):
    rng = np.random.default_rng(3)
    labels = np.arange(members + 60) % 10
    table = logits_for(labels, right=0.9, rng=rng)
    table[:members] += 4.0 * np.eye(10)[labels[:members]]
    data = splits_of(forget=split_of("f", labels[:members]), attack=split_of("a", labels[members:], members))

    found = MembershipInference(MembershipInference.Parameters(learned=False)).measure(
        Models(FixedLogits(table), FixedLogits(table)), data, TASK, Run(seed=1), split="forget_train"
    )

    assert ("permutation_p" in found.detail) is stated
    assert found.detail.get("permutation_p", 0.0) < 0.001
