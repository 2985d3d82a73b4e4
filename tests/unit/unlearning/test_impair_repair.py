"""Which pass of a repair is kept, what a class may still have on few held-out records, and which pair of rates is chosen."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from services.unlearning.mechanisms.descent import Plan
from services.unlearning.mechanisms.guard import Guard
from services.unlearning.mechanisms.impair_repair import ImpairRepair, Outcome, probability_target, sweep
from services.unlearning.mechanisms.noise import Noise, VirtualList
from services.unlearning.methods.unsir import Unsir

torch.set_num_threads(1)

KEPT = Outcome(0.005, 0.002, 40, 0.0, 0.01, 0.97, 0.02, target_met=True, floor_met=True)


def test_fewer_than_100_held_out_records_are_held_to_a_lower_probability():
    assert [probability_target(rows) for rows in (100, 5000)] == [0.05, 0.05]
    assert probability_target(9) == pytest.approx(0.015)  # 0.05 * sqrt(9 / 100)
    assert probability_target(0) == 0.0


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (replace(KEPT, retain_loss=0.03), KEPT),  # both met: the least loss on retain records
        (replace(KEPT, retain_loss=0.001, target_met=False), KEPT),  # the class came back in a pass that lost less
        (replace(KEPT, retain_loss=0.001, floor_met=False), KEPT),
        (replace(KEPT, retain_loss=0.001, target_met=False), replace(KEPT, floor_met=False)),
    ],
)
def test_a_pass_that_forgot_goes_before_one_that_lost_less(worse, better):
    assert better.order > worse.order


class Scripted(ImpairRepair):
    """Measures of a model whose head's first bias is raised by one before each look: what stands in `script` for that look."""

    script: Iterator[tuple[bool, float]]

    def _measured(self, lr_impair: float, lr_repair: float, step: int) -> Outcome:
        with torch.no_grad():
            self.model.head.bias[0] = float(step)
        target_met, loss = next(self.script)
        return Outcome(lr_impair, lr_repair, step, 0.0, 0.0, 1.0, loss, target_met, floor_met=True)


def scripted(lab, script: list[tuple[bool, float]]) -> Scripted:
    model, run = lab.copy(), lab.run()
    retain = lab.splits().retain.take(torch.arange(64))
    noise = Noise(torch.zeros(8, 1, 8, 8), torch.full((8,), 3), torch.zeros(1, 1))
    guard = Guard.around("unsir", model, retain, lab.task, run, factor=100.0)
    stages = Scripted(model, VirtualList(noise, 1, retain), lab.without_forget(), lab.task, run, guard)
    stages.script = iter(script)
    return stages


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ([(True, 0.3), (True, 0.1), (True, 0.2), (True, 0.4)], 2),  # the loss jumps up again
        ([(True, 0.3), (True, 0.2), (False, 0.1), (False, 0.05)], 2),  # the class comes back
        ([(False, 0.3), (False, 0.2), (False, 0.3), (False, 0.1)], 4),  # never forgotten: what lost least
    ],
)
def test_the_model_is_left_as_after_the_pass_that_is_kept(script, kept, mlp_lab):
    stages = scripted(mlp_lab, script)

    outcome = stages.attempt(Plan(72, 36, 1), Plan(64, 32, 4), 1e-6, 1e-6)

    assert outcome.step == 2 * kept
    assert stages.model.head.bias[0].item() == outcome.step


def test_one_pass_or_none_is_measured_at_its_end(mlp_lab):
    assert scripted(mlp_lab, [(True, 0.1)]).attempt(Plan(72, 36, 1), Plan(64, 32, 1), 1e-6, 1e-6).step == 2
    assert scripted(mlp_lab, [(True, 0.1)]).attempt(Plan(72, 36, 1), Plan(64, 32, 0), 1e-6, 1e-6).step == 0


def test_the_sweep_goes_on_past_a_pair_that_leaves_the_class(mlp_lab):
    stages = scripted(mlp_lab, [(False, 0.0), (True, 0.5), (True, 0.0)])

    chosen = sweep(stages, Plan(72, 36, 1), Plan(64, 32, 1), [(1e-6, 1e-6), (2e-6, 1e-6), (3e-6, 1e-6)])

    assert chosen.lr_impair == 2e-6
    assert [entry["target_met"] for entry in stages.run.notes["sweep"]] == [False, True]
    assert stages.run.notes["ended_by"] == "target"


@pytest.mark.soak
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_defaults_forget_and_keep_on_digits_with_batch_norm(seed, cnn_lab):
    """Other draws of noise and order than those the choice was looked at with."""
    splits, run = cnn_lab.splits(), cnn_lab.run(seed=seed)

    model: nn.Module = Unsir(Unsir.Parameters()).unlearn(cnn_lab.copy(), cnn_lab.without_forget(), cnn_lab.task, run)

    forget, _, retain_test = cnn_lab.scores(model, splits)
    assert forget <= 0.01, run.notes["sweep"]
    assert retain_test >= cnn_lab.scores(cnn_lab.retrained(splits), splits)[2] - 0.03, run.notes["sweep"]
