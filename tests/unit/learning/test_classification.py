import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from services.errors import InvalidInput
from services.learning.data import Batch, Split
from services.learning.tasks.classification import Classification

torch.set_num_threads(1)


class Fixed(nn.Module):
    """Returns its records as logits; dropout shows whether it is in eval mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x):
        return self.dropout(x)


def logits(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1)) * 4


def test_losses_are_the_negative_log_softmax_of_the_label():
    x, y = logits(), torch.arange(7) % 3
    expected = -log_softmax(x.double().numpy(), axis=1)[np.arange(7), y.numpy()]
    model = Fixed().eval()
    assert Classification(3).losses(model, Batch(x, y)).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert float(Classification(3).loss(model, Batch(x, y))) == pytest.approx(expected.mean(), rel=1e-5)


def test_label_smoothing_is_in_the_training_loss_alone():
    x, y = logits(), torch.arange(7) % 3
    logs = log_softmax(x.double().numpy(), axis=1)
    smoothed = 0.8 * -logs[np.arange(7), y.numpy()] + 0.2 * -logs.mean(axis=1)
    task = Classification(3, label_smoothing=0.2)
    assert float(task.loss(Fixed().eval(), Batch(x, y))) == pytest.approx(smoothed.mean(), rel=1e-5)
    assert torch.equal(task.losses(Fixed().eval(), Batch(x, y)), Classification(3).losses(Fixed().eval(), Batch(x, y)))


def test_predictions_come_in_order_and_in_eval_mode_and_the_mode_is_restored():
    x = logits()
    model = Fixed().train()
    outputs = Classification(3).predict(model, Split(x, torch.arange(7) % 3, tuple("abcdefg")), batch_size=3)
    assert torch.equal(outputs, x)
    assert model.training
    assert model.dropout.training


def test_a_model_can_be_trained_after_a_prediction_inside_inference_mode():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())
    split = Split(torch.randn(4, 2, 3, 3), torch.zeros(4, dtype=torch.int64), tuple("abcd"))
    with torch.inference_mode():
        Classification(3).predict(model, split)
    Classification(3).loss(model, split.batch(torch.arange(4))).backward()
    assert model[0].weight.grad is not None


def test_predictions_on_no_record_are_an_empty_matrix():
    empty = Split(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), ())
    assert Classification(3).predict(Fixed(), empty).shape == (0, 3)


def test_knowing_nothing_costs_the_logarithm_of_the_classes():
    split = Split(logits(), torch.zeros(7, dtype=torch.int64), tuple("abcdefg"))
    assert Classification(10).trivial_loss(split) == math.log(10)


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]])])
def test_labels_that_do_not_fit_are_refused(y):
    with pytest.raises(InvalidInput, match="labels"):
        Classification(3).check(Split(logits(2), y, ("a", "b")))


def test_labels_that_fit_pass_and_so_does_an_empty_part():
    Classification(3).check(Split(logits(3), torch.arange(3), ("a", "b", "c")))
    Classification(3).check(Split(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), ()))
