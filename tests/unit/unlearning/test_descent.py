import pytest
import torch

from services.learning.data import Split
from services.unlearning.mechanisms.descent import Plan, per_class, plan_steps


def test_every_row_is_drawn_once_an_epoch_and_steps_are_counted_rightly():
    for rows in (1, 2, 31, 32, 33, 64, 65, 100):
        plan = Plan(rows, 32, 2)
        drawn = list(plan.order(torch.Generator().manual_seed(0)))

        assert len(drawn) == plan.steps
        assert torch.equal(torch.cat(drawn).bincount(), torch.full((rows,), 2))
        assert rows == 1 or min(len(step) for step in drawn) > 1


def test_few_rows_halve_the_batch_to_32_before_they_add_epochs():
    assert plan_steps(1200, batch_size=256, epochs=1, min_steps=30) == Plan(1200, 32, 1)
    assert plan_steps(1200, batch_size=256, epochs=1, min_steps=10) == Plan(1200, 128, 1)
    assert plan_steps(1200, batch_size=256, epochs=1, min_steps=150) == Plan(1200, 32, 4)


def test_no_more_than_ten_epochs_are_added_up():
    assert plan_steps(100, batch_size=256, epochs=1, min_steps=150) == Plan(100, 32, 10)
    assert plan_steps(100, batch_size=256, epochs=12, min_steps=150).epochs == 12


@pytest.mark.parametrize("rows", [20_000, 50_000])
def test_many_rows_keep_batch_and_epochs(rows: int):
    assert plan_steps(rows, batch_size=4096, epochs=1, min_steps=150) == Plan(rows, 4096, 1)


def test_a_stage_switched_off_stays_off():
    assert plan_steps(1200, batch_size=256, epochs=0, min_steps=150).steps == 0


def test_the_subset_holds_so_many_random_rows_of_each_class():
    split = Split(torch.arange(90.0)[:, None], torch.arange(90) % 3, tuple(str(row) for row in range(90)))

    one, other = (per_class(split, 7, torch.Generator().manual_seed(seed)) for seed in (0, 1))

    assert one.y.bincount().tolist() == [7, 7, 7]
    assert one.ids != other.ids
    assert one.ids != split.take(torch.arange(21)).ids
    assert len(per_class(split, 1000, torch.Generator().manual_seed(0))) == 90
