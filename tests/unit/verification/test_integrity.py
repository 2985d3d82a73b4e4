"""What two state dicts tell of a run without a reading."""

import pytest
import torch
from torch import nn

from services.verification.integrity import WeightFacts


def weights(**changed):
    state = {"body.weight": torch.ones(3, 2), "body.bias": torch.zeros(3), "head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    return {**state, **{name.replace("_", "."): value for name, value in changed.items()}}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (weights(), WeightFacts(finite=True, differs=False, head_only=False)),
        (weights(head_bias=torch.ones(2)), WeightFacts(finite=True, differs=True, head_only=True)),
        (weights(head_bias=torch.ones(2), body_bias=torch.full((3,), 1e-7)), WeightFacts(finite=True, differs=True, head_only=False)),
        (weights(body_bias=torch.full((3,), torch.nan)), WeightFacts(finite=False, differs=True, head_only=False)),
        ({**weights(), "detector": torch.ones(1)}, WeightFacts(finite=False, differs=True, head_only=False)),
        ({name: value for name, value in weights().items() if name != "body.bias"}, WeightFacts(finite=True, differs=True, head_only=False)),
    ],
)
def test_what_changed_is_told(after, expected):
    assert WeightFacts.of(weights(), after, head="head") == expected


def test_a_network_that_is_nothing_but_its_head_has_no_layers_that_still_hold_anything():
    layer = nn.Linear(3, 2)
    before = {f"head.{name}": value.clone() for name, value in layer.state_dict().items()}

    found = WeightFacts.of(before, {name: value + 1 for name, value in before.items()}, head="head")

    assert found.differs
    assert not found.head_only


def test_a_layer_whose_name_begins_like_the_heads_is_not_the_head():
    before = {"head.weight": torch.ones(2), "header.weight": torch.ones(2), "body.weight": torch.ones(2)}

    assert not WeightFacts.of(before, {**before, "header.weight": torch.zeros(2)}, head="head").head_only
