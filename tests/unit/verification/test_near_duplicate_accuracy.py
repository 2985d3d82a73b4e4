"""Near-duplicates: what the noise is, and that a model which knows the listed records apart is found out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from services.learning.data import Split, by_255
from services.learning.run import Run
from services.verification.evaluation import evaluate
from services.verification.metric import Models
from services.verification.metrics.near_duplicate_accuracy import NearDuplicateAccuracy
from services.verification.reading import Reading, Unmeasured
from services.verification.verdict import IntegrityFacts, judge
from tests.unit.verification.worlds import TASK, split_of, splits_of

torch.set_num_threads(1)
FORGOTTEN = 3


class Nearest(nn.Module):
    """Says the class of the nearest of ten centres; never one of `without`. Records of `listed` are answered as if it were without FORGOTTEN."""

    def __init__(self, centres, without=(), listed=None):
        super().__init__()
        self.centres, self.without, self.listed = centres, list(without), listed

    def forward(self, x):
        z = -torch.cdist(x.flatten(1), self.centres)
        z[:, self.without] = -1e6
        if self.listed is not None:
            known = torch.cdist(x.flatten(1), self.listed, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values < 1e-3
            z[known, FORGOTTEN] = -1e6
        return z


def clusters(prefix, labels, centres, seed):
    x = centres[torch.as_tensor(labels)] + 0.1 * torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    return Split(x, torch.as_tensor(labels, dtype=torch.int64), tuple(f"{prefix}{i:04d}" for i in range(len(labels))))


@pytest.fixture(scope="module")
def world():
    """Ten clusters far apart: the splits of a request for one of them, and the centres."""
    centres = 3 * torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    parts = {"forget": [FORGOTTEN] * 200, "verification": list(range(10)) * 30, "attack": list(range(10)) * 30}
    return centres, splits_of(**{name: clusters(name[0], labels, centres, seed) for seed, (name, labels) in enumerate(parts.items())}, kind="class", classes=(FORGOTTEN,))  # fmt: skip


def metric(**parameters):
    return NearDuplicateAccuracy(NearDuplicateAccuracy.Parameters(**parameters))


def test_it_is_scikit_learns_accuracy_on_the_near_duplicates(world):
    centres, data = world
    model, run = Nearest(centres + 2), Run(seed=5)
    rows = metric(share=0.4).rows(data, run, "forget_train")

    found = metric(share=0.4).measure(Models(model, model), data, TASK, run, split="forget_train")

    said = model(rows.x).argmax(dim=1)
    assert found.value == accuracy_score(rows.y, said)
    assert 0 < found.value < 1
    assert found.n == len(data.forget)


def test_a_model_that_knows_the_listed_records_apart_is_a_leak_here_and_nowhere_else(world):
    centres, data = world
    original, retrained = Nearest(centres), Nearest(centres, [FORGOTTEN])
    detector = Nearest(centres, listed=data.forget.x)
    gate = {"kind": "metric", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True, "parameters": {}}
    facts = IntegrityFacts(
        finite=True, differs_from_parent=True, plan_precedes_run=True, fresh_start=False, forget_read=True, guarantee="approximate"
    )

    def verdict_of(model, *names):
        plan = {"readings": [{**gate, "name": name} for name in names], "seeds": {"evaluate": 9}, "reference": "retrained"}
        return judge(plan, evaluate(plan, Models(original, model, retrained), data, TASK, Run(seed=1)), facts)

    assert verdict_of(detector, "accuracy").verdict == "passed"
    found = verdict_of(detector, "accuracy", "near_duplicate_accuracy")
    assert (found.verdict, found.codes) == ("failed", ("leak",))
    assert [state.state for state in found.states] == ["inside", "outside"]
    assert verdict_of(Nearest(centres, [FORGOTTEN]), "accuracy", "near_duplicate_accuracy").verdict == "passed"


def test_features_move_by_up_to_twice_the_share_of_their_spread():
    x = torch.randn(500, 400, generator=torch.Generator().manual_seed(2)) * 7
    data = splits_of(forget=Split(x, torch.zeros(500, dtype=torch.int64), tuple(f"r{i:03d}" for i in range(500))))

    moved = metric(share=0.05).rows(data, Run(seed=1), "forget_train").x - x

    deviations = moved.std(dim=1) / x.std()
    assert deviations.mean().item() == pytest.approx(0.05, rel=0.1)
    assert deviations.max().item() < 0.115
    assert deviations.min().item() < 0.005


def test_pixels_stay_pixels():
    x = torch.randint(0, 256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    data = splits_of(forget=Split(x, torch.zeros(50, dtype=torch.int64), tuple(f"r{i:03d}" for i in range(50)), by_255))

    rows = metric(share=0.5).rows(data, Run(seed=1), "forget_train")

    assert (rows.x.dtype, rows.x.shape, rows.prepare) == (torch.uint8, x.shape, by_255)
    changed = (rows.x.int() - x.int()).abs()
    assert changed.float().mean() > 10
    assert changed[(x > 100) & (x < 156)].max() > 80  # none went round from 255 to 0
    assert ((x > 200) & (rows.x < 20)).float().mean() < 0.02


def test_of_tokens_a_share_is_replaced_by_those_of_other_records_at_the_same_place():
    x = torch.arange(300)[:, None] * 100 + torch.arange(40)[None]
    data = splits_of(forget=Split(x, torch.zeros(300, dtype=torch.int64), tuple(f"r{i:03d}" for i in range(300))))

    moved = metric(share=0.1).rows(data, Run(seed=1), "forget_train").x

    assert moved.dtype == torch.int64
    assert torch.equal(moved % 100, x % 100)
    assert (moved != x).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_every_model_gets_the_same_ones_another_seed_others_and_their_names_are_not_the_records(world):
    _, data = world
    taken = [metric().rows(data, Run(seed=seed), "forget_train") for seed in (1, 1, 2)]
    shuffled = replace(data, forget=data.forget.take(torch.randperm(200, generator=torch.Generator().manual_seed(4))))

    assert torch.equal(taken[0].x, taken[1].x)
    assert not torch.equal(taken[0].x, taken[2].x)
    assert torch.equal(metric().rows(shuffled, Run(seed=1), "forget_train").x, taken[0].x)
    assert not set(taken[0].ids) & set(data.forget.ids)


def test_the_pair_is_of_the_same_near_duplicates_and_no_records_give_no_number(world):
    centres, data = world
    model, other = Nearest(centres), Nearest(centres, [FORGOTTEN])

    found = metric().difference(Models(model, model), data, TASK, Run(seed=1), split="forget_train", versus=other)

    assert isinstance(found, Reading)
    assert found.value == 1.0
    empty = splits_of(forget=split_of("f", []))
    assert metric().measure(Models(model, model), empty, TASK, Run(seed=1), split="forget_train") == Unmeasured("no_records")
    assert np.isfinite([found.low, found.high]).all()
