"""Relabelling: every record of the forget set gets a wrong label, drawn once, and the model is trained on with these and the retain set.

Source: the amnesiac baseline of Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023 (Adam, 3 epochs, batches of 256); with
order `forget_first` the random labels of Fan et al., "SalUn", ICLR 2024 (SGD, 10 epochs).
Differs: a label is never the true one, nor any class of a class request, and stays the same over all epochs; the released random labels hit the
true class once in C and are drawn anew. This is not the amnesiac unlearning that subtracts logged updates: no log of the training is kept.
"""

from functools import partial
from typing import Literal

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import optimizer_for
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import LeastSteps, loss_on, sgd_recipe
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.relabelling import Joined, Order, relabelled
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

ADAM_LR = 1e-4
SGD_LR = 0.013


@METHODS.register("amnesiac")
class Amnesiac(UnlearningMethod):
    """Teach the model wrong labels for the forget set."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=3.0, per_retain=3.0, least=3 * 150 * 256)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `amnesiac`."""

        epochs: int | None = Field(None, ge=1, le=50, description="Passes over forget and retain set; null: 3 for Adam, 10 for SGD.")
        lr: float | None = Field(None, ge=1e-7, le=0.1, description="Step size; null: 0.0001 for Adam, 0.013 for SGD.")
        batch_size: int = Field(256, ge=8, le=4096, description="Records per step.")
        order: Order = Field("mixed", description="Both sets shuffled together, or in each epoch the forget set first.")
        optimizer: Literal["adam", "sgd"] | None = Field(None, description="Optimiser; null: Adam for mixed, SGD for forget_first.")
        min_steps: LeastSteps = 150
        guard_factor: GuardFactor = 10.0

    def recipe(self, scale: float) -> Recipe:
        """Return the effective recipe, its learning rate times `scale`."""
        p = self.parameters
        optimizer = p.optimizer or ("adam" if p.order == "mixed" else "sgd")
        lr = p.lr if p.lr is not None else (ADAM_LR if optimizer == "adam" else SGD_LR)
        epochs = p.epochs if p.epochs is not None else (3 if optimizer == "adam" else 10)
        if optimizer == "sgd":
            return sgd_recipe(lr * scale, epochs=epochs)
        return Recipe.model_validate({"optimizer": "adam", "learning_rate": lr * scale, "epochs": epochs})

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="relabel")
        shown = relabelled(self, data, task, run)
        return edit.carry_out(lambda scale: self._relearn(edit, shown, self.recipe(scale)))

    def _relearn(self, edit: GuardedEdit, shown: Joined, recipe: Recipe) -> None:
        p = self.parameters
        plan = shown.plan(p.order, batch_size=p.batch_size, epochs=recipe.epochs, min_steps=p.min_steps)
        edit.planned({"optimizer": recipe.optimizer, "learning_rate": recipe.learning_rate, **plan.described()}, plan.steps)
        loss_of = loss_on(shown, edit.model, edit.task)
        edit.descend(plan, loss_of, lr=recipe.learning_rate, optimizer_of=partial(optimizer_for, recipe))
