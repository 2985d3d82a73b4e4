"""Fine-tuning on the retain set: the forget set is never shown again, and what is not repeated fades.

Source: the baseline of Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024 (SGD, 10 epochs).
Differs: batches of 64, as in the repository of selective synaptic dampening, not of 256: a run has no least number of steps, and on the small sets
that are usual here a quarter of the steps would change next to nothing. Tasks other than classification default to Adam at 1e-3 for 5 epochs;
generators to half of the usual rate, 2e-4, and no weight decay.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod


@METHODS.register("fine_tune")
class FineTune(UnlearningMethod):
    """Train the original on with the retain set alone."""

    tasks = frozenset({"classification", "regression", "forecasting", "language_model", "image_generation"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=True, parts=frozenset({"discriminator"}))
    cost = Cost(of_recipe=0.2)
    sharded = True

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `fine_tune`."""

        optimizer: Literal["sgd", "adam"] | None = Field(None, description="Optimiser; null: SGD for classification, else Adam.")
        lr: float | None = Field(None, ge=1e-7, le=1.0, description="Step size; null: 0.01 for SGD, 0.001 for Adam, 0.0002 for generators.")
        momentum: float = Field(0.9, ge=0, le=0.999, description="Momentum; SGD only.")
        weight_decay: float = Field(5e-4, ge=0, le=0.1, description="Weight decay; where it is not given, none for generators.")
        epochs: int | None = Field(None, ge=1, le=500, description="Passes over the retain set; null: 10 for classification, else 5.")
        batch_size: int = Field(64, ge=4, le=8192, description="Records per step.")
        schedule: Literal["none", "cosine", "onecycle"] = Field(
            "none", description="Step size over the run: as it is, falling to zero as a cosine, or rising before it does."
        )
        guard_factor: GuardFactor = 10.0

    def recipe(self, task: Task, scale: float) -> Recipe:
        """Return the effective recipe for `task`, its learning rate times `scale`."""
        p = self.parameters
        classification = task.name == "classification"
        optimizer = p.optimizer or ("sgd" if classification else "adam")
        images = task.name == "image_generation"
        lr = p.lr if p.lr is not None else (0.01 if optimizer == "sgd" else 2e-4 if images else 1e-3)
        epochs = p.epochs if p.epochs is not None else (10 if classification else 5)
        decay = 0.0 if images and "weight_decay" not in p.model_fields_set else p.weight_decay
        schedule = "constant" if p.schedule == "none" else p.schedule
        chosen = {"optimizer": optimizer, "learning_rate": lr * scale, "epochs": epochs, "batch_size": p.batch_size, "schedule": schedule}
        return Recipe.model_validate({**chosen, "momentum": p.momentum, "weight_decay": decay})

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode."""
        admit(self, data, task, run)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="fine_tune")

        def attempt(scale: float) -> None:
            recipe = self.recipe(task, scale)
            result = edit.fit(data.retain, recipe)
            edit.planned(recipe.model_dump(include={"optimizer", "learning_rate", "epochs", "batch_size", "schedule"}), result.steps)

        return edit.carry_out(attempt, ended_by=None)
