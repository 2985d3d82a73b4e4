"""What the loss-free variant does otherwise than `ssd`: another gradient, and no label."""

from dataclasses import replace

import pytest
import torch

from services.learning.run import Run
from services.unlearning.mechanisms.importance import Measure, importance
from services.unlearning.methods.lfssd import Lfssd

torch.set_num_threads(1)


def test_importance_is_the_mean_absolute_gradient_of_the_outputs_squared_norm(mlp_lab):
    rows, model = mlp_lab.splits().forget.take(torch.arange(10)), mlp_lab.copy()
    measured = {
        granule: importance(model, rows, mlp_lab.task, Run(seed=0), Measure("output_norm", granule, 4), stage="x")["head.weight"]
        for granule in ("batch", "per_sample")
    }

    def expected(size: int) -> torch.Tensor:
        parts = []
        for batch in rows.batches(size):
            norm = model(batch.x).square().sum(dim=1).mean()
            parts.append(torch.autograd.grad(norm, [model.head.weight])[0].abs())
        return torch.stack(parts).mean(dim=0)

    assert torch.allclose(measured["batch"], expected(4), rtol=1e-4, atol=1e-9)
    assert torch.allclose(measured["per_sample"], expected(1), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("granule", ["per_sample", "batch"])
def test_labels_make_no_difference_to_importance_nor_to_the_edit_at_a_given_alpha(granule, plain_cnn_lab, digest_of):
    lab, splits = plain_cnn_lab, plain_cnn_lab.splits()
    other = replace(splits, forget=replace(splits.forget, y=(splits.forget.y + 1) % 10))
    method = Lfssd(Lfssd.Parameters(alpha=4.0, importance=granule, retain_drop=1.0, guard_factor=100))

    digests = {digest_of(method.unlearn(lab.copy(), each, lab.task, lab.run())) for each in (splits, other)}

    assert len(digests) == 1
    assert digests != {digest_of(lab.original)}


@pytest.mark.parametrize("lab", ["cnn_lab", "plain_cnn_lab"])
def test_the_search_finds_an_alpha_that_forgets_a_digit_and_keeps_the_others(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()
    before = lab.scores(lab.original, splits)

    model = Lfssd(Lfssd.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert max(forget, forget_test) <= 0.05
    assert retain_test >= before[2] - 0.06
    assert run.notes["ended_by"] == "target"


@pytest.mark.parametrize(("digit", "form"), [(3, ("batch", 1.0)), (8, ("per_sample", 0.3))])
def test_where_the_first_form_will_not_do_another_forgets_the_digit(digit, form, mlp_lab):
    splits, run = mlp_lab.splits(classes=(digit,)), mlp_lab.run()
    before = mlp_lab.scores(mlp_lab.original, splits)

    model = Lfssd(Lfssd.Parameters()).unlearn(mlp_lab.copy(), splits, mlp_lab.task, run)

    forget, forget_test, retain_test = mlp_lab.scores(model, splits)
    assert max(forget, forget_test) <= 0.05
    assert retain_test >= before[2] - 0.06
    assert (run.notes["effective"]["importance"], run.notes["effective"]["strength"]) == form
