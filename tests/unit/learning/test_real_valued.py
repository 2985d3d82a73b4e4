"""Regression and forecasting: losses, shapes, scale, and the training loop on them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error
from torch import nn

from services.errors import InvalidInput
from services.learning.architectures.lstm import LSTM
from services.learning.architectures.mlp import MLP
from services.learning.architectures.temporal_transformer import TemporalTransformer
from services.learning.data import Batch, Span, Spans, Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.targets import Targets
from services.learning.tasks.forecasting import Forecasting
from services.learning.tasks.regression import Regression
from services.learning.training import fit

torch.set_num_threads(1)


class Constant(nn.Module):
    """Returns the same outputs for every record."""

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs[: len(x)]


def split_of(x, y) -> Split:
    return Split(x, y, tuple(f"r{row}" for row in range(len(y))))


def table(rows: int = 96) -> Split:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return split_of(x, 30 + 10 * x[:, 0] - 5 * x[:, 1])


@pytest.mark.parametrize(("loss", "reference"), [("l1", mean_absolute_error), ("mse", mean_squared_error)])
def test_losses_are_those_of_scikit_learn_and_the_trivial_one_predicts_the_mean(loss, reference):
    y, out = torch.tensor([1.0, 4.0, 2.5]), torch.tensor([[0.5], [6.0], [2.5]])
    task = Regression(1, targets=Targets(loss=loss))

    assert float(task.loss(Constant(out), Batch(torch.zeros(3, 1), y))) == pytest.approx(reference(y, out[:, 0]))
    assert task.trivial_loss(split_of(torch.zeros(3, 1), y)) == pytest.approx(reference(y, np.full(3, 2.5)))


def test_hubers_error_is_torchs():
    y, out = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([[0.5], [-3.0], [1.0]])

    got = Regression(1, targets=Targets(loss="huber")).losses(Constant(out), Batch(torch.zeros(3, 1), y))

    assert torch.allclose(got, nn.functional.huber_loss(out[:, 0], y, reduction="none"))


def test_the_quantile_loss_is_the_mean_of_scikit_learns_over_steps_and_quantiles():
    generator = torch.Generator().manual_seed(1)
    y, out = torch.randn(5, 2, generator=generator), torch.randn(5, 6, generator=generator)
    task = Forecasting(6)

    expected = np.mean(
        [mean_pinball_loss(y[:, h], out.view(5, 2, 3)[:, h, q], alpha=level) for h in range(2) for q, level in enumerate((0.1, 0.5, 0.9))]
    )

    assert float(task.loss(Constant(out), Batch(torch.zeros(5, 3, 1), y))) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(task.points(out), out.view(5, 2, 3)[:, :, 1])


@pytest.mark.parametrize(("out", "y"), [((3,), (3,)), ((3, 1), (3, 1)), ((3, 2), (3,)), ((3, 1), (2,))])
def test_6_outputs_and_targets_of_shapes_that_would_be_broadcast_are_refused(out, y):
    with pytest.raises((InvalidInput, RuntimeError)):
        Regression(1).loss(Constant(torch.zeros(out)), Batch(torch.zeros(3, 1), torch.zeros(y)))


@pytest.mark.parametrize("y", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.tensor([1, 2]), torch.zeros(2, 1)])
def test_targets_that_are_missing_or_of_another_form_are_refused(y):
    with pytest.raises(InvalidInput, match="target"):
        Regression(1).check(split_of(torch.zeros(2, 1), y))
    with pytest.raises(InvalidInput):
        fit(MLP(MLP.Parameters(outputs=1, inputs=1)).fresh(0), split_of(torch.zeros(2, 1), y), Regression(1), Recipe(epochs=1), Run(seed=0))


def test_outputs_that_do_not_fit_the_task_are_refused():
    for outputs in (2, 3):
        with pytest.raises(InvalidInput):
            Regression(outputs)
    with pytest.raises(InvalidInput, match="quantiles"):
        Forecasting(4)
    with pytest.raises(InvalidInput, match="smoothing"):
        Regression(1, label_smoothing=0.1)
    with pytest.raises(InvalidInput, match="fit"):
        Forecasting(6).with_loss("l1")
    with pytest.raises(ValidationError):
        Targets(loss="quantile", quantiles=(0.9, 0.1))


def test_targets_are_trained_scaled_and_predicted_in_their_own_units():
    split, scale = table(), Targets(loss="mse", mean=30, std=10)
    recipe = Recipe(learning_rate=1e-2, epochs=60, batch_size=32, targets=scale)
    task, model = Regression.of(1, recipe), MLP(MLP.Parameters(outputs=1, inputs=4, hidden=(16,))).fresh(0)

    result = fit(model, split, task, recipe, Run(seed=0))
    predicted = task.predict(model, split)

    assert predicted.shape == (96, 1)
    assert float((predicted[:, 0] - split.y).square().mean()) == pytest.approx(
        100 * float(task.losses(model, split.batch(torch.arange(96))).detach().mean()), rel=1e-4
    )
    assert result.final_loss < 0.05 * task.trivial_loss(split)
    with pytest.raises(ValueError, match="scale"):
        fit(model, split, Regression(1), recipe, Run(seed=0))


@pytest.mark.parametrize(
    "architecture",
    [
        LSTM(LSTM.Parameters(outputs=6, inputs=1, width=16)),
        TemporalTransformer(TemporalTransformer.Parameters(outputs=6, inputs=1, width=8, heads=2)),
    ],
    ids=["lstm", "temporal_transformer"],
)
def test_a_sine_is_forecast_two_steps_ahead_with_quantiles_in_order(architecture):
    wave = torch.sin(torch.arange(300) * 0.3)
    x = torch.stack([wave[at - 12 : at] for at in range(12, 290)])[..., None]
    split = split_of(x, torch.stack([wave[at : at + 2] for at in range(12, 290)]))
    task, model = Forecasting(6), architecture.fresh(0)

    fit(model, split, task, Recipe(learning_rate=1e-2, epochs=12, batch_size=32), Run(seed=0))
    out = task.predict(model, split).view(-1, 2, 3)

    assert float(task.losses(model.eval(), split.batch(torch.arange(len(split)))).detach().mean()) < 0.3 * task.trivial_loss(split)
    assert float((out[..., 0] <= out[..., 2]).double().mean()) > 0.9


def test_a_range_of_targets_cuts_what_is_held_out_in_two():
    whole = split_of(torch.zeros(4, 1), torch.tensor([10.0, 29.9, 30.0, 50.0]))
    splits = Splits(whole, whole, whole, whole, whole, span=Span(below=30))

    assert splits.named("forget_test").y.tolist() == pytest.approx([10.0, 29.9])
    assert splits.named("retain_test").y.tolist() == [30.0, 50.0]
    assert splits.kept_analysis().y.tolist() == [30.0, 50.0]
    assert whole.within(Span(above=29.5, below=50), keep=True).y.tolist() == pytest.approx([29.9, 30.0])
    steps = split_of(torch.zeros(2, 3, 1), torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
    assert steps.within(Span(above=4), keep=True).ids == ("r1",)


def test_several_ranges_cut_what_is_held_out_by_any_of_them_and_records_beside_them_are_told():
    whole = split_of(torch.zeros(5, 1), torch.tensor([10.0, 29.9, 30.0, 50.0, 60.0]))
    splits = Splits(whole, whole, whole, whole, whole, span=Spans((Span(below=20), Span(above=50))))

    assert splits.named("forget_test").y.tolist() == [10.0, 60.0]
    assert splits.named("retain_test").y.tolist() == pytest.approx([29.9, 30.0, 50.0])
    assert splits.ranged
    assert not Splits(whole, whole, whole, whole, whole, span=Span(below=20), mixed=True).ranged
