"""Weight distance: how far the parameters lie from the retrained model's, and how far each layer was moved from the original."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.distance import counterpart
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.scores import Floats

Weights = dict[str, Floats]


def weights_of(model: nn.Module) -> Weights:
    """Return the named parameters in order, float64; buffers (running statistics, counters) are no parameters and are left out."""
    return {name: parameter.detach().cpu().to(torch.float64).numpy() for name, parameter in model.named_parameters()}


def norm(weights: Weights) -> float:
    """Return the Euclidean norm over all tensors: the root of the sum of squares."""
    return float(np.sqrt(sum(float(np.square(tensor).sum()) for tensor in weights.values())))


def gap(first: Weights, second: Weights) -> Weights:
    """Return first - second, tensor by tensor."""
    return {name: tensor - second[name] for name, tensor in first.items()}


def alike(first: Weights, second: Weights) -> bool:
    """Return whether both have the same tensors of the same shapes."""
    return {name: tensor.shape for name, tensor in first.items()} == {name: tensor.shape for name, tensor in second.items()}


@METRICS.register("weight_distance")
class WeightDistance(Metric):
    """Norm of the difference to the retrained model's parameters over the norm of those: 0 equal, 1 as far away as all weights zero.

    Networks of equal outputs may have unequal weights, so it never gates; the retrained model itself is measured against a second one.
    `detail.layers` has for each parameter the distance moved from the original and that distance over the parameter's norm (null at norm 0),
    `detail.moved` the root of the sum of their squares. The value is no estimate, so the interval has no width; `n` is the size of the request.
    """

    tasks = frozenset({"classification", "regression", "forecasting"})
    unit = "share"
    bounds = (0.0, float("inf"))
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:  # noqa: ARG002
        """Return the relative distance to the retrained model; unmeasured where the parameters of the two do not correspond."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        mine, theirs, original = (weights_of(model) for model in (models.unlearned, other, models.original))
        if not alike(mine, theirs):
            return Unmeasured("different_parameters")
        size = norm(theirs)
        value = norm(gap(mine, theirs)) / size if size > 0 else float("nan")
        if not np.isfinite(value):
            return Unmeasured("not_finite")
        return Reading(value, value, value, self.parameters.level, len(rows), _moved(original, mine) if alike(mine, original) else {})


def _moved(original: Weights, mine: Weights) -> dict[str, object]:
    """Return how far each parameter and all of them were moved."""
    moved = {name: norm({name: tensor}) for name, tensor in gap(original, mine).items()}
    sizes = {name: norm({name: tensor}) for name, tensor in mine.items()}
    layers = {name: {"distance": moved[name], "relative": moved[name] / sizes[name] if sizes[name] > 0 else None} for name in moved}
    return {"moved": float(np.sqrt(sum(distance**2 for distance in moved.values()))), "layers": layers}
