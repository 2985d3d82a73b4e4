"""Relative difference of the predictions from the retrained model's."""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.distance import counterpart
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import rows_of
from services.verification.predictions import REAL_VALUED, predictions_on
from services.verification.reading import Reading, Unmeasured
from services.verification.record_mean import mean_reading
from services.verification.statistics.scores import Floats

NO_LABEL = Unmeasured("every_target_is_zero")


@METRICS.register("relative_prediction_difference")
class RelativePredictionDifference(Metric):
    """Mean of |prediction - retrained model's prediction| / |target|: 0 equal. Targets of 0 are counted in `detail`, not averaged.

    Source: Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
    """

    tasks = REAL_VALUED
    unit = "ratio"
    bounds = (0.0, float("inf"))
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train", "forget_test", "retain_test", "test")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean with its BCa interval."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        own, theirs = predictions_on(models.unlearned, rows, task), predictions_on(other, rows, task)
        found, zero = relative_differences(own.points, theirs.points, own.y)
        if len(found) == 0:
            return NO_LABEL
        reading = mean_reading(found, run, f"{self.name}/{split}", level=self.parameters.level)
        return Reading(reading.value, reading.low, reading.high, reading.level, reading.n, {"targets_of_zero": zero})

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> None:
        """Return None: each model has a counterpart of its own."""


def relative_differences(own: Floats, theirs: Floats, y: Floats) -> tuple[Floats, int]:
    """Return |own - theirs| / |y| of each record, (k,), the mean over its steps without a target of 0, and how many targets are 0."""
    defined = y != 0
    ratio = np.divide(np.abs(own - theirs), np.abs(y), out=np.zeros_like(y), where=defined)
    steps = defined.sum(axis=1)
    return ratio.sum(axis=1)[steps > 0] / steps[steps > 0], int((~defined).sum())
