"""SalUn: random labels for the forget set, taught to its most salient weights alone.

Source: Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024.
Differs: weights outside the mask are put back after every step, so that neither weight decay nor momentum moves them (the released code masked
gradients only, until February 2026); labels are drawn once and never true.
"""

from functools import partial

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, loss_on
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.relabelling import Order, relabelled
from services.unlearning.mechanisms.saliency import MaskedSGD, salient
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod


@METHODS.register("salun")
class Salun(UnlearningMethod):
    """Relabel the forget set and change only the weights that its loss depends on."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=11 * 3.0, per_retain=10 * 3.0, least=3 * 150 * 256)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `salun`."""

        keep: float = Field(0.5, ge=0.01, le=1, description="Share of the weights that may change: the most salient ones.")
        lr: float = Field(0.013, ge=1e-6, le=1, description="Step size of SGD.")
        momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
        weight_decay: float = Field(5e-4, ge=0, le=1, description="Weight decay, of the weights that may change.")
        epochs: int = Field(10, ge=1, le=100, description="Passes over forget and retain set.")
        batch_size: int = Field(256, ge=8, le=4096, description="Records per step.")
        order: Order = Field("forget_first", description="Both sets shuffled together, or in each epoch the forget set first.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="relabel")
        masks = salient(model, data.forget, task, run, keep=p.keep, batch_size=p.batch_size)
        shown = relabelled(self, data, task, run)
        plan = shown.plan(p.order, batch_size=p.batch_size, epochs=p.epochs, min_steps=p.min_steps)
        edit.planned({"weights_that_may_change": sum(int(mask.sum()) for mask in masks), **plan.described()}, plan.steps)

        def attempt(scale: float) -> None:
            lr = p.lr * scale
            masked = partial(MaskedSGD, masks=masks, lr=lr, momentum=p.momentum, weight_decay=p.weight_decay)
            edit.descend(plan, loss_on(shown, model, task), lr=lr, optimizer_of=masked)

        return edit.carry_out(attempt)
