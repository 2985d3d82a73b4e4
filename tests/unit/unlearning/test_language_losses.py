"""The losses of language-model unlearning against closed forms, by the numbers of their acceptance tests."""

import copy
import math

import pytest
import torch
from torch.nn.functional import softmax

from services.learning.data import Batch
from services.learning.sequences import sequence_nll
from services.learning.tokens import prompts_of
from services.tenants.policies import DEMO
from services.unlearning.mechanisms.hidden_vectors import answer_distance, random_direction, states_after
from services.unlearning.mechanisms.language_edit import divergence, frozen_copy
from services.unlearning.mechanisms.preference import direct_preference, negative_preference, remembered_likelihood, simple_preference
from services.unlearning.mechanisms.soft_targets import remembered_logits
from services.unlearning.method import METHODS
from services.unlearning.methods.dpo import DirectPreference
from services.unlearning.methods.grad_ascent import GradAscent
from services.unlearning.methods.npo import NegativePreference
from services.unlearning.methods.rmu import RepresentationMisdirection
from services.unlearning.methods.task_vector import subtracted
from services.unlearning.methods.undial import Undial
from tests.unit.unlearning.language_world import Facts, facts

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")
ROWS = torch.arange(8)


@pytest.fixture(scope="module")
def world() -> Facts:
    return facts(people=20, epochs=3)


def gradient(model, loss) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("family", [NegativePreference, DirectPreference])
def test_1_npo_and_dpo_start_at_two_over_beta_ln_two(family, world):
    loss = family(family.Parameters()).forgetting(world.original, world.splits(), world.task, world.run())(ROWS[:4])

    assert float(loss) == pytest.approx(13.86294, abs=1e-4)
    assert negative_preference(torch.zeros(3, dtype=torch.float64), 0.1) == pytest.approx(20 * math.log(2), abs=1e-12)
    assert direct_preference(torch.ones(3), torch.ones(3), 0.1) == pytest.approx(20 * math.log(2), abs=1e-5)


def test_2_the_gradient_of_npo_is_ascents_times_a_weight_that_fades(world):
    model, batch, beta = copy.deepcopy(world.original).double(), world.forget.batch(ROWS[:1]), 0.7
    before = -sequence_nll(model, batch)[0].detach() + 0.3

    def likelihood():
        return -sequence_nll(model, batch)[0].double()

    now = likelihood()
    weight = float(2 * now.exp() ** beta / (now.exp() ** beta + before.exp() ** beta))
    ours = gradient(model, negative_preference(likelihood() - before, beta))
    ascent = gradient(model, likelihood().mean())

    assert torch.allclose(ours, weight * ascent, atol=1e-5)


def test_2_npo_with_beta_towards_zero_is_gradient_ascent(world):
    model, batch = copy.deepcopy(world.original).double(), world.forget.batch(ROWS[:4])
    before = -sequence_nll(model, batch)[0].detach() - 1.0

    ours = gradient(model, negative_preference(-sequence_nll(model, batch)[0].double() - before, 1e-6))
    ascent = gradient(model, -sequence_nll(model, batch)[0].mean())

    assert torch.allclose(ours, ascent, atol=1e-5)


def test_3_simnpo_by_hand_on_three_tokens():
    nll = torch.tensor([0.5 + 1.0 + 1.5])

    loss = simple_preference(nll, torch.tensor([3]), beta=4.5, delta=0.25)

    by_hand = -(2 / 4.5) * math.log(1 / (1 + math.exp(-4.5 * (1.0 - 0.25))))
    assert float(loss) == pytest.approx(by_hand, abs=1e-6)


def test_4_rmu_is_zero_where_the_states_are_the_direction_and_at_the_start(world):
    batch = world.forget.batch(ROWS[:4])
    direction = 2 * random_direction(64, torch.Generator().manual_seed(1))
    states = direction.expand(4, batch.x.shape[1], 64)
    method = RepresentationMisdirection(RepresentationMisdirection.Parameters(rmu_layer=0))

    keeping = method.keeping(world.original, world.splits(), world.task, world.run())

    assert float(answer_distance(states[:, : int((batch.y != -100).any(0).nonzero()[-1]) + 1], direction, batch)) == 0
    assert float(keeping(world.retain.batch(ROWS))) == 0
    assert random_direction(64, torch.Generator()).norm() == pytest.approx(1)


def test_4_the_mean_over_tokens_is_each_records_own():
    y = torch.tensor([[-100, 5, -100, -100], [-100, 5, 6, 7]])
    states = torch.zeros(2, 4, 3)
    states[0] += 1.0
    states[1] += 2.0

    assert float(answer_distance(states, torch.zeros(3), Batch(y.clamp(min=0), y))) == pytest.approx((1 + 4) / 2)


def test_4_blocks_above_the_steered_one_are_not_run(world):
    model = frozen_copy(world.original)
    ran = []
    model.blocks[1].register_forward_hook(lambda *_: ran.append(1))

    states = states_after(model, 0, world.retain.batch(ROWS))

    assert ran == []
    assert states.shape[0] == len(ROWS)


def test_5_undial_without_lowering_asks_for_no_change(world):
    model = world.copy()
    loss = Undial(Undial.Parameters(beta=0.0)).forgetting(model, world.splits(), world.task, world.run())(ROWS[:4])

    assert gradient(model, loss).abs().max() <= 1e-6


def test_5_undial_lowers_the_memorised_token(world):
    model = world.copy()
    loss = Undial(Undial.Parameters(beta=10.0)).forgetting(model, world.splits(), world.task, world.run())(ROWS[:4])

    assert gradient(model, loss).abs().max() > 1e-4


