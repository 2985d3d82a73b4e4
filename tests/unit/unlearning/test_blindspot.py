"""Blindspot: the ten things of its specification that can be seen on small networks, the metrics and the attack apart."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from services.errors import Diverged, InvalidInput, MethodNotApplicable, ParameterOutOfRange
from services.learning.architectures.mlp import MLP
from services.learning.data import Batch
from services.learning.run import Run
from services.learning.tasks.regression import Regression
from services.unlearning.mechanisms.attention import attention, row_differences, tapped
from services.unlearning.mechanisms.real_targets import BlindLesson, answers, taps_of
from services.unlearning.mechanisms.relabelling import Joined
from services.unlearning.methods.blindspot import Blindspot
from services.unlearning.methods.fine_tune import FineTune
from services.unlearning.methods.gaussian_amnesiac import GaussianAmnesiac
from tests.unit.unlearning import real_labs
from tests.unit.unlearning.real_labs import RealLab, split_of

torch.set_num_threads(1)
QUICK = {"min_steps": 0, "batch_size": 32, "blind_epochs": 4}


@pytest.fixture(scope="module")
def angles() -> RealLab:
    return real_labs.angles(600, 4, 8)


@pytest.fixture(scope="module")
def lesson(angles: RealLab) -> BlindLesson:
    splits = angles.splits()
    taps = taps_of(angles.original, None)
    told = answers(angles.trained(splits.retain, 5), splits.forget, angles.task, taps, batch_size=64)
    return BlindLesson(Joined(splits.forget, splits.retain), told, angles.task, taps, 50.0)


def unlearned(lab: RealLab, run: Run | None = None, **parameters: object) -> nn.Module:
    return Blindspot(Blindspot.Parameters(**parameters)).unlearn(lab.copy(), lab.splits().for_method(), lab.task, run or lab.run())


@pytest.mark.parametrize("rows", ["forget", "retain"])
def test_1_a_batch_of_one_kind_alone_has_a_finite_loss_and_finite_gradients(angles, lesson, rows):
    edge, model = len(lesson.rows.first), angles.copy().train()
    index = torch.arange(8) if rows == "forget" else edge + torch.arange(8)

    loss = lesson.loss(model, index)
    loss.backward()

    assert torch.isfinite(loss)
    assert all(bool(torch.isfinite(weight.grad).all()) for weight in model.parameters())


def test_1_a_lesson_without_forget_rows_is_the_loss_of_the_task(angles):
    splits = angles.splits()
    nothing = splits.forget.take(torch.zeros(0, dtype=torch.int64))
    lesson = BlindLesson(Joined(nothing, splits.retain), None, angles.task, ("features.2",), 50.0)

    with torch.no_grad():
        expected = float(angles.task.loss(angles.original, splits.retain.batch(torch.arange(8))))
        assert float(lesson.loss(angles.original, torch.arange(8))) == pytest.approx(expected, abs=1e-6)


def test_2_cached_answers_of_the_blindspot_model_are_its_live_ones(angles, lesson):
    forget = angles.splits().forget
    blind = angles.trained(angles.splits().retain, 5)
    index = torch.tensor([7, 0, 3])

    with torch.no_grad(), tapped(blind, lesson.taps) as maps:
        live = angles.task.outputs_of(blind, forget.batch(index).x)

    assert not blind.training
    assert torch.allclose(lesson.blind.outputs[index], live, atol=1e-6)
    assert all(torch.allclose(kept[index], seen, atol=1e-6) for kept, seen in zip(lesson.blind.maps, maps, strict=True))
    assert lesson.taps == ("features.2", "features.6", "features.10")


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_3_without_attention_the_loss_is_the_mean_over_rows_of_the_base_losses(angles, lesson, loss):
    model, edge, task = angles.original, len(lesson.rows.first), angles.task.with_loss(loss)
    index = torch.tensor([3, edge + 4, 0, edge + 1, edge + 9])
    plain = replace(lesson, beta=0.0, task=task)

    expected = []
    with torch.no_grad():
        for row in index.tolist():
            x, y = lesson.rows.batch(torch.tensor([row]))
            wanted = lesson.blind.outputs[row].flatten() if row < edge else (y - 45) / 45
            gap = model(x)[0] - wanted
            expected.append(float(gap.abs() if loss == "l1" else gap.square()))
        got = float(plain.loss(model, index))

    assert got == pytest.approx(sum(expected) / len(expected), abs=1e-6)


def test_the_attention_term_weighs_as_much_as_the_share_of_forget_rows(angles, lesson):
    model, edge = angles.original, len(lesson.rows.first)
    index = torch.tensor([3, edge + 4, 0, edge + 1])

    with torch.no_grad():
        got = float(lesson.loss(model, index) - replace(lesson, beta=0.0).loss(model, index))
        with tapped(model, lesson.taps) as maps:
            model(lesson.rows.first.batch(torch.tensor([3, 0])).x)
        of_forget = sum(float(row_differences(own, kept[torch.tensor([3, 0])]).mean()) for own, kept in zip(maps, lesson.blind.maps, strict=True))

    assert of_forget > 0
    assert got == pytest.approx(50 * 0.5 * of_forget, rel=1e-3)


def test_4_a_student_that_says_what_both_want_has_no_loss(angles):
    splits = angles.splits()
    retain = replace(splits.retain, y=angles.task.predict(angles.original, splits.retain)[:, 0])
    taps = taps_of(angles.original, None)
    told = answers(angles.original, splits.forget, angles.task, taps, batch_size=64)
    lesson = BlindLesson(Joined(splits.forget, retain), told, angles.task, taps, 50.0)

    with torch.no_grad():
        assert float(lesson.loss(angles.original, torch.arange(0, len(lesson), 7))) == pytest.approx(0, abs=1e-5)


def test_5_flat_taps_are_refused_and_those_of_series_are_averaged_over_channels():
    with pytest.raises(InvalidInput, match="attention is of maps"):
        attention(torch.ones(3, 64))
    series = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]]])

    assert torch.allclose(attention(series), torch.tensor([[1.0, 0.0, 1.0]]) / 2**0.5)


def test_5_a_flat_tap_that_is_asked_for_fails_before_the_edit(angles):
    before = copy.deepcopy(angles.original.state_dict())

    with pytest.raises(InvalidInput):
        unlearned(angles, taps=("head",), **QUICK)
    with pytest.raises(ParameterOutOfRange, match="no module nowhere"):
        unlearned(angles, taps=("nowhere",), **QUICK)

    assert all(torch.equal(value, before[name]) for name, value in angles.original.state_dict().items())


def test_6_predictions_of_shape_b_against_targets_of_shape_b_1_raise(angles):
    class Flat(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x))

    with pytest.raises(InvalidInput, match="must return"):
        Regression(1).loss(Flat(), Batch(torch.zeros(3, 2), torch.zeros(3)))
    with pytest.raises(InvalidInput, match="targets must have the shape"):
        Regression(1).loss(nn.Linear(2, 1), Batch(torch.zeros(3, 2), torch.zeros(3, 1)))


def test_7_a_blindspot_model_worse_than_its_gate_ends_the_run_and_the_original_is_kept(angles):
    model = angles.copy()
    before = copy.deepcopy(model.state_dict())
    method = Blindspot(Blindspot.Parameters(blind_gate=0.1, blind_lr=1e-5, **QUICK))

    with pytest.raises(Diverged, match="blindspot model") as raised:
        method.unlearn(model, angles.splits().for_method(), angles.task, angles.run())

    assert raised.value.facts["stage"] == "blindspot"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_gate_looks_at_held_out_records_outside_the_range_alone(angles):
    run = angles.run()
    unlearned(angles, run, **QUICK)
    outside = int((angles.held_out.y >= angles.below).sum())

    assert run.notes["blindspot"]["held_out"] == outside < len(angles.held_out)
    assert run.notes["effective"]["taps"] == ["features.2", "features.6", "features.10"]


def test_the_blindspot_model_never_sees_a_forget_record(angles, monkeypatch):
    seen = []
    from services.unlearning.methods import blindspot

    def spy(model, split, *given, **named):
        seen.append(set(split.ids))
        return fitted(model, split, *given, **named)

    fitted = blindspot.fit
    monkeypatch.setattr(blindspot, "fit", spy)
    unlearned(angles, **QUICK)

    assert seen == [set(angles.splits().retain.ids)]


def test_scaled_targets_divide_both_sides_and_the_unit_is_told(angles):
    run = angles.run()
    unlearned(angles, run, scale_targets=True, **QUICK)
    retain = (angles.splits().retain.y - 45) / 45

    assert run.notes["effective"]["target_unit"] == pytest.approx(float(retain.double().std()))


def test_a_model_without_feature_maps_goes_without_attention():
    lab = real_labs.table()
    splits, run = lab.splits(), lab.run()

    model = Blindspot(Blindspot.Parameters()).unlearn(lab.copy(), splits.for_method(), lab.task, run)

    assert run.notes["effective"]["taps"] == []
    assert lab.error(model, splits.forget) > lab.error(lab.original, splits.forget) + 0.05
    assert lab.error(model, splits.named("retain_test")) < lab.error(lab.original, splits.named("retain_test")) + 0.03


def test_a_forecaster_forgets_by_its_quantiles_and_the_loss_cannot_be_changed():
    lab = real_labs.waves()
    splits, run = lab.splits(), lab.run()

    model = Blindspot(Blindspot.Parameters()).unlearn(lab.copy(), splits.for_method(), lab.task, run)

    assert run.notes["effective"]["taps"] == ["recurrent"]
    assert run.notes["effective"]["loss"] == "quantile"
    assert lab.error(model, splits.forget) > 2 * lab.error(lab.original, splits.forget)
    assert lab.error(model, splits.named("retain_test")) < lab.error(lab.original, splits.named("retain_test")) + 0.05
    with pytest.raises(ParameterOutOfRange, match="loss"):
        Blindspot(Blindspot.Parameters(loss="l1")).unlearn(lab.copy(), splits.for_method(), lab.task, lab.run())


def test_a_version_without_architecture_is_refused():
    lab = real_labs.table()

    with pytest.raises(MethodNotApplicable, match="architecture"):
        Blindspot(Blindspot.Parameters()).unlearn(lab.copy(), lab.splits().for_method(), lab.task, Run(seed=1))


def test_a_missing_target_is_refused_by_the_training_of_the_blindspot_model():
    lab = real_labs.table()
    splits = lab.splits()
    spoilt = splits.retain.y.clone()
    spoilt[3] = float("nan")

    with pytest.raises((InvalidInput, Diverged)):
        Blindspot(Blindspot.Parameters()).unlearn(
            lab.copy(), replace(splits.for_method(), retain=split_of(splits.retain.x, spoilt)), lab.task, lab.run()
        )


def test_an_mlp_of_two_outputs_is_no_regression_model():
    with pytest.raises(InvalidInput):
        Regression(MLP.Parameters(outputs=2, inputs=4).outputs)


def test_11_forget_errors_stand_in_the_order_of_both_notebooks():
    lab = real_labs.values()
    splits = lab.splits()
    arms = {
        "fine_tune": FineTune(FineTune.Parameters()),
        "gaussian_amnesiac": GaussianAmnesiac(GaussianAmnesiac.Parameters(epochs=2, batch_size=32, min_steps=0)),
        "blindspot": Blindspot(Blindspot.Parameters(epochs=2, blind_epochs=6, batch_size=32, min_steps=0)),
    }

    found = {
        name: [lab.error(arm.unlearn(lab.copy(), splits.for_method(), lab.task, lab.run(seed)), splits.forget) for seed in (1, 2)]
        for name, arm in arms.items()
    }
    errors = {name: sum(values) / len(values) for name, values in found.items()}
    gold = sum(lab.error(real_labs.retrained_values(seed), splits.forget) for seed in (98, 99)) / 2

    before = lab.error(lab.original, splits.forget)
    assert before < min(errors["fine_tune"], errors["gaussian_amnesiac"])
    assert max(errors["fine_tune"], errors["gaussian_amnesiac"]) < errors["blindspot"] < gold
