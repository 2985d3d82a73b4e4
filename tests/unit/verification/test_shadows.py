"""Reference models and the attacks that use them, on a network that has learned its noisy labels by heart."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from services.learning.architectures.mlp import MLP
from services.learning.cache import NoCache, Remembering
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.learning.training import fit
from services.verification import evaluation
from services.verification.attacks.lira import LikelihoodRatio
from services.verification.attacks.rmia import RelativeMembership
from services.verification.metric import Models
from services.verification.outputs import joined
from services.verification.reading import Reading, Unmeasured
from services.verification.shadows import margins_on, shadows

TASK = Classification(2)
NET = MLP(MLP.Parameters(outputs=2, inputs=20, hidden=(64,)))
RECIPE = Recipe(epochs=40, learning_rate=1e-2, batch_size=64)
SHARED = Remembering(NoCache())


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@cache
def noisy() -> Splits:
    """600 records of two classes, a third of the labels turned: what a network says of a turned one shows whether it learned from it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 20))
    y = (x[:, 0] > 0) ^ (rng.random(900) < 0.33)
    rows = Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.int64), tuple(f"n{i:03d}" for i in range(900)))
    parts = [rows.take(torch.arange(a, b)) for a, b in ((0, 100), (100, 500), (500, 550), (550, 700), (700, 900))]
    return Splits(*parts)


def run_of(**more) -> Run:
    return Run(seed=3, architecture=NET, recipe=RECIPE, **more)


@cache
def models() -> Models:
    def trained(rows, seed):
        run = Run(seed=seed, architecture=NET, recipe=RECIPE)
        model = run.fresh_model("weights")
        fit(model, rows, TASK, RECIPE, run)
        return model.eval()

    data = noisy()
    original = trained(joined(data.forget, data.retain), 1)
    return Models(original, original, trained(data.retain, 2))


def test_every_record_has_models_that_learned_from_it_and_models_that_did_not():
    data = noisy()

    found = shadows(data, TASK, run_of(), models=4)

    pool, population = joined(joined(data.forget, data.retain), data.attack), data.verification
    assert set(found.on(pool)[1].sum(axis=0).tolist()) == {2}
    assert not found.on(population)[1].any()
    assert found.phi.shape == (4, 850)


def test_models_are_surer_of_what_they_learned_from():
    found = shadows(noisy(), TASK, run_of(), models=4)

    phi, keep = found.on(noisy().attack)

    assert np.median(phi[keep]) > np.median(phi[~keep]) + 1


def test_margins_stand_in_the_order_of_the_record_ids_whatever_the_order_of_the_rows():
    rows = noisy().attack
    turned = rows.take(torch.arange(len(rows) - 1, -1, -1))

    np.testing.assert_array_equal(margins_on(models().original, rows, TASK), margins_on(models().original, turned, TASK))


def test_equal_seeds_train_equal_reference_models():
    first, second = (shadows(noisy(), TASK, run_of(), models=2) for _ in range(2))

    np.testing.assert_array_equal(first.phi, second.phi)


@pytest.mark.parametrize(("attack", "parameters"), [(LikelihoodRatio, {}), (RelativeMembership, {}), (RelativeMembership, {"references": "online"})])
def test_a_model_that_learned_the_records_by_heart_is_caught_and_a_retrained_one_is_not(attack, parameters):
    judge, run = attack(attack.Parameters(models=8, **parameters)), run_of(cache=SHARED)

    caught = judge.measure(models(), noisy(), TASK, run, split="forget_train")
    honest = judge.measure(models().judged_as(models().retrained), noisy(), TASK, run, split="forget_train")
    difference = judge.difference(models(), noisy(), TASK, run, split="forget_train", versus=models().retrained)

    assert caught.low > 0.6
    assert honest.low < 0.5 < honest.high
    assert difference.low > 0.1


def test_requests_on_the_same_records_share_reference_models_whatever_they_forget_and_whatever_their_seed():
    trained: list[str] = []
    data, cache = noisy(), Remembering(NoCache())
    whole = joined(data.forget, data.retain)
    other = dataclasses.replace(
        data, forget=whole.take(torch.arange(300, 400)), retain=whole.take(torch.cat([torch.arange(300), torch.arange(400, 500)]))
    )
    nobody = dataclasses.replace(data, forget=whole.take(torch.arange(0)), retain=whole)

    def asked(splits, seed, shadow_seed):
        run = Run(
            seed=seed, architecture=NET, recipe=RECIPE, cache=cache, on_progress=lambda progress: trained.append(progress.stage), report_every_s=0.0
        )
        run.shadow_seed = shadow_seed
        return shadows(splits, TASK, run, models=2)

    ahead = asked(nobody, 1, 77)
    after_first = len(trained)
    found = [asked(data, 2, 77), asked(other, 3, 77)]
    shared = len(trained)
    asked(data, 2, None)

    assert shared == after_first > 0
    assert len(trained) > shared
    for each in found:
        np.testing.assert_array_equal(each.phi, ahead.phi)
        np.testing.assert_array_equal(each.keep, ahead.keep)


def test_readings_of_one_evaluation_train_the_reference_models_once():
    stages: list[str] = []
    run = run_of(on_progress=lambda progress: stages.append(progress.stage), report_every_s=0.0)
    readings = [{"kind": "attack", "name": name, "split": "forget_train", "gate": False, "parameters": {"models": 2}} for name in ("lira", "rmia")]
    plan = {"reference": "retrained", "level": 0.9, "alpha": 0.05, "readings": readings, "seeds": {"evaluate": 5}}

    found = evaluation.evaluate(plan, models(), noisy(), TASK, run)

    steps = 40 * -(-350 // 64)
    assert all(isinstance(reading.after, Reading) for reading in found)
    assert stages.count("shadow/0") <= steps + 40
    assert stages.count("shadow/0") >= 40


@pytest.mark.parametrize(
    ("run", "data", "reason"),
    [
        (Run(seed=1, architecture=NET), noisy(), "no_recipe"),
        (Run(seed=1, recipe=RECIPE), noisy(), "no_architecture"),
        (run_of(), dataclasses.replace(noisy(), retain=noisy().retain.take(torch.arange(0))), "no_training_data_held"),
    ],
)
def test_without_what_training_needs_there_is_a_reason_and_no_number(run, data, reason):
    assert shadows(data, TASK, run, models=2) == Unmeasured(reason)
