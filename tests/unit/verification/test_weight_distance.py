"""Weight distance against numpy on networks of two layers."""

import numpy as np
import pytest
import torch
from torch import nn

from services.learning.run import Run
from services.verification.metric import Models
from services.verification.metrics.weight_distance import WeightDistance
from services.verification.reading import Unmeasured
from tests.unit.verification.worlds import TASK, split_of, splits_of

torch.set_num_threads(1)


def toy(first, second, running=0.0):
    """Return two layers of 2 by 2 with given entries, biases 0, and a batch normalisation with the given running mean."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2))
    with torch.no_grad():
        for layer, entries in ((net[0], first), (net[2], second)):
            layer.weight.copy_(torch.tensor(entries))
            layer.bias.zero_()
        net[1].running_mean.fill_(running)
    return net


ORIGINAL = toy([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]])
UNLEARNED = toy([[1.0, 2.0], [3.0, 1.0]], [[1.0, 4.0], [0.0, 1.0]], running=7.0)
RETRAINED = toy([[0.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, 4.0]], running=-3.0)
DATA = splits_of(forget=split_of("f", np.arange(20) % 10))


def taken(models):
    return WeightDistance(WeightDistance.Parameters()).measure(models, DATA, TASK, Run(seed=1), split="forget_train")


def flat(net):
    return np.concatenate([parameter.detach().double().numpy().ravel() for parameter in net.parameters()])


def test_the_distance_is_numpys_relative_norm_and_buffers_are_skipped():
    found = taken(Models(ORIGINAL, UNLEARNED, RETRAINED))

    expected = np.linalg.norm(flat(UNLEARNED) - flat(RETRAINED)) / np.linalg.norm(flat(RETRAINED))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.value == pytest.approx(np.sqrt((1 + 9 + 1 + 16 + 9) / (4 + 9 + 16 + 4 + 16)), abs=1e-12)
    assert (found.low, found.high, found.n) == (found.value, found.value, 20)


def test_each_layer_has_its_distance_from_the_original_in_the_order_of_the_parameters():
    detail = taken(Models(ORIGINAL, UNLEARNED, RETRAINED)).detail

    assert list(detail["layers"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert detail["layers"]["0.weight"] == {"distance": 3.0, "relative": pytest.approx(3 / np.sqrt(15))}
    assert detail["layers"]["2.weight"] == {"distance": 4.0, "relative": pytest.approx(4 / np.sqrt(18))}
    assert detail["layers"]["0.bias"] == {"distance": 0.0, "relative": None}
    assert detail["moved"] == pytest.approx(5.0)


def test_equal_weights_have_distance_zero_and_zero_weights_distance_one():
    zero = toy([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])
    twin = toy([[0.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, 4.0]])

    assert taken(Models(ORIGINAL, twin, RETRAINED)).value == 0
    assert taken(Models(ORIGINAL, zero, RETRAINED)).value == pytest.approx(1.0)
    assert taken(Models(ORIGINAL, RETRAINED, RETRAINED, twin)).value == 0


def test_without_a_counterpart_it_is_null_with_the_reason():
    other = nn.Linear(2, 2)

    assert taken(Models(ORIGINAL, UNLEARNED)) == Unmeasured("no_retrained_reference")
    assert taken(Models(ORIGINAL, RETRAINED, RETRAINED)) == Unmeasured("no_second_retrained_model")
    assert taken(Models(ORIGINAL, other, RETRAINED)) == Unmeasured("different_parameters")
    assert taken(Models(other, UNLEARNED, RETRAINED)).detail == {}


def test_float32_agrees_with_float64():
    doubled = [toy(*([[[0.1, 0.2], [0.3, k]], [[k, 0.5], [0.6, 0.7]]])) for k in (0.33, 0.77)]
    single = taken(Models(ORIGINAL, *doubled)).value
    double = taken(Models(ORIGINAL, *(net.double() for net in doubled))).value

    assert single == pytest.approx(double, abs=1e-5)
