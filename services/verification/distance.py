"""Distances to the retrained model: what they are measured against, and the form that all record-by-record distances share."""

from abc import abstractmethod
from typing import ClassVar

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import Direction, LeakSide, Models
from services.verification.outputs import NO_REFERENCE, NO_TWIN, outputs_on, rows_of
from services.verification.reading import Unmeasured
from services.verification.record_mean import RecordMean
from services.verification.statistics.scores import Floats


def counterpart(model: nn.Module, models: Models) -> nn.Module | Unmeasured:
    """Return the model that `model` is held against: the retrained one, or the second retrained one where `model` is the first."""
    if models.retrained is None:
        return NO_REFERENCE
    other = models.retrained_twin if model is models.retrained else models.retrained
    return NO_TWIN if other is None else other


class OutputDistance(RecordMean):
    """Mean over records of a distance between the outputs of two models.

    The retrained model itself is measured against a second retrained model: that is the floor, below which no distance means anything.
    """

    tasks = frozenset({"classification"})
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train", "forget_test", "retain_test", "test")

    @abstractmethod
    def distances(self, log_p: Floats, log_q: Floats) -> Floats:
        """Return the distance of each row, (n,), of log-probabilities (n, C)."""

    def values(self, model: nn.Module, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Floats | Unmeasured:  # noqa: ARG002
        """Return the distance of each record from the counterpart's outputs, (n,)."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        other = counterpart(model, models)
        if isinstance(other, Unmeasured):
            return other
        return self.distances(outputs_on(model, rows, task).log_p, outputs_on(other, rows, task).log_p)
