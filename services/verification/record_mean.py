"""Metrics that are the mean over records of one number for each of them."""

from abc import abstractmethod

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import mean_interval
from services.verification.statistics.scores import Floats


def mean_reading(values: Floats, run: Run, purpose: str, *, level: float) -> Reading:
    """Return the mean of `values` (n,) with its BCa interval, whose resamples depend on the run's seed and `purpose`."""
    low, high = mean_interval(values, level=level, rng=generator_of(run, purpose))
    return Reading(float(values.mean()), low, high, level, len(values))


class RecordMean(Metric):
    """Mean over records of a number that a model gives each; two models are compared on the same records."""

    @abstractmethod
    def values(self, model: nn.Module, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Floats | Unmeasured:
        """Return the number of each record, (..., n), for `model` beside `models`."""

    def reading(self, values: Floats, run: Run, purpose: str) -> Reading:
        """Return the mean of `values` with its BCa interval."""
        return mean_reading(values, run, f"{self.name}/{purpose}", level=self.parameters.level)

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean with its BCa interval. What `values` raises goes through."""
        values = self.values(models.unlearned, models, data, task, run, split=split)
        return values if isinstance(values, Unmeasured) else self.reading(values, run, split)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the mean of the differences on the same rows."""
        pair = all_measured(self.values(model, models, data, task, run, split=split) for model in (models.unlearned, versus))
        return pair if isinstance(pair, Unmeasured) else self.reading(pair[0] - pair[1], run, f"{split}/paired")
