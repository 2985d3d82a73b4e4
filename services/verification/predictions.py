"""A regression model's predictions on one split, in an order that does not depend on how the rows came, and the scale they are read on."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.targets import Targets
from services.learning.task import Task
from services.verification.metric import Metric
from services.verification.outputs import order_by_id, rows_of
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats

NO_SPREAD = Unmeasured("targets_without_spread")
REAL_VALUED = frozenset({"regression", "forecasting"})


class ScaledParameters(Metric.Parameters):
    """Parameters of a metric in the units of the targets."""

    scale: Literal["targets", "spread"] = Field(
        "targets", description="Units of the targets, or share of what they are spread by: 1 is as much as by predicting the mean retained target."
    )


@dataclass(frozen=True, slots=True)
class Predictions:
    """all_levels (n, H, Q) and points (n, H) in the units of the targets y (n, H), float64, rows sorted by record id."""

    all_levels: Floats
    points: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.y)

    @property
    def residuals(self) -> Floats:
        """Return the mean absolute error of each record, (n,)."""
        return np.abs(self.points - self.y).mean(axis=1)


def targets_of(task: Task) -> Targets:
    """Return how the task's targets are scaled and scored. Raises ValueError for a task without any."""
    if task.targets is None:
        raise ValueError(f"task {task.name} has no real-valued targets")
    return task.targets


def table_of(rows: Split) -> Floats:
    """Return the targets of rows as (n, H) float64."""
    y = rows.y.detach().cpu().double()
    return y.reshape(len(y), -1).numpy()


def predictions_on(model: nn.Module, rows: Split, task: Task) -> Predictions:
    """Return the predictions of `model` on every row, sorted by record id."""
    order = order_by_id(rows)
    targets = targets_of(task)
    predicted = task.predict(model, rows).detach().cpu().double()[torch.tensor(order, dtype=torch.int64)]
    levels = predicted.view(len(predicted), -1, len(targets.levels)).numpy()
    return Predictions(levels, targets.points(predicted).numpy(), table_of(rows)[order])


def kept_targets(data: Splits) -> Floats | Unmeasured:
    """Return the targets of the retained training records, (n, H), or that there are none."""
    rows = rows_of(data, "retain_train")
    return rows if isinstance(rows, Unmeasured) else table_of(rows)
