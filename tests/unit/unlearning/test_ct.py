"""The numbered acceptance tests of the method: swapping twice is no swap, and kernels of one by one stay."""

import pytest
import torch
from torch import nn

from services.errors import MethodNotApplicable
from services.unlearning.methods.ct import Ct, swap_axes

torch.set_num_threads(1)


class Kernels(nn.Module):
    """A square kernel, one of one by one, a wide one, one in a line, a transposed one, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Conv2d(2, 3, 3)
        self.point = nn.Conv2d(3, 3, 1)
        self.wide = nn.Conv2d(3, 3, (1, 3))
        self.line = nn.Conv1d(3, 3, 3)
        self.turned = nn.ConvTranspose2d(3, 2, 3)
        self.linear = nn.Linear(3, 3)


def kernels() -> Kernels:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Kernels()


def test_1_the_swap_applied_twice_is_the_identity(cnn_lab, digest_of):
    for model in (kernels(), cnn_lab.copy()):
        before = digest_of(model)

        swap_axes(model)
        assert digest_of(model) != before
        swap_axes(model)

        assert digest_of(model) == before


def test_1_kernels_of_one_by_one_and_everything_but_square_kernels_are_unchanged():
    model = kernels()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    changed = swap_axes(model)

    for name, tensor in model.state_dict().items():
        if name in {"square.weight", "turned.weight"}:
            assert torch.equal(tensor, before[name].transpose(2, 3))
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name]), name
    assert changed == 2


def test_the_swap_turns_the_answer_of_a_convolution_as_it_turns_the_image():
    model, image = kernels(), torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        upright = model.square(image)
        swap_axes(model)
        turned = model.square(image.transpose(2, 3))

    assert torch.allclose(turned, upright.transpose(2, 3), atol=1e-6)


def test_digits_are_learned_again_from_the_retain_set_alone(cnn_lab):
    splits, run = cnn_lab.splits(), cnn_lab.run()

    model = Ct(Ct.Parameters(lr=0.01)).unlearn(cnn_lab.copy(), cnn_lab.without_forget(), cnn_lab.task, run)

    forget, _, retain_test = cnn_lab.scores(model, splits)
    assert retain_test > cnn_lab.scores(cnn_lab.original, splits)[2] - 0.05
    assert forget < 0.5
    assert run.notes["kernels_transposed"] == 3
    assert run.notes["effective"] == {"rows": 1076, "batch_size": 32, "epochs": 5, "steps": 170}


def test_a_network_without_kernels_to_swap_is_refused(mlp_lab):
    with pytest.raises(MethodNotApplicable, match="no convolution kernel"):
        Ct(Ct.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.splits(), mlp_lab.task, mlp_lab.run())
