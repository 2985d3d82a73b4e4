"""Errors of regression models: the mean over records of how far predictions are from the targets."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import Direction, LeakSide, Models
from services.verification.outputs import rows_of
from services.verification.predictions import NO_SPREAD, REAL_VALUED, Predictions, ScaledParameters, kept_targets, predictions_on, targets_of
from services.verification.reading import Unmeasured
from services.verification.record_mean import RecordMean
from services.verification.statistics.scores import Floats


class TargetError(RecordMean):
    """Mean over records of an error: 0 exact; on forgotten records the aim is the retrained model's error, less of it means that they are known.

    With `scale` spread it is divided by the error of predicting the mean retained target on the retained training records.
    """

    tasks = REAL_VALUED
    unit = "targets"
    bounds = (0.0, float("inf"))
    direction: ClassVar[Direction] = "band"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train", "forget_test", "retain_train", "retain_test", "test")

    class Parameters(ScaledParameters):
        """Parameters of an error."""

    @abstractmethod
    def errors(self, found: Predictions, levels: tuple[float, ...]) -> Floats:
        """Return the error of each record, (n,), in the units of the targets; `levels` are the quantiles that are predicted."""

    def values(self, model: nn.Module, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Floats | Unmeasured:  # noqa: ARG002
        """Return the error of each record, (n,)."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        levels = targets_of(task).levels
        unit = self._unit(data, levels)
        return unit if isinstance(unit, Unmeasured) else self.errors(predictions_on(model, rows, task), levels) / unit

    def _unit(self, data: Splits, levels: tuple[float, ...]) -> float | Unmeasured:
        if self.parameters.scale == "targets":
            return 1.0
        y = kept_targets(data)
        if isinstance(y, Unmeasured):
            return y
        mean = np.broadcast_to(y.mean(axis=0), y.shape)
        constant = Predictions(np.repeat(mean[..., None], len(levels), axis=2), mean, y)
        unit = float(self.errors(constant, levels).mean())
        return unit if unit > 0 else NO_SPREAD
