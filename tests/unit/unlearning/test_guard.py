import copy
import math

import pytest
import torch
from torch import nn

from services.errors import Diverged
from services.learning.data import Split
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.mechanisms.guard import Guard, constant_loss, mean_loss, with_retry

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


def retained_split(rows: int = 90) -> Split:
    """Ten classes of which the last was taken out: one record in nine of each of the others."""
    labels = torch.arange(rows) % 9
    return Split(torch.eye(10)[labels], labels, tuple(str(row) for row in range(rows)))


def knowing(share: float, confidence: float) -> nn.Module:
    """A model that is right on the classes 0 to 9 x share with `confidence` logits, and gives one answer to the rest."""
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.0] * 9 + [-20.0]))
        for label in range(round(9 * share)):
            model.weight[label, label] = confidence
    return model


def test_the_loss_of_one_answer_is_the_entropy_of_the_labels():
    assert constant_loss(retained_split(), Classification(10)) == pytest.approx(math.log(9))
    assert constant_loss(Split(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), tuple("abcd")), Classification(2)) == pytest.approx(0.5623, abs=1e-4)


def test_a_model_that_collapsed_to_one_answer_is_refused_though_it_is_below_the_trivial_loss():
    split, collapsed = retained_split(), knowing(0.0, 0.0)
    guard = Guard("m", split, Classification(10), 0.05, math.log(10), 10.0)

    assert mean_loss(collapsed, split, Classification(10)) < guard.limit
    with pytest.raises(Diverged, match="one answer for every record"):
        guard.check(collapsed, "repair")
    assert guard.check_damage(collapsed, "impair") == pytest.approx(math.log(9))  # a stage that is meant to damage may pass through it


def test_a_weak_model_that_still_tells_some_records_apart_is_let_through():
    guard = Guard("m", retained_split(), Classification(10), 0.05, math.log(10), 10.0)

    assert guard.check(knowing(2 / 9, 6.0), "repair") == pytest.approx(7 / 9 * math.log(9) + 2 / 9 * math.log(1 + 8 * math.exp(-6)), abs=1e-4)


def test_an_ill_calibrated_model_that_is_mostly_right_is_not_taken_for_a_collapsed_one():
    torn = knowing(7 / 9, 4.0)
    with torch.no_grad():
        torn.weight[0, 7] = torn.weight[0, 8] = 10.0  # two classes of nine are taken for the first, with great confidence
    guard = Guard("m", retained_split(), Classification(10), 0.5, math.log(10), 10.0)

    assert guard.check(torn, "repair") == pytest.approx(2 / 9 * 10 + 7 / 9 * math.log(1 + 8 * math.exp(-4)), abs=1e-3)


def test_a_model_that_knew_next_to_nothing_before_has_nothing_to_lose():
    guard = Guard("m", retained_split(), Classification(10), 2.1, math.log(10), 10.0)

    assert guard.check(knowing(0.0, 0.0), "repair") == pytest.approx(math.log(9))


def test_one_answer_for_the_only_class_that_is_left_is_the_right_one():
    split = Split(torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64), tuple(str(row) for row in range(20)))
    guard = Guard("m", split, TASK, 0.001, math.log(4), 10.0)

    assert guard.check(constant_model(5.0), "repair") == pytest.approx(math.log(1 + 3 * math.exp(-5)), abs=1e-5)


def test_a_collapse_is_tried_again_at_a_tenth_of_the_rate():
    model, run = knowing(1.0, 6.0), Run(seed=0)
    guard = Guard.around("m", model, retained_split(), Classification(10), run, factor=10.0)

    def attempt(scale: float) -> None:
        if scale == 1.0:
            model.load_state_dict(knowing(0.0, 0.0).state_dict())
        guard.check(model, "repair")

    with_retry("m", model, run, attempt)

    assert [entry["ended_by"] for entry in run.notes["attempts"]] == ["guard", "completed"]
    assert "one answer" in run.notes["attempts"][0]["detail"]


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
