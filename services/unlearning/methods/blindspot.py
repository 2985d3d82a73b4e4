"""Blindspot unlearning of regression models: on the forget set imitate a model that was trained briefly and never saw it.

Source: Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
Differs: the blindspot model is trained for at least `min_steps`, answers once and for forget records alone, in eval mode, and is refused
where it is worse than its gate on held-out records like those that stay; attention is compared on feature maps and, over channels, on series,
never on flat outputs, where the released term is 0 throughout; outputs of another shape than (B, outputs) are refused instead of broadcast.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.real_valued import RealValued
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import fit
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.descent import LeastSteps, plan_steps
from services.unlearning.mechanisms.guard import GuardFactor, diverging, mean_loss
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.real_targets import BlindLesson, answers, retain_validation, scored_by, spread_of, taps_of
from services.unlearning.mechanisms.relabelling import Joined
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod


@METHODS.register("blindspot")
class Blindspot(UnlearningMethod):
    """Fit the true targets of what stays, and on the rest the answers of a model that never saw it."""

    tasks = frozenset({"regression", "forecasting"})
    granularities = frozenset({"records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=4.0, per_retain=9.0, least=3 * 2 * 150 * 256)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `blindspot`."""

        loss: Literal["l1", "mse", "huber", "quantile"] | None = Field(None, description="Loss of both models; null: the task's.")
        blind_epochs: int = Field(2, ge=1, le=50, description="Passes of the blindspot model over the retain set.")
        blind_lr: float = Field(0.01, ge=1e-5, le=0.1, description="Step size of Adam for the blindspot model.")
        blind_gate: float = Field(
            1.0, ge=0.1, le=10, description="Refuse a blindspot model whose held-out loss is more than this times that of predicting the mean."
        )
        beta: float = Field(50.0, ge=0, le=10_000, description="Weight of the difference of attention maps on forget records.")
        epochs: int = Field(1, ge=1, le=20, description="Passes of the student over forget and retain set.")
        lr: float = Field(1e-3, ge=1e-6, le=0.1, description="Step size of Adam for the student.")
        batch_size: int = Field(256, ge=8, le=4096, description="Records per step.")
        taps: tuple[str, ...] | None = Field(
            None, max_length=64, description="Modules whose attention is compared; null: all convolutional blocks and sequence layers."
        )
        scale_targets: bool = Field(default=False, description="Divide predictions and targets by the deviation of the retain set's targets.")
        min_steps: LeastSteps = Field(150, description="Least steps of each of the two trainings when fewer than 20,000 records are used.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) or (B, H) float32.

        Raises:
            Diverged: the blindspot model is worse than its gate, or the student fails the guard twice; the weights are then the original's.
            ParameterOutOfRange: a tap names no module, or the loss does not fit the outputs.
        """
        admit(self, data, task, run)
        p = self.parameters
        if run.architecture is None:
            raise refuse(self, data, "the model version names no architecture to build a blindspot model from")
        scored = scored_by(self.name, task, p.loss)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="imitate")
        blind = self._blind(data, scored, run, edit)
        lesson = self._lesson(model, blind, data, scored)
        plan = edit.plan(len(lesson))
        run.note("steps", {"blindspot": run.notes.pop("blind_steps"), "imitate": plan.steps})
        run.note("effective", {**plan.described(), "loss": scored.scale.loss, "taps": list(lesson.taps), "target_unit": lesson.unit})

        def attempt(scale: float) -> None:
            edit.descend(plan, lambda rows: lesson.loss(model, rows), lr=p.lr * scale)

        return edit.carry_out(attempt)

    def _blind(self, data: Splits, task: RealValued, run: Run, edit: GuardedEdit) -> nn.Module:
        """Return the blindspot model, trained on the retain set alone. Raises Diverged where it is worse than the gate."""
        p = self.parameters
        blind = run.fresh_model("blindspot")
        plan = plan_steps(len(data.retain), batch_size=p.batch_size, epochs=p.blind_epochs, min_steps=p.min_steps)
        recipe = Recipe.model_validate({"learning_rate": p.blind_lr, "epochs": plan.epochs, "batch_size": plan.batch_size})
        with diverging(self.name, "blindspot"):
            result = fit(blind, data.retain, task, recipe, run, stage="blindspot")
        held_out = retain_validation(data, edit.guard.probe)
        found, limit = mean_loss(blind, held_out, task), p.blind_gate * task.trivial_loss(held_out)
        run.note("blind_steps", result.steps)
        run.note("blindspot", {**plan.described(), "held_out_loss": found, "limit": limit, "held_out": len(held_out)})
        if not found <= limit:
            detail = f"the blindspot model's held-out loss {found:.4g} is above {limit:.4g}; more blind_epochs or another blind_lr may help"
            raise Diverged(method=self.name, stage="blindspot", detail=detail)
        return blind.eval().requires_grad_(requires_grad=False)

    def _lesson(self, model: nn.Module, blind: nn.Module, data: Splits, task: RealValued) -> BlindLesson:
        p = self.parameters
        taps = taps_of(model, p.taps) if p.beta > 0 else ()
        spread = spread_of(task.wanted(data.retain.y)).std if p.scale_targets else 0.0
        told = answers(blind, data.forget, task, taps, batch_size=p.batch_size)
        return BlindLesson(Joined(data.forget, data.retain), told, task, taps, p.beta, spread or 1.0)
