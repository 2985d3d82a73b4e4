"""Boundary shrink: each record of the class is taught the class that lies nearest across the decision boundary. No retain record is read.

Source: Chen et al., "Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the Decision Boundary", CVPR 2023.
Differs: a record whose shifted copy keeps its class, or falls into another class of the request, gets the next likeliest; those labels are found
once, before training, because the original does not change; batch norm is frozen, since a single class would drag its statistics along; training
ends with the first epoch after which the forget set is no longer recognised.
"""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy
from services.unlearning.mechanisms.applicability import admit, real_record, refuse
from services.unlearning.mechanisms.boundary import nearest_labels
from services.unlearning.mechanisms.descent import LeastSteps
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.relabelling import Watch, rows_by_label
from services.unlearning.method import METHODS, REAL_NUMBERS, Cost, Gentler, Needs, UnlearningMethod

FORGET_TARGET = 0.01


@METHODS.register("boundary_shrink")
class BoundaryShrink(UnlearningMethod):
    """Hand the records of whole classes over to their nearest other classes. Outputs are redirected; the report shows where to."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=False)
    modalities = REAL_NUMBERS
    cost = Cost(per_forget=10 * 5.0, least=5 * 150 * 64)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `boundary_shrink`."""

        bound: float = Field(0.1, ge=0, le=1, description="Length of the step up the loss, in the units of the model's input.")
        lr: float = Field(1e-5, ge=1e-8, le=0.01, description="Step size of Adam.")
        epochs: int = Field(10, ge=1, le=100, description="Passes over the forget set.")
        batch_size: int = Field(64, ge=4, le=4096, description="Records per step.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = Field(10.0, description="Stop when the guard's loss exceeds this many times its first value.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record) real-valued, y (B,) int64; held-out rows serve the guard alone."""
        admit(self, data, task, run)
        taught = self.relabelled(model, data, task, run)
        edit = GuardedEdit.of(self, model, self._probe(data, taught, run), task, run, stage="shrink")
        plan, lr = edit.plan(len(taught)), self.parameters.lr
        run.note("forget_accuracy_before", accuracy(model, data.forget))

        def loss_of(rows: Tensor) -> Tensor:
            with evaluating(model):
                return task.losses(model, taught.batch(rows)).mean()

        nothing = data.forget.take(torch.zeros(0, dtype=torch.int64))
        watch = Watch(data.forget, nothing, nothing, target=FORGET_TARGET, floor=0.0)

        def attempt(scale: float) -> None:
            steps = edit.descend(plan, loss_of, lr=lr * scale, after_step=lambda step: step % plan.steps_per_epoch == 0 and watch.met(model))
            run.note("steps", {edit.stage: steps})
            run.note("ended_by", "target" if watch.met(model) else "steps")
            run.note("forget_accuracy_after", accuracy(model, data.forget))

        return edit.carry_out(attempt, ended_by=None, watched="guard_loss")

    def relabelled(self, model: nn.Module, data: Splits, task: Task, run: Run) -> Split:
        """Return the forget set under its nearest labels; the note `redirected` counts them by class. Raises MethodNotApplicable."""
        real_record(self, data, data.forget, "a step up the loss needs")
        if len(data.classes) >= task.outputs:
            raise refuse(self, data, "no class is left to hand the records to")
        labels = nearest_labels(model, data.forget, task, bound=self.parameters.bound, excluded=data.classes)
        run.note("redirected", rows_by_label(labels))
        return replace(data.forget, y=labels)

    def _probe(self, data: Splits, taught: Split, run: Run) -> Split:
        """Return what the guard watches: held-out rows of the classes that stay, or the lesson itself where there are none."""
        others = data.analysis.with_labels(data.classes, keep=False)
        run.note("guard_probe", "held-out rows" if len(others) else "the forget set under its new labels")
        return others if len(others) else taught
