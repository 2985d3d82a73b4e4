"""What a method's cost comes to beside a training run."""

import pytest

from services.requests.estimates import Training, forwards

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
