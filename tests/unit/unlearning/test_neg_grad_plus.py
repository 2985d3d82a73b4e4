"""The acceptance tests of the method: fine-tuning at one end of its range, batch norm as it was, and the guard on its ascent."""

from dataclasses import replace

import pytest
import torch

from services.errors import Diverged
from services.learning.run import Progress
from services.unlearning.methods.fine_tune import FineTune
from services.unlearning.methods.neg_grad_plus import NegGradPlus, anchor_penalty

torch.set_num_threads(1)


def test_1_without_forget_term_and_anchor_it_is_fine_tuning_step_by_step(mlp_lab, digest_of):
    splits = mlp_lab.splits()
    reports: tuple[list[Progress], list[Progress]] = ([], [])
    tuned, contrasted = (mlp_lab.run(on_progress=each.append, report_every_s=0.0) for each in reports)
    expected = FineTune(FineTune.Parameters(weight_decay=0.0, epochs=3)).unlearn(mlp_lab.copy(), splits, mlp_lab.task, tuned)

    parameters = NegGradPlus.Parameters(retain_weight=1.0, anchor_wd=0.0, epochs=3, min_steps=0)
    model = NegGradPlus(parameters).unlearn(mlp_lab.copy(), splits, mlp_lab.task, contrasted)

    assert [each.values["loss"] for each in reports[1]] == [each.values["loss"] for each in reports[0]]
    assert len(reports[0]) == 3 * 17
    assert digest_of(model) == digest_of(expected) != digest_of(mlp_lab.original)


def test_2_batch_norm_buffers_stay_as_they_are(cnn_lab):
    model = NegGradPlus(NegGradPlus.Parameters(epochs=2, min_steps=0)).unlearn(cnn_lab.copy(), cnn_lab.splits(), cnn_lab.task, cnn_lab.run())

    before, after = dict(cnn_lab.original.named_buffers()), dict(model.named_buffers())
    assert before
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(model.head.weight, cnn_lab.original.head.weight)


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_a_class_of_digits_is_forgotten_and_the_others_are_kept(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()
    before = lab.scores(lab.original, splits)

    model = NegGradPlus(NegGradPlus.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert max(forget, forget_test) <= 0.01
    assert retain_test >= before[2] - 0.02
    assert run.notes["effective"] == {"rows": 1076, "batch_size": 64, "epochs": 10, "steps": 170}


def test_the_papers_ascent_without_a_target_is_stopped_where_it_runs_away_and_the_original_comes_back(cnn_lab, digest_of):
    method = NegGradPlus(NegGradPlus.Parameters(ascent_target=None))
    model, run = cnn_lab.copy(), cnn_lab.run()

    with pytest.raises(Diverged, match="The original model is kept"):
        method.unlearn(model, cnn_lab.splits(), cnn_lab.task, run)

    assert digest_of(model) == digest_of(cnn_lab.original)
    assert [(entry["lr_scale"], entry["ended_by"]) for entry in run.notes["attempts"]] == [(1.0, "guard"), (0.1, "guard")]


def test_the_ascent_rests_on_forget_batches_that_have_reached_the_target(mlp_lab, digest_of):
    splits = mlp_lab.splits()
    wrong = replace(splits, forget=replace(splits.forget, y=(splits.forget.y + 1) % 10))  # its loss is past the target from the start
    held, tuned = (NegGradPlus(NegGradPlus.Parameters(retain_weight=weight, epochs=1, min_steps=0, lr=0.01)) for weight in (0.5, 1.0))

    results = [method.unlearn(mlp_lab.copy(), wrong, mlp_lab.task, mlp_lab.run()) for method in (held, tuned)]

    # only the retain term moves the weights: half of it in one, all of it in the other
    halved = NegGradPlus(NegGradPlus.Parameters(retain_weight=1.0, epochs=1, min_steps=0, lr=0.005)).unlearn(
        mlp_lab.copy(), wrong, mlp_lab.task, mlp_lab.run()
    )
    assert digest_of(results[0]) == digest_of(halved) != digest_of(results[1])


def test_the_anchor_holds_half_the_squared_distance(mlp_lab):
    model = mlp_lab.copy()
    anchor = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        first = next(model.parameters())
        first.view(-1)[:2] += torch.tensor([3.0, 4.0])

    penalty = anchor_penalty(model, anchor, 0.2)
    penalty.backward()

    assert float(penalty.detach()) == pytest.approx(0.2 / 2 * 25)
    assert first.grad.view(-1)[:3].tolist() == pytest.approx([0.6, 0.8, 0.0])
