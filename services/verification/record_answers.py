"""Metrics that are the mean over records of one number that a language model's answer gives each; groups of records are resampled whole."""

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import Asked, asked_of, grouped_reading
from services.verification.metric import Direction, Metric, Models
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import clopper_pearson, paired_proportions
from services.verification.statistics.scores import Floats


class AnswerMean(Metric):
    """Mean over records of a number of their answer; two models are compared on the same records."""

    tasks = frozenset({"language_model"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    splits = ("forget_train", "retain_train", "test")

    @abstractmethod
    def values(self, model: nn.Module, asked: Asked, task: Task, run: Run) -> Floats | Unmeasured:
        """Return the number of each record, (n,)."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean with its bootstrap interval over groups."""
        asked = self._asked(data, split, run)
        if isinstance(asked, Unmeasured):
            return asked
        found = self.values(models.unlearned, asked, task, run)
        return found if isinstance(found, Unmeasured) else self._reading(found, asked, run, split)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the mean of the differences on the same records."""
        asked = self._asked(data, split, run)
        if isinstance(asked, Unmeasured):
            return asked
        mine, theirs = (self.values(model, asked, task, run) for model in (models.unlearned, versus))
        if isinstance(mine, Unmeasured):
            return mine
        return theirs if isinstance(theirs, Unmeasured) else self._reading(mine - theirs, asked, run, f"{split}/paired", paired=True)

    def _asked(self, data: Splits, split: str, run: Run) -> Asked | Unmeasured:
        return asked_of(data, split, run, at_most=getattr(self.parameters, "rows", None))

    def _reading(self, values: Floats, asked: Asked, run: Run, purpose: str, *, paired: bool = False) -> Reading:  # noqa: ARG002
        return grouped_reading(values, asked.groups, run, f"{self.name}/{purpose}", level=self.parameters.level)


class AnswerShare(AnswerMean):
    """Share of records of whose answer something holds. A bootstrap of records that are all alike has no width, as if seventeen were a million.

    So its interval reaches at least as far as Clopper and Pearson's does, or Tango's score interval of the paired difference.
    """

    def _reading(self, values: Floats, asked: Asked, run: Run, purpose: str, *, paired: bool = False) -> Reading:
        found = super()._reading(values, asked, run, purpose)
        gained, lost, level = int((values > 0).sum()), int((values < 0).sum()), found.level
        low, high = paired_proportions(gained, lost, found.n, level=level) if paired else clopper_pearson(gained, found.n, level=level)
        return replace(found, low=min(low, found.low), high=max(high, found.high))
