"""What a method's cost comes to beside a training run."""

import pytest

from services.requests.estimates import Training, forwards
from services.requests.holdings import Holdings

TRAINING = Training(seconds=60.0, epochs=10, records=1000)


def test_a_forward_pass_is_a_third_of_a_training_step():
    assert TRAINING.forward_s == pytest.approx(60.0 / 30_000)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({}, 30_000),
        ({"of_recipe": 1.0}, 30_000),
        ({"per_forget": 4.0, "per_retain": 0.9}, 4 * 100 + 0.9 * 900),
        ({"fixed": 500.0, "per_class": 20.0}, 540),
        ({"per_forget": 1.0, "least": 9_000.0}, 9_000),
    ],
)
def test_the_parts_of_a_cost_add_up_and_never_fall_below_its_floor(cost: dict[str, float], expected: float):
    assert forwards(cost, TRAINING, classes=2, forget=100) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("records", "share"),
    [(1, (2 / 3 + 1 / 12) / 5), (2, (9 / 25) * (1 - (1 / 3 - 1 / 12) * (9 / 5) / 2)), (10_000, 1 - (1 / 3 - 1 / 12) * 5 / 10_000)],
    ids=["one", "two", "many"],
)
def test_training_in_five_shards_of_four_slices_is_repeated_in_part(records: int, share: float):
    assert Holdings(frozenset(), shards=5, slices=4).share_of_training("sisa", records) == pytest.approx(share, abs=1e-4)


def test_without_shards_all_of_the_training_is_repeated_and_of_other_methods_nothing_is_told():
    assert Holdings(frozenset()).share_of_training("sisa", 1) == 1.0
    assert Holdings(frozenset(), shards=5, slices=4).share_of_training("retrain", 1) is None
