"""Gaussian amnesiac: replace the targets of the forget set by draws from the global distribution of targets, and train on with everything.

Source: the baseline of Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
Differs: the checkpoint with the least loss on held-out records like those that stay is always put back, where one of the two released pipelines
only saves it; draws come from a generator of their own, whose seed is noted, and may be held to a range.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.real_valued import RealValued
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, Plan, loss_on
from services.unlearning.mechanisms.guard import GuardFactor, mean_loss, snapshot
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.real_targets import random_targets, retain_validation, scored_by, spread_of, two_peaks
from services.unlearning.mechanisms.relabelling import Joined
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

Bound = Annotated[float, Field(allow_inf_nan=False)]
MANY_PEAKS = "the targets are clearly of several peaks, and normal draws of them implausible"


@METHODS.register("gaussian_amnesiac")
class GaussianAmnesiac(UnlearningMethod):
    """Teach the model random targets for the forget set."""

    tasks = frozenset({"regression", "forecasting"})
    granularities = frozenset({"records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=3.0, per_retain=3.0, least=3 * 150 * 256)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `gaussian_amnesiac`."""

        loss: Literal["l1", "mse", "huber", "quantile"] | None = Field(None, description="Loss; null: the task's.")
        epochs: int = Field(1, ge=1, le=50, description="Passes over forget and retain set.")
        lr: float = Field(1e-3, ge=1e-6, le=0.1, description="Step size of Adam.")
        batch_size: int = Field(256, ge=8, le=4096, description="Records per step.")
        clip_range: tuple[Bound, Bound] | None = Field(None, description="Least and greatest target that is drawn; null: none.")
        label_seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Seed of the drawn targets; null: derived from the job's seed.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = 10.0

        @model_validator(mode="after")
        def _range_rises(self) -> "GaussianAmnesiac.Parameters":
            if self.clip_range is not None and self.clip_range[0] >= self.clip_range[1]:
                raise ValueError("clip_range is a least and a greater number")
            return self

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode: the epoch's end with the least held-out loss. y (B,) or (B, H) float32."""
        admit(self, data, task, run)
        scored = scored_by(self.name, task, self.parameters.loss)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="amnesia")
        shown = Joined(self.drawn(data, run), data.retain)
        plan = edit.plan(len(shown))
        held_out = retain_validation(data, edit.guard.probe)
        return edit.carry_out(lambda scale: self._relearn(edit, shown, scored, plan, held_out, self.parameters.lr * scale))

    def drawn(self, data: Splits, run: Run) -> Split:
        """Return the forget set under drawn targets; mean and deviation are those of all training targets, the forget set's included."""
        p = self.parameters
        spread = spread_of(data.forget.y, data.retain.y)
        if p.clip_range is not None and not p.clip_range[0] <= spread.mean <= p.clip_range[1]:
            raise ParameterOutOfRange(name="clip_range", detail="the mean of the targets lies outside of it")
        seed = p.label_seed if p.label_seed is not None else derived_seed(run.seed, "labels")
        run.note("label_seed", seed)
        run.note("drawn_from", spread._asdict())
        if two_peaks(torch.cat([data.forget.y, data.retain.y])):
            run.note("warning", MANY_PEAKS)
        return replace(data.forget, y=random_targets(data.forget.y, spread, torch.Generator().manual_seed(seed), clip=p.clip_range))

    def _relearn(self, edit: GuardedEdit, shown: Joined, task: RealValued, plan: Plan, held_out: Split, lr: float) -> None:
        model, run = edit.model, edit.run
        losses: list[float] = []
        best: dict[str, Tensor] = {}

        def look(step: int) -> None:
            nonlocal best
            if step % plan.steps_per_epoch:
                return
            losses.append(mean_loss(model, held_out, task))
            edit.guard.check_finite(torch.tensor(losses[-1]), edit.stage)
            if losses[-1] == min(losses):
                best = snapshot(model)

        edit.descend(plan, loss_on(shown, model, task), lr=lr, after_step=look)
        model.load_state_dict(best)
        run.note("selected", {"epoch": losses.index(min(losses)) + 1, "held_out_losses": losses, "held_out": len(held_out)})
