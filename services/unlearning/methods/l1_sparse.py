"""Sparse fine-tuning: train on with the retain set under an L1 penalty that fades; weights that only the forgotten data held up fall to zero.

Source: Jia et al., "Model Sparsity Can Simplify Machine Unlearning", NeurIPS 2023.
Differs: the penalty's weight is bounded at 0.01 (a released command line defaults to 0.2, which destroys the model) and falls once an epoch.
"""

from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import optimizer_for
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, Plan, loss_on
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod


def penalty_weight(weight: float, epoch: int, epochs: int) -> float:
    """Return weight * (1 - t / T) for epoch t, counted from 0, of T: the whole in the first, a T-th in the last."""
    return weight * (1 - epoch / epochs)


@METHODS.register("l1_sparse")
class L1Sparse(UnlearningMethod):
    """Fine-tune on the retain set towards sparse weights."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=True)
    cost = Cost(per_retain=10 * 3.0, least=3 * 150 * 64)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `l1_sparse`."""

        l1_weight: float = Field(5e-4, ge=0, le=0.01, description="Weight of the sum of absolute weights in the first epoch; it fades to nothing.")
        lr: float = Field(0.01, ge=1e-6, le=0.1, description="Step size of SGD.")
        momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
        weight_decay: float = Field(5e-4, ge=0, le=1, description="Weight decay.")
        epochs: int = Field(10, ge=1, le=100, description="Passes over the retain set.")
        batch_size: int = Field(64, ge=8, le=4096, description="Records per step.")
        min_steps: LeastSteps = Field(150, description="Least steps when fewer than 20,000 retain records are used.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="sparsify")
        plan = edit.plan(len(data.retain))
        return edit.carry_out(lambda scale: self._sparsify(edit, plan, data.retain, self.parameters.lr * scale))

    def _sparsify(self, edit: GuardedEdit, plan: Plan, retain: Split, lr: float) -> None:
        p, done = self.parameters, 0
        settings = {"optimizer": "sgd", "learning_rate": lr, "momentum": p.momentum, "weight_decay": p.weight_decay}
        recipe = Recipe.model_validate(settings)
        plain = loss_on(retain, edit.model, edit.task)
        weights = [each for each in edit.model.parameters() if each.requires_grad]

        def loss_of(rows: Tensor) -> Tensor:
            loss = plain(rows)
            if p.l1_weight == 0:
                return loss
            return (
                loss
                + penalty_weight(p.l1_weight, done // plan.steps_per_epoch, plan.epochs) * torch.stack([each.abs().sum() for each in weights]).sum()
            )

        def count(step: int) -> None:
            nonlocal done
            done = step

        edit.descend(
            plan,
            loss_of,
            lr=lr,
            stream="fine_tune",  # the order of `fine_tune`, which a penalty of nothing then repeats step by step
            after_step=count,
            optimizer_of=partial(optimizer_for, recipe),
        )
