"""The numbered acceptance test of the method: exactly the least salient share of each convolution is drawn anew, and nothing else."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from services.errors import MethodNotApplicable
from services.unlearning.mechanisms.convolutions import contrast_gradients, kernels, redraw, smallest, transposed
from services.unlearning.mechanisms.descent import Plan, descend
from services.unlearning.mechanisms.guard import Guard
from services.unlearning.methods.msg import Msg, warm_up_and_anneal

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["class", "records"])
@pytest.mark.parametrize("share", [0.3, 0.0, 1.0])
def test_1_exactly_the_share_of_each_convolution_is_redrawn_and_nothing_else(kind, share, cnn_lab):
    model, run = cnn_lab.copy(), cnn_lab.run()

    masks = Msg(Msg.Parameters(reinit=share)).reinitialise(model, cnn_lab.splits(kind), cnn_lab.task, run)

    before = cnn_lab.original.state_dict()
    assert set(masks) == {"features.0.weight", "features.4.weight", "features.8.weight"}
    for name, tensor in model.state_dict().items():
        changed = tensor != before[name]
        if name in masks:
            assert torch.equal(changed, masks[name])  # no fresh draw happens to equal the old weight
            assert abs(int(changed.sum()) - share * tensor.numel()) <= 1
            assert run.notes["reinitialised"][name] == int(changed.sum())
        else:
            assert not bool(changed.any()), name


def test_1_the_redrawn_weights_are_those_of_least_contrast(cnn_lab):
    splits, model = cnn_lab.splits(), cnn_lab.copy().eval()
    retain = splits.retain.sample(len(splits.forget), cnn_lab.run().stream("contrast"))
    every = torch.arange(len(retain))
    loss = cross_entropy(model(retain.batch(every).x), retain.y) - cross_entropy(model(splits.forget.batch(every).x), splits.forget.y)
    loss.backward()

    masks = Msg(Msg.Parameters()).reinitialise(cnn_lab.copy(), splits, cnn_lab.task, cnn_lab.run())

    for name, mask in masks.items():
        salience = model.get_parameter(name).grad.abs()
        assert float(salience[mask].max()) <= float(salience[~mask].min()) + 1e-7


def test_contrast_gradients_ignore_the_batch_size_and_change_nothing(cnn_lab, digest_of):
    splits, model = cnn_lab.splits(), cnn_lab.copy().train()
    before = digest_of(model)
    retain, names = splits.retain.take(torch.arange(100)), list(kernels(model))

    whole, pieces = (contrast_gradients(model, names, retain, splits.forget, cnn_lab.task, batch_size=size) for size in (1000, 7))

    assert all(torch.allclose(whole[name], pieces[name], atol=1e-5, rtol=1e-4) for name in names)
    assert digest_of(model) == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_redrawn_kernels_have_kaimings_variance_and_ties_fall_to_the_first():
    weight = torch.zeros(64, 32, 3, 3)
    redraw(weight, torch.ones_like(weight, dtype=torch.bool), torch.Generator().manual_seed(0))

    assert float(weight.var()) == pytest.approx(2 / (32 * 9), rel=0.03)  # 18,432 draws: 3 % is about three standard errors
    assert smallest(torch.zeros(2, 5), 0.3).tolist() == [[True, True, True, False, False], [False] * 5]
    assert smallest(torch.tensor([3.0, -1.0, 2.0, -4.0]), 0.5).tolist() == [False, True, True, False]


def test_a_transposed_convolution_is_counted_and_scaled_by_its_own_fan_in():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Conv1d(2, 2, 3))

    assert list(kernels(model)) == ["0.weight", "1.weight", "2.weight"]
    assert transposed(model) == {"1.weight"}


def test_other_weights_move_a_tenth_as_fast_as_redrawn_ones(cnn_lab, monkeypatch):
    """One step without momentum's past or decay to speak of: the move is the gradient times the rate times the factor. One step repairs nothing."""
    monkeypatch.setattr(Guard, "check", lambda *_: 0.0)
    moved = {}
    for scale in (1.0, 0.1):
        method = Msg(Msg.Parameters.model_construct(reinit=0.3, other_scale=scale, epochs=1, batch_size=2000, min_steps=0))
        model, run, splits = cnn_lab.copy(), cnn_lab.run(), cnn_lab.splits()
        start = copy.deepcopy(model)
        masks = method.reinitialise(start, splits, cnn_lab.task, run)
        method.unlearn(model, splits, cnn_lab.task, run)
        assert run.notes["steps"] == {"fine_tune": 1}
        decay = 1e-3 * 5e-4
        moved[scale] = {name: new.detach() - (1 - decay) * start.get_parameter(name).detach() for name, new in model.named_parameters()}

    for name, fast in moved[1.0].items():
        slow = moved[0.1][name]
        mask = masks.get(name, torch.zeros_like(fast, dtype=torch.bool))
        assert torch.allclose(slow[mask], fast[mask], atol=1e-7)
        assert torch.allclose(slow[~mask], 0.1 * fast[~mask], atol=1e-7)
    assert float(moved[1.0]["head.weight"].abs().max()) > 1e-6


def test_the_rate_rises_in_a_line_over_a_fifth_and_then_only_falls():
    rates = [warm_up_and_anneal(step, 100) for step in range(1, 101)]

    assert rates[:20] == pytest.approx([step / 20 for step in range(1, 21)])
    assert all(later < sooner for sooner, later in pairwise(rates[19:]))
    assert 0 < rates[-1] < 0.001
    assert warm_up_and_anneal(1, 1) == 1.0


def test_digits_keep_the_rest_and_the_plan_is_told(cnn_lab):
    splits, run = cnn_lab.splits(), cnn_lab.run()

    model = Msg(Msg.Parameters(lr=0.05)).unlearn(cnn_lab.copy(), splits, cnn_lab.task, run)

    forget, _, retain_test = cnn_lab.scores(model, splits)
    before = cnn_lab.scores(cnn_lab.original, splits)
    assert retain_test > before[2] - 0.03
    assert forget < before[0]
    assert run.notes["effective"] == {"rows": 1076, "batch_size": 32, "epochs": 5, "steps": 170}
    assert all(not parameter._backward_hooks for parameter in model.parameters())


def test_a_network_without_convolutions_is_refused(mlp_lab):
    with pytest.raises(MethodNotApplicable, match="no convolution"):
        Msg(Msg.Parameters()).unlearn(mlp_lab.copy(), mlp_lab.splits(), mlp_lab.task, mlp_lab.run())


def test_descent_takes_another_optimiser_and_a_rate(mlp_lab):
    model, run = mlp_lab.copy(), mlp_lab.run()
    guard = Guard.around("msg", model, mlp_lab.train, mlp_lab.task, run, factor=10)
    made: list[torch.optim.SGD] = []
    rates: list[float] = []

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=0.0))
        return made[0]

    def look(_: int) -> None:
        rates.append(made[0].param_groups[0]["lr"])

    descend(
        model, Plan(10, 4, 1), lambda rows: mlp_lab.task.loss(model, mlp_lab.train.batch(rows)), run, guard,
        stage="s", lr=0.4, generator=run.stream("s"), after_step=look, optimizer_of=sgd, rate=lambda step, of: step / of,
    )  # fmt: skip

    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4])
    assert len(made[0].param_groups[0]["params"]) == 6
