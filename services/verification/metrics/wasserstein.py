"""Wasserstein-1 distance of the predictions from the retrained model's."""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.distance import counterpart
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, rows_of
from services.verification.predictions import NO_SPREAD, REAL_VALUED, ScaledParameters, kept_targets, predictions_on
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.scores import Floats
from services.verification.statistics.transport import transport_of_steps

RESAMPLES = 499


@METRICS.register("wasserstein")
class Wasserstein(Metric):
    """Mean of |sorted predictions - sorted predictions of the retrained model|, for each step: 0 the same set, in the units of the targets.

    The retrained model itself is measured against a second retrained model: that is the floor, below which no distance means anything. The
    interval resamples records, the same ones for both models. With `scale` spread it is divided by the deviation of retained training targets.
    Source: Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
    """

    tasks = REAL_VALUED
    unit = "targets"
    bounds = (0.0, float("inf"))
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train", "forget_test", "retain_test", "test")

    class Parameters(ScaledParameters):
        """Parameters of the distance."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the distance with its percentile bootstrap interval."""
        found = self._drawn(models.unlearned, models, data, task, run, split)
        if isinstance(found, Unmeasured):
            return found
        return self._reading(found[0], found[1:], len(data.named(split)))

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the distance minus that of `versus`, on the same resampled records."""
        pair = all_measured(self._drawn(model, models, data, task, run, split) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        gaps = pair[0] - pair[1]
        return self._reading(gaps[0], gaps[1:], len(data.named(split)))

    def _reading(self, value: float, drawn: Floats, records: int) -> Reading:
        low, high = percentile_interval(drawn, level=self.parameters.level, around=float(value))
        return Reading(float(value), low, high, self.parameters.level, records)

    def _drawn(self, model: nn.Module, models: Models, data: Splits, task: Task, run: Run, split: str) -> Floats | Unmeasured:
        """Return the distance, then those of the resampled records, (1 + resamples,)."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        other = counterpart(model, models)
        unit = self._unit(data)
        for lacking in (other, unit):
            if isinstance(lacking, Unmeasured):
                return lacking
        own, theirs = (predictions_on(each, rows, task).points for each in (model, other) if isinstance(each, nn.Module))
        rng = generator_of(run, f"wasserstein/{split}")
        orders = [np.arange(len(own)), *(rng.integers(0, len(own), len(own)) for _ in range(RESAMPLES))]
        return np.array([transport_of_steps(own, theirs, order) for order in orders]) / unit

    def _unit(self, data: Splits) -> float | Unmeasured:
        if self.parameters.scale == "targets":
            return 1.0
        y = kept_targets(data)
        if isinstance(y, Unmeasured):
            return y
        unit = float(y.std())
        return unit if unit > 0 else NO_SPREAD
