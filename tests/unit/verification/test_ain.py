"""The anamnesis index: 1 for equal models whatever the order of calls, bounds where a run was cut off, null where it says nothing."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from services.learning.architectures.mlp import MLP
from services.learning.data import Split
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.verification.metric import Models
from services.verification.metrics.ain import AnamnesisIndex
from services.verification.metrics.ain_fresh import FreshAnamnesisIndex
from services.verification.reading import Reading, Unmeasured
from services.verification.relearning import Relearned, anamnesis
from tests.unit.verification.worlds import splits_of

torch.set_num_threads(1)

TASK = Classification(3)
ARCHITECTURE = MLP(MLP.Parameters(inputs=6, outputs=3, hidden=(16,), dropout=0.1, input_norm="batch"))


def blobs():
    """Return three clouds of 60 records; class 0 is the one to be forgotten."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(60)
    x = torch.randn(180, 6, generator=generator) + 4.0 * torch.eye(3, 6)[y]
    everything = Split(x, y, tuple(f"b{i:04d}" for i in range(180)))
    held_out, whole = everything.take(torch.arange(0, 180, 3)), everything.take(torch.tensor([i for i in range(180) if i % 3]))
    parts = [whole.with_labels((0,), keep=keep) for keep in (True, False)]
    return splits_of(forget=parts[0], retain=parts[1], verification=held_out, kind="class", classes=(0,)), whole


def trained(split, seed):
    run = Run(seed=seed, architecture=ARCHITECTURE)
    model = run.fresh_model("weights")
    fit(model, split, TASK, Recipe(epochs=20, learning_rate=5e-3, batch_size=32), run)
    return model.eval()


@pytest.fixture(scope="module")
def world():
    data, whole = blobs()
    return data, Models(trained(whole, 1), trained(data.retain, 2), trained(data.retain, 3))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def taken(models, data, *, family=AnamnesisIndex, seed=5, **more):
    metric = family(family.Parameters(**{"batch_size": 64, "learning_rate": 0.01, "steps": 100, **more}))
    return metric.measure(models, data, TASK, Run(seed=seed, architecture=ARCHITECTURE), split="forget_train")


def test_9_ain_of_the_retrained_model_and_itself_is_exactly_one(world):
    data, models = world

    same = taken(models.judged_as(models.retrained), data)
    twin = taken(models.judged_as(copy.deepcopy(models.retrained)), data)

    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    assert twin == same
    assert same.detail["per_seed"] == [1.0] * 5
    assert same.detail["log_interval"] == [0.0, 0.0]


def test_9_inputs_are_unchanged_and_three_calls_agree_in_any_order(world):
    data, models = world
    subjects = {"original": models.original, "unlearned": models.unlearned, "retrained": models.retrained}
    before = {name: state(model) for name, model in subjects.items()}
    found = [{name: taken(models.judged_as(subjects[name]), data, seeds=3) for name in order} for order in itertools.permutations(subjects)]

    assert all(one == found[0] for one in found)
    assert all(torch.equal(value, subjects[name].state_dict()[key]) for name, held in before.items() for key, value in held.items())


def test_9_a_model_at_the_bar_has_zero_without_a_log_interval(world):
    data, models = world

    found = taken(models.judged_as(models.original), data)

    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.detail["log_interval"] is None


def test_9_a_bar_that_is_never_reached_is_censored_and_the_index_a_bound(world):
    data, models = world
    deaf = copy.deepcopy(models.retrained)
    with torch.no_grad():
        deaf.head.bias[0] = -1000.0

    below, above = taken(models.judged_as(deaf), data, steps=40), taken(Models(models.original, models.unlearned, deaf), data, steps=40)

    assert (below.detail["bound"], above.detail["bound"]) == ("lower", "upper")
    assert below.value > 1 > above.value
    assert below.detail["censored"]["subject"] == [True] * 5
    assert taken(Models(models.original, deaf, deaf), data, steps=5) == Unmeasured("both_censored")


def test_an_index_without_meaning_is_null_with_the_reason(world):
    data, models = world
    knowing = Models(models.original, models.unlearned, models.original)

    assert taken(knowing, data) == Unmeasured("reference_at_the_bar_from_the_start")
    assert taken(knowing.judged_as(models.original), data) == Unmeasured("both_at_the_bar_from_the_start")
    assert taken(Models(models.original, models.unlearned), data) == Unmeasured("no_retrained_reference")


def test_the_seeds_of_the_evaluation_decide_and_relearn_data_are_named(world):
    data, models = world

    first, other = (taken(models, data, seed=seed) for seed in (5, 6))
    forget = taken(models, data, train_data="forget")

    assert first.detail["steps"] != other.detail["steps"]
    assert (first.detail["train_data"], forget.detail["train_data"]) == ("all", "forget")
    assert first.detail["range"] == [min(first.detail["per_seed"]), max(first.detail["per_seed"])]
    assert first.value == np.median(first.detail["per_seed"])


def test_the_index_without_a_retrained_model_has_another_name(world):
    data, models = world
    alone = Models(models.original, models.unlearned)

    found = taken(alone, data, family=FreshAnamnesisIndex)
    fresh = Run(seed=5, architecture=ARCHITECTURE).fresh_model("ain_fresh")

    assert FreshAnamnesisIndex.name == "ain_fresh"
    assert isinstance(found, Reading)
    assert taken(alone.judged_as(fresh), data, family=FreshAnamnesisIndex).value == 1.0
    metric = FreshAnamnesisIndex(FreshAnamnesisIndex.Parameters())
    assert metric.measure(alone, data, TASK, Run(seed=5), split="forget_train") == Unmeasured("no_architecture")


def runs(*steps, censored=()):
    return [Relearned(count, censored=k in censored, course=(0.0,)) for k, count in enumerate(steps)]


def index(mine, theirs):
    return anamnesis(mine, theirs, level=0.9, n=10, rng=np.random.default_rng(0))


def test_arithmetic_of_the_index_by_hand():
    plain = index(runs(10, 20, 30), runs(20, 20, 20))
    coarse = index(runs(1, 2, 2), runs(2, 2, 2))

    assert plain.value == 1.0
    assert plain.detail["per_seed"] == [0.5, 1.0, 1.5]
    assert plain.detail["bound"] is None
    assert plain.low == pytest.approx(math.exp(plain.detail["log_interval"][0]))
    assert (plain.detail["coarse"], coarse.detail["coarse"]) == (False, True)
    assert index(runs(9, 9, 9, censored={1}), runs(3, 3, 3)).detail["bound"] == "lower"
    assert index(runs(3, 3, 3), runs(9, 9, 9, censored={0})).detail["bound"] == "upper"
    assert index(runs(9, 3, 3, censored={0}), runs(9, 9, 3, censored={1})) == Unmeasured("both_censored")
    assert index(runs(0, 0, 0), runs(0, 0, 0)) == Unmeasured("both_at_the_bar_from_the_start")


def test_at_least_three_seeds_are_asked_for():
    with pytest.raises(ValueError, match="seeds"):
        AnamnesisIndex.Parameters(seeds=2)
    assert AnamnesisIndex.Parameters().seeds == 5
