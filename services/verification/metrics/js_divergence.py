"""Jensen-Shannon divergence from the retrained model's outputs, record by record."""

from typing import ClassVar

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import NO_REFERENCE, NO_TWIN, generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.divergence import jensen_shannon_bits
from services.verification.statistics.intervals import mean_interval
from services.verification.statistics.scores import Floats


@METRICS.register("js_divergence")
class JsDivergence(Metric):
    """Mean Jensen-Shannon divergence in bits: 0 equal, 1 disjoint.

    The retrained model itself is measured against a second retrained model: that is the floor, below which no distance means anything.
    """

    tasks = frozenset({"classification"})
    unit = "bits"
    bounds = (0.0, 1.0)
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train", "forget_test", "retain_test", "test")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean distance to the retrained model with its BCa interval."""
        values = self._distances(models.unlearned, models, data, task, split)
        if isinstance(values, Unmeasured):
            return values
        return self._reading(values, run, split)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the mean of the differences of the two distances on the same rows."""
        mine = self._distances(models.unlearned, models, data, task, split)
        theirs = self._distances(versus, models, data, task, split)
        if isinstance(mine, Unmeasured):
            return mine
        if isinstance(theirs, Unmeasured):
            return theirs
        return self._reading(mine - theirs, run, f"{split}/paired")

    def _distances(self, model: nn.Module, models: Models, data: Splits, task: Task, split: str) -> Floats | Unmeasured:
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if models.retrained is None:
            return NO_REFERENCE
        other = models.retrained_twin if model is models.retrained else models.retrained
        if other is None:
            return NO_TWIN
        return jensen_shannon_bits(outputs_on(model, rows, task).log_p, outputs_on(other, rows, task).log_p)

    def _reading(self, values: Floats, run: Run, purpose: str) -> Reading:
        level = self.parameters.level
        low, high = mean_interval(values, level=level, rng=generator_of(run, f"js_divergence/{purpose}"))
        return Reading(float(values.mean()), low, high, level, len(values))
