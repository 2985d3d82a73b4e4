import copy
import math

import pytest
import torch
from torch import nn

from services.errors import Diverged
from services.learning.data import Split
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.guard import Guard, mean_loss, with_retry

torch.set_num_threads(1)

TASK = Classification(4)


def split_of(rows: int = 40) -> Split:
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(rows, 3, generator=generator), torch.arange(rows) % 4, tuple(str(row) for row in range(rows)))


def constant_model(scale: float) -> nn.Module:
    """Logits `scale` for class 0 and 0 for the rest, whatever the record."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([scale, 0.0, 0.0, 0.0]))
    return model


def guard_with(*, before: float, factor: float = 10.0) -> Guard:
    return Guard("m", split_of(), TASK, before, math.log(4), factor)


def test_the_limit_is_the_greater_of_ten_times_before_and_the_trivial_loss():
    assert guard_with(before=0.005).limit == pytest.approx(math.log(4))
    assert guard_with(before=0.5).limit == pytest.approx(5.0)


def test_a_damaging_stage_is_held_to_three_times_the_trivial_loss_only():
    guard = guard_with(before=0.005)
    damaged = constant_model(5.0)  # three quarters of the rows lose 5 nats and a little: about 3.76, between ln 4 and 3 ln 4

    assert guard.check_damage(damaged, "impair") == pytest.approx(0.75 * 5 + math.log(1 + 3 * math.exp(-5)), abs=1e-5)
    with pytest.raises(Diverged, match="retain loss"):
        guard.check(damaged, "repair")
    with pytest.raises(Diverged, match="impair"):
        guard.check_damage(constant_model(9.0), "impair")


def test_a_loss_that_is_not_finite_diverges():
    broken = constant_model(float("nan"))

    with pytest.raises(Diverged):
        guard_with(before=0.5).check_damage(broken, "impair")
    with pytest.raises(Diverged, match="not finite"):
        guard_with(before=0.5).check_finite(torch.tensor(float("inf")), "impair")


def test_the_guard_measures_the_model_before_the_edit_in_eval_mode_and_restores_its_mode():
    model = nn.Sequential(nn.Dropout(0.5), constant_model(0.0)).train()

    guard = Guard.around("m", model, split_of(), TASK, Run(seed=0), factor=10.0)

    assert guard.before == pytest.approx(math.log(4))
    assert model.training
    assert model[0].training


def test_the_mean_loss_is_over_records_and_not_over_batches():
    model, split = constant_model(2.0), split_of(41)

    with torch.no_grad():
        expected = float(TASK.losses(model, split.batch(torch.arange(41))).mean())
    assert mean_loss(model, split, TASK, batch_size=40) == pytest.approx(expected, abs=1e-6)


def test_a_retry_starts_from_the_original_weights_at_a_tenth_of_the_rate():
    model, run = constant_model(0.0), Run(seed=0)
    seen = []

    def attempt(scale: float) -> None:
        seen.append((scale, float(model.bias.detach()[0])))
        with torch.no_grad():
            model.bias.add_(1.0)
        if scale == 1.0:
            raise Diverged(method="m", stage="repair", detail="first")

    with_retry("m", model, run, attempt)

    assert seen == [(1.0, 0.0), (0.1, 0.0)]
    assert [entry["ended_by"] for entry in run.notes["attempts"]] == ["guard", "completed"]


def test_after_two_failures_the_original_weights_are_back_and_both_attempts_are_named():
    model, run = constant_model(0.5), Run(seed=0)
    before = copy.deepcopy(model.state_dict())

    def attempt(scale: float) -> None:
        with torch.no_grad():
            model.weight.fill_(scale)
        raise Diverged(method="m", stage="repair", detail=f"at {scale}")

    with pytest.raises(Diverged, match=r"1 x lr: at 1.0; attempt at 0.1 x lr: at 0.1"):
        with_retry("m", model, run, attempt)

    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert len(run.notes["attempts"]) == 2