def test_6_a_task_vector_of_no_weight_or_of_no_change_is_the_identity(world):
    state = world.original.state_dict()
    other = {name: value + 1 for name, value in state.items()}

    assert all(torch.equal(value, state[name]) for name, value in subtracted(state, other, 0.0).items())
    assert all(torch.equal(value, state[name]) for name, value in subtracted(state, state, 1.0).items())
    assert all(torch.allclose(value, state[name] - 0.5) for name, value in subtracted(state, other, 0.5).items())


def test_11_remembered_likelihoods_are_the_live_ones(world):
    cached = remembered_likelihood(world.original, world.forget, world.run())

    live = torch.cat([-sequence_nll(world.original, world.forget.batch(ROWS[row : row + 1]))[0] for row in range(3)])
    assert torch.allclose(cached[:3], live, atol=1e-5)


def test_11_remembered_logits_are_the_live_ones_also_after_the_model_moved(world):
    model, rows = world.copy(), torch.tensor([3, 0, 2])
    kept, live = (remembered_logits(model, world.forget, world.run(), room_bytes=room) for room in (2**28, 0))
    with torch.no_grad():
        model.head.weight += 1

    (found, tokens), (wanted, same) = kept(rows), live(rows)

    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.equal(tokens, same)


def test_13_prompt_tokens_contribute_no_gradient(world):
    model, batch = world.copy(), world.forget.batch(ROWS[:4])
    seen = []
    model.head.register_forward_hook(lambda _, __, output: (output.retain_grad(), seen.append(output))[0])

    world.task.loss(model, batch).backward()

    gradients = seen[0].grad.abs().sum(-1)
    learned = torch.zeros_like(gradients, dtype=torch.bool)
    learned[:, :-1] = batch.y[:, 1 : gradients.shape[1]] != -100
    assert bool((gradients[~learned] == 0).all())
    assert bool((gradients[learned] > 0).all())


@pytest.mark.parametrize("family", [NegativePreference, DirectPreference, Undial, RepresentationMisdirection])
def test_13_prompt_tokens_contribute_no_gradient_to_any_forget_loss(family, world):
    chosen = {"rmu_layer": 0} if family is RepresentationMisdirection else {}
    model, lengths = world.copy(), [len(prompt) for prompt in prompts_of(world.forget)][:4]
    loss_of, seen = family(family.Parameters(**chosen)).forgetting(model, world.splits(), world.task, world.run()), []
    read = model.blocks[0] if chosen else model.head

    def watched(_, __, output):
        seen.append(output[0] if chosen else output)  # a block returns what it remembers of the tokens beside their vectors
        seen[-1].retain_grad()

    read.register_forward_hook(watched)
    loss_of(ROWS[:4]).backward()

    first = 0 if chosen else -1  # a token's own vector is steered; of its logits those of the token before count
    assert len(seen) == (2 if family is DirectPreference else 1)
    for output in seen:
        touched = output.grad.abs().sum(-1) > 0
        assert not any(bool(touched[row, : length + first].any()) for row, length in enumerate(lengths))
        assert all(bool(touched[row, length + first]) for row, length in enumerate(lengths))


def test_the_divergence_from_the_original_is_zero_at_the_start_and_never_below(world):
    model, batch = world.copy(), world.retain.batch(ROWS)
    assert float(divergence(frozen_copy(model), model, batch).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        model.head.weight += 0.1 * torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0))

    before = softmax(world.original(batch.x)[0, 2].double(), -1)
    after = softmax(model(batch.x)[0, 2].double(), -1)
    single = Batch(batch.x[:1], torch.full_like(batch.y[:1], -100).index_copy(1, torch.tensor([3]), batch.x[:1, 3:4]))
    assert float(divergence(world.original, model, single).detach()) == pytest.approx(float((before * (before / after).log()).sum()), rel=1e-3)


def test_gradient_ascent_is_minus_the_loss(world):
    loss = GradAscent(GradAscent.Parameters()).forgetting(world.original, world.splits(), world.task, world.run())(ROWS[:4])

    assert float(loss) == pytest.approx(-float(world.task.loss(world.original, world.forget.batch(ROWS[:4]))))


FORTY_TOKENS, KNOWN_NATS, FORGOTTEN_NATS = 40, 0.1, 4.0
"""An answer spelled in bytes, its loss per token when known, and when nearly forgotten: a probability of 0.02."""


@pytest.mark.parametrize("name", ["npo", "simnpo"])
def test_the_demos_steps_still_push_where_the_published_ones_have_faded(name):
    rung = next(rung for rung in DEMO.ladder if rung.method == name)

    def force(beta: float, delta: float, nats: float) -> float:
        """Return how hard the loss per token is pushed up."""
        nll = torch.tensor([nats], dtype=torch.float64, requires_grad=True)
        if name == "npo":
            negative_preference(-nll * FORTY_TOKENS, beta).backward()
        else:
            simple_preference(nll * FORTY_TOKENS, torch.tensor([FORTY_TOKENS]), beta, delta).backward()
        return -float(nll.grad)

    published = METHODS[name].Parameters()
    ours = METHODS[name].Parameters.model_validate(rung.parameters)
    faded, held = (
        force(p.beta, getattr(p, "delta", 0.0), FORGOTTEN_NATS) / force(p.beta, getattr(p, "delta", 0.0), KNOWN_NATS) for p in (published, ours)
    )
    assert faded < 1e-6
    assert held > 1e-4
