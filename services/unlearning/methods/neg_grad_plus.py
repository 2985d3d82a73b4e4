"""NegGrad+: descend the loss of the retain set and ascend that of the forget set, in one step.

Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023; the baseline to beat in Cadet et al. (arXiv 2410.01276).
Differs: batch norm keeps its statistics; the anchor at the original weights takes the place of weight decay; the ascent, which has no bound,
rests on forget batches whose loss has reached a target (`ascent_target`, null for the paper's loss), and is watched at every epoch's end.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Batch, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import optimizer_for
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, Plan, loss_on
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod


def anchor_penalty(model: nn.Module, anchor: list[Tensor], weight: float) -> Tensor:
    """Return weight / 2 times the squared distance of the weights from `anchor`, a scalar."""
    distances = [(parameter - start).square().sum() for parameter, start in zip(model.parameters(), anchor, strict=True)]
    return weight / 2 * torch.stack(distances).sum()


@METHODS.register("neg_grad_plus")
class NegGradPlus(UnlearningMethod):
    """Ascend the loss of the forget set while the retain set holds the model in place."""

    tasks = frozenset({"classification", "regression", "forecasting"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=10 * 3.0, per_retain=10 * 3.0, least=3 * 150 * 64)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `neg_grad_plus`."""

        retain_weight: float = Field(0.95, ge=0.5, le=1, description="Weight a of the retain loss; the forget loss is ascended with 1 - a.")
        lr: float = Field(0.01, ge=1e-6, le=0.1, description="Step size of SGD.")
        momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
        epochs: int = Field(10, ge=1, le=100, description="Passes over the retain set.")
        anchor_wd: float = Field(0.0, ge=0, le=1, description="Weight of half the squared distance from the original weights.")
        ascent_target: float | None = Field(
            1.0, ge=0.1, le=1000, description="Ascend no further than this many times the loss of knowing nothing; null: without end."
        )
        batch_size: int = Field(64, ge=8, le=4096, description="Retain records, and as many forget records, per step.")
        min_steps: LeastSteps = Field(150, description="Least steps when fewer than 20,000 retain records are used.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode; its buffers stay. x (B, *record), y as the task has it."""
        admit(self, data, task, run)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="contrast")
        plan = edit.plan(len(data.retain))
        return edit.carry_out(lambda scale: self._contrast(edit, plan, data, self.parameters.lr * scale))

    def _contrast(self, edit: GuardedEdit, plan: Plan, data: Splits, lr: float) -> None:
        p, model, guard = self.parameters, edit.model, edit.guard
        forgotten: Iterator[Batch] = data.forget.forever(plan.batch_size, edit.run.stream("forget"))
        retain_loss = loss_on(data.retain, model, edit.task)
        anchor = [parameter.detach().clone() for parameter in model.parameters()]
        recipe = Recipe.model_validate({"optimizer": "sgd", "learning_rate": lr, "momentum": p.momentum})
        enough = math.inf if p.ascent_target is None else p.ascent_target * guard.trivial

        def loss_of(rows: Tensor) -> Tensor:
            kept = retain_loss(rows)
            if p.anchor_wd > 0:
                kept = kept + anchor_penalty(model, anchor, p.anchor_wd)
            if p.retain_weight == 1:
                return kept
            lost = edit.task.loss(model, next(forgotten)).clamp(max=enough)
            return p.retain_weight * kept - (1 - p.retain_weight) * lost

        def watch(step: int) -> None:
            if step % plan.steps_per_epoch == 0:
                guard.check_damage(model, edit.stage)

        edit.descend(
            plan,
            loss_of,
            lr=lr,
            stream="fine_tune",  # the order of `fine_tune`, which a = 1 then repeats step by step
            after_step=watch,
            optimizer_of=partial(optimizer_for, recipe),
            mode="frozen",
        )
