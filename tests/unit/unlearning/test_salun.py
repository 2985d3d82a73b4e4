"""The acceptance tests of the method: masked weights to the last bit, and random labels where nothing is masked."""

import pytest
import torch

from services.learning.run import Run
from services.unlearning.mechanisms.saliency import MaskedSGD, salient
from services.unlearning.methods.amnesiac import Amnesiac
from services.unlearning.methods.salun import Salun

torch.set_num_threads(1)


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_1_masked_weights_are_bit_identical_under_weight_decay_and_momentum(lab, request):
    lab = request.getfixturevalue(lab)
    splits = lab.splits()
    masks = salient(lab.copy(), splits.forget, lab.task, Run(seed=0), keep=0.5, batch_size=256)

    parameters = Salun.Parameters(weight_decay=0.1, momentum=0.9, epochs=3, min_steps=0)
    model = Salun(parameters).unlearn(lab.copy(), splits, lab.task, lab.run())

    pairs = [(after, before, mask) for after, before, mask in zip(model.parameters(), lab.original.parameters(), masks, strict=True)]
    assert all(torch.equal(after[~mask], before[~mask]) for after, before, mask in pairs)
    moved = sum(int((after != before).sum()) for after, before, _ in pairs)
    assert moved > 0.9 * sum(int(mask.sum()) for mask in masks)


def test_1_masked_weights_keep_no_momentum():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = MaskedSGD([weight], [torch.tensor([True, False, True, False])], lr=0.1, momentum=0.9, weight_decay=0.5)

    for _ in range(3):
        weight.grad = torch.ones(4)
        optimizer.step()

    assert weight.detach()[[1, 3]].tolist() == [1.0, 1.0]
    assert float(weight.detach()[[0, 2]].max()) < 0.8
    assert optimizer.state[weight]["momentum_buffer"][[1, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_2_with_every_weight_kept_it_equals_random_labels(lab, request, digest_of):
    lab = request.getfixturevalue(lab)
    splits = lab.splits()
    relabel = Amnesiac(Amnesiac.Parameters(order="forget_first", epochs=2, min_steps=0))
    everything = Salun(Salun.Parameters(keep=1.0, epochs=2, min_steps=0))

    digests = [digest_of(method.unlearn(lab.copy(), splits, lab.task, lab.run())) for method in (relabel, everything)]

    assert digests[0] == digests[1] != digest_of(lab.original)


def test_the_mask_takes_the_share_with_the_largest_summed_gradients(mlp_lab):
    model, forget = mlp_lab.copy(), mlp_lab.splits().forget
    masks = salient(model, forget, mlp_lab.task, Run(seed=0), keep=0.1, batch_size=50)

    total = [torch.zeros_like(each) for each in model.parameters()]
    for batch in forget.batches(50):
        for held, gradient in zip(total, torch.autograd.grad(mlp_lab.task.loss(model, batch), list(model.parameters())), strict=True):
            held.add_(gradient)

    chosen = torch.cat([mask.flatten() for mask in masks])
    size = torch.cat([each.flatten() for each in total]).abs()
    assert int(chosen.sum()) == round(0.1 * len(chosen))
    assert float(size[chosen].min()) >= float(size[~chosen].max())


@pytest.mark.parametrize("lab", ["mlp_lab", "cnn_lab"])
def test_a_digit_is_forgotten_and_the_others_are_kept(lab, request):
    lab = request.getfixturevalue(lab)
    splits, run = lab.splits(), lab.run()
    before = lab.scores(lab.original, splits)

    model = Salun(Salun.Parameters()).unlearn(lab.copy(), splits, lab.task, run)

    forget, forget_test, retain_test = lab.scores(model, splits)
    assert max(forget, forget_test) <= 0.01
    assert retain_test >= before[2] - 0.02
    assert "3" not in run.notes["relabelled_to"]
