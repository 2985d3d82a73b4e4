"""Gaussian amnesiac: its draws, its selection, and what it forgets."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from services.errors import ParameterOutOfRange
from services.learning.run import Run
from services.unlearning.mechanisms.guard import mean_loss
from services.unlearning.mechanisms.real_targets import random_targets, spread_of, two_peaks
from services.unlearning.methods import gaussian_amnesiac
from services.unlearning.methods.gaussian_amnesiac import GaussianAmnesiac
from tests.unit.unlearning import real_labs
from tests.unit.unlearning.real_labs import RealLab

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lab() -> RealLab:
    return real_labs.table()


def method(**parameters: object) -> GaussianAmnesiac:
    return GaussianAmnesiac(GaussianAmnesiac.Parameters(**parameters))


def test_1_targets_are_drawn_once_and_are_the_same_in_every_epoch(lab, monkeypatch):
    draws, shown = [], []

    def counted(*given, **named):
        draws.append(random_targets(*given, **named))
        return draws[-1]

    def spied(records, model, task):
        inner = looked(records, model, task)

        def loss_of(rows):
            shown.append((rows, records.batch(rows).y))
            return inner(rows)

        return loss_of

    looked = gaussian_amnesiac.loss_on
    monkeypatch.setattr(gaussian_amnesiac, "random_targets", counted)
    monkeypatch.setattr(gaussian_amnesiac, "loss_on", spied)
    splits = lab.splits()
    method(epochs=3, min_steps=0, batch_size=64).unlearn(lab.copy(), splits.for_method(), lab.task, lab.run())

    seen: dict[int, set[float]] = {}
    edge = len(splits.forget)
    for rows, y in shown:
        ordered = torch.cat([rows[rows < edge], rows[rows >= edge]])
        for row, target in zip(ordered.tolist(), y.tolist(), strict=True):
            seen.setdefault(row, set()).add(target)
    assert len(draws) == 1
    assert all(len(targets) == 1 for targets in seen.values())
    assert [seen[row].pop() for row in range(edge)] == draws[0].tolist()


def test_1_the_same_seed_draws_the_same_targets(lab):
    data = lab.splits().for_method()
    first, again, other = (method(label_seed=seed).drawn(data, lab.run()).y for seed in (5, 5, 6))
    own, own_again = (method().drawn(data, lab.run(seed)).y for seed in (1, 1))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(own, own_again)


def test_2_mean_and_deviation_are_those_of_all_training_targets():
    assert spread_of(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])) == pytest.approx((3.0, (14 / 3) ** 0.5))


def test_2_the_draws_have_the_spread_of_the_forget_set_too(lab):
    run, splits = lab.run(), lab.splits()
    method().drawn(splits.for_method(), run)

    assert run.notes["drawn_from"]["mean"] == pytest.approx(float(lab.train.y.double().mean()), abs=1e-6)
    assert run.notes["drawn_from"]["std"] == pytest.approx(float(lab.train.y.double().std()), abs=1e-6)
    assert run.notes["drawn_from"]["mean"] < float(splits.retain.y.mean()) - 0.2


def test_3_targets_that_stay_and_the_original_are_untouched(lab):
    splits = lab.splits()
    before, weights = splits.retain.y.clone(), {name: value.clone() for name, value in lab.original.state_dict().items()}

    method(min_steps=0).unlearn(lab.copy(), splits.for_method(), lab.task, lab.run())

    assert torch.equal(splits.retain.y, before)
    assert torch.equal(splits.forget.y, lab.splits().forget.y)
    assert all(torch.equal(value, weights[name]) for name, value in lab.original.state_dict().items())


def test_4_targets_that_are_all_alike_are_drawn_as_they_are(lab):
    splits = lab.splits()
    alike = replace(
        splits, forget=replace(splits.forget, y=torch.full_like(splits.forget.y, 7.0)), retain=replace(splits.retain, y=torch.full_like(splits.retain.y, 7.0))
    )  # fmt: skip

    drawn = method().drawn(alike.for_method(), lab.run()).y

    assert drawn.tolist() == [7.0] * len(splits.forget)
    assert not two_peaks(splits.forget.y * 0)


def test_5_the_checkpoint_with_the_least_held_out_loss_comes_back_and_the_range_has_no_say(lab):
    run, splits = lab.run(), lab.splits()

    model = method(epochs=4, min_steps=0, batch_size=32).unlearn(lab.copy(), splits.for_method(), lab.task, run)

    kept = splits.kept_analysis()
    told = run.notes["selected"]
    assert float(kept.y.min()) >= lab.below
    assert told["held_out"] == len(kept) < len(splits.analysis)
    assert len(told["held_out_losses"]) == 4
    assert mean_loss(model, kept, lab.task) == pytest.approx(min(told["held_out_losses"]), rel=1e-6)
    assert told["epoch"] == told["held_out_losses"].index(min(told["held_out_losses"])) + 1


def test_5_without_held_out_records_rows_that_stay_select(lab):
    splits, run = lab.splits(), lab.run()
    nothing = splits.analysis.take(torch.zeros(0, dtype=torch.int64))

    method(min_steps=0).unlearn(lab.copy(), replace(splits, analysis=nothing).for_method(), lab.task, run)

    assert run.notes["selected"]["held_out"] == len(splits.retain)


def test_draws_are_held_to_a_range_and_several_peaks_are_told(lab):
    data, run = lab.splits().for_method(), lab.run()
    peaks = replace(data, forget=replace(data.forget, y=data.forget.y * 0.01 - 10), retain=replace(data.retain, y=data.retain.y * 0.01 + 10))

    drawn = method(clip_range=(-0.5, 0.5)).drawn(data, lab.run()).y
    method().drawn(peaks, run)

    assert float(drawn.min()) == -0.5
    assert float(drawn.max()) == 0.5
    assert "peaks" in run.notes["warning"]
    quiet = Run(seed=1)
    method().drawn(data, quiet)
    assert "warning" not in quiet.notes
    with pytest.raises(ParameterOutOfRange, match="clip_range"):
        method(clip_range=(5, 6)).drawn(data, lab.run())
    with pytest.raises(ValidationError, match="clip_range"):
        method(clip_range=(1, 1))


def test_steps_of_a_series_are_drawn_one_by_one():
    lab = real_labs.waves()
    splits = lab.splits()

    drawn = method().drawn(splits.for_method(), lab.run()).y

    assert drawn.shape == splits.forget.y.shape == (len(splits.forget), 2)
    assert float((drawn[:, 0] - drawn[:, 1]).abs().mean()) > 0.3


def test_6_the_forget_error_rises_above_the_originals_and_stays_below_the_retrained_models():
    lab = real_labs.values()
    splits = lab.splits()

    model = method().unlearn(lab.copy(), splits.for_method(), lab.task, lab.run())

    before, after, gold = (lab.error(each, splits.forget) for each in (lab.original, model, real_labs.retrained_values(98)))
    assert before + 5 < after < gold - 2
    assert lab.error(model, splits.named("retain_test")) < lab.error(lab.original, splits.named("retain_test")) + 1
