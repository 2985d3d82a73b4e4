"""The acceptance tests of the method: fine-tuning without a penalty, the penalty's schedule, and its bound."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from services.learning.run import Progress
from services.unlearning.methods.fine_tune import FineTune
from services.unlearning.methods.l1_sparse import L1Sparse, penalty_weight

torch.set_num_threads(1)


def absolute(model: nn.Module) -> float:
    """The sum of absolute weights."""
    return float(torch.stack([each.detach().abs().sum() for each in model.parameters()]).sum())


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_1_without_a_penalty_it_equals_fine_tuning(lab, request, digest_of):
    lab = request.getfixturevalue(lab)
    tuned = FineTune(FineTune.Parameters(epochs=2)).unlearn(lab.copy(), lab.without_forget(), lab.task, lab.run())

    sparse = L1Sparse(L1Sparse.Parameters(l1_weight=0.0, epochs=2, min_steps=0)).unlearn(lab.copy(), lab.without_forget(), lab.task, lab.run())

    assert digest_of(sparse) == digest_of(tuned) != digest_of(lab.original)


def test_2_the_last_epochs_penalty_is_a_tenth_of_the_first():
    weights = [penalty_weight(5e-4, epoch, 10) for epoch in range(10)]

    assert weights == pytest.approx([5e-4 * tenths / 10 for tenths in range(10, 0, -1)])
    assert weights[-1] == pytest.approx(5e-5)


def test_2_the_penalty_of_each_epoch_is_what_the_loss_holds(mlp_lab):
    """At a step size that moves nothing, loss with penalty less loss without is the penalty alone."""
    reports: tuple[list[Progress], list[Progress]] = ([], [])
    for weight, seen in zip((0.01, 0.0), reports, strict=True):
        run = mlp_lab.run(on_progress=seen.append, report_every_s=0.0)
        parameters = L1Sparse.Parameters(l1_weight=weight, lr=1e-6, momentum=0.0, weight_decay=0.0, epochs=4, min_steps=0)
        L1Sparse(parameters).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, run)

    penalties = [heavy.values["loss"] - light.values["loss"] for heavy, light in zip(*reports, strict=True)]
    shares = [penalty / (0.01 * absolute(mlp_lab.original)) for penalty in penalties]

    assert len(shares) == 4 * 17
    assert shares == pytest.approx([1.0] * 17 + [0.75] * 17 + [0.5] * 17 + [0.25] * 17, abs=5e-3)


def test_weights_grow_sparser_than_by_fine_tuning_and_the_others_are_kept(mlp_lab):
    splits = mlp_lab.splits()
    before = mlp_lab.scores(mlp_lab.original, splits)
    tuned = FineTune(FineTune.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run())

    sparse = L1Sparse(L1Sparse.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.without_forget(), mlp_lab.task, mlp_lab.run())

    after = mlp_lab.scores(sparse, splits)
    pull = sum(17 * penalty_weight(5e-4, epoch, 10) for epoch in range(10)) * 0.01 / (1 - 0.9)  # of a weight whose sign stays, with momentum
    count = sum(each.numel() for each in sparse.parameters())
    assert absolute(tuned) - absolute(sparse) == pytest.approx(count * pull, rel=0.1)
    assert after[0] < before[0]
    assert after[2] >= before[2] - 0.02


def test_a_penalty_of_a_fifth_which_destroys_the_model_is_refused():
    with pytest.raises(ValidationError, match=r"less than or equal to 0\.01"):
        L1Sparse.Parameters(l1_weight=0.2)
