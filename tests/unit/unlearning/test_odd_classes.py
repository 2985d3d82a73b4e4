"""Classes that hardly are ones: of one record, or gone from the model already."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from services.learning.training import fit
from services.unlearning.method import METHODS

METHODS.discover("services.unlearning.methods")
LOSS_ALLOWED = 0.05


def shortened(name):
    given = {"unsir": {"lr_impair": 5e-3, "lr_repair": 2e-3, "batch_size": 64}, "bad_teacher": {}}[name]  # known to forget a class of the digits
    return METHODS[name](METHODS[name].Parameters(**given))


def finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values() if tensor.is_floating_point())


@pytest.mark.parametrize(("name", "lab"), [("unsir", "mlp_lab"), ("bad_teacher", "cnn_lab")])
def test_a_class_of_one_record_ends_with_a_sound_model_that_keeps_the_others(name, lab, request):
    lab = request.getfixturevalue(lab)
    splits = lab.splits()
    one = replace(splits, forget=splits.forget.take(torch.zeros(1, dtype=torch.int64)))
    kept = lab.test.with_labels((3,), keep=False)

    model = shortened(name).unlearn(lab.copy(), one, lab.task, lab.run())

    assert finite(model)
    assert lab.accuracy(model, kept) >= lab.accuracy(lab.original, kept) - LOSS_ALLOWED


@pytest.mark.parametrize("name", ["unsir", "bad_teacher"])
def test_a_model_that_misses_the_class_already_goes_on_missing_it_and_keeps_the_others(name, mlp_lab):
    splits = mlp_lab.splits()
    run = mlp_lab.run(seed=5)
    without = run.fresh_model("without")
    fit(without, splits.retain, mlp_lab.task, mlp_lab.recipe, run)
    _, unseen, before = mlp_lab.scores(without, splits)
    assert unseen == 0.0

    model = shortened(name).unlearn(copy.deepcopy(without), splits, mlp_lab.task, mlp_lab.run())

    forgotten, unseen, after = mlp_lab.scores(model, splits)
    assert finite(model)
    assert max(forgotten, unseen) <= 0.01
    assert after >= before - LOSS_ALLOWED
