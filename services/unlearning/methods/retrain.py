"""Retraining from scratch without the forget set: the exact method, and the yardstick of all others.

Source: the training recipe of the original, repeated on the retain set.
"""

import torch
from torch import nn

from services.errors import IntegrityBroken
from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.guard import diverging
from services.unlearning.mechanisms.shard_training import train_whole
from services.unlearning.method import METHODS, Needs, UnlearningMethod


def assert_fresh(model: nn.Module, original: nn.Module, witness: nn.Module) -> int:
    """Return how many parameter tensors of `model` differ from `original`; `witness` is built afresh from another seed.

    A tensor that equals the original's is a warm start unless every fresh build holds that constant (zero biases of a model never trained).

    Raises:
        IntegrityBroken: a parameter kept its trained value, or a buffer is not as a fresh build has it.
    """
    trained, constant = original.state_dict(), witness.state_dict()
    kept = [
        name
        for name, parameter in model.named_parameters()
        if torch.equal(parameter.detach(), trained[name]) and not torch.equal(parameter.detach(), constant[name])
    ]
    built = dict(witness.named_buffers())
    kept += [name for name, buffer in model.named_buffers() if not torch.equal(buffer, built[name])]
    if kept:
        raise IntegrityBroken(detail=f"a fresh model kept {len(kept)} tensors of the trained one: {', '.join(kept[:8])}")
    return sum(not torch.equal(parameter.detach(), trained[name]) for name, parameter in model.named_parameters())


@METHODS.register("retrain")
class Retrain(UnlearningMethod):
    """Train a fresh network on the retain set by the recipe of the original."""

    tasks = frozenset({"classification", "regression", "forecasting", "language_model", "image_generation"})
    granularities = frozenset({"class", "records"})
    guarantee = "exact"
    needs = Needs(forget_set=False, retain_set=True, recipe=True)
    sharded = True
    fresh_start = True

    class Parameters(UnlearningMethod.Parameters):
        """Nothing to choose: the recipe is the original's."""

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Return a new model in eval mode; `model` is only compared with it. Raises Diverged when the training loss is not finite."""
        admit(self, data, task, run)
        recipe: Recipe = run.recipe  # pyright: ignore[reportAssignmentType]  # `admit` saw it
        fresh = run.fresh_model("retrain")
        changed = assert_fresh(fresh, model, run.fresh_model("retrain/witness"))
        run.note("parameter_tensors_changed", changed)
        run.note("parameter_tensors", sum(1 for _ in fresh.parameters()))
        with diverging(self.name, "retrain"):
            result = train_whole(fresh, data.retain, task, recipe, run, stage="retrain", generator=run.stream("retrain/order"))
        run.note("steps", {"retrain": result.steps})
        return fresh.eval()
