"""The zero retrain forgetting score as the code released with its paper computes it; only for comparison with published numbers.

Source: code of Chundawat et al., arXiv 2205.08096.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from services.errors import ParameterOutOfRange
from services.learning.data import Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.divergence import legacy_divergence
from services.verification.statistics.intervals import mean_interval


@METRICS.register("zrf_legacy")
class ZeroRetrainForgettingLegacy(Metric):
    """1 - half the sum of KL(m||p) and KL(m||q), each divided by records and classes: at most 1, unbounded below, no gate.

    It cannot be converted into `zrf`: the divergence is another one, and its scale depends on the number of classes.
    """

    tasks = frozenset({"classification"})
    unit = "nats per class"
    bounds = (float("-inf"), 1.0)
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train", "forget_test")

    class Parameters(Metric.Parameters):
        """Parameters of the legacy score."""

        excluded_seeds: tuple[int, ...] = Field((), description="Seeds of teachers that the method used; a score with one of them is refused.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the score against one teacher; unmeasured where a probability is exactly 0 and the score is minus infinity.

        Raises:
            ParameterOutOfRange: the score seed is one of `excluded_seeds`.
        """
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if run.architecture is None:
            return Unmeasured("no_architecture")
        seed = derived_seed(run.seed, "zrf/0")
        if seed in self.parameters.excluded_seeds:
            raise ParameterOutOfRange(name="excluded_seeds", detail=f"the score seed {seed} is the seed of the method's own teacher")
        teacher = outputs_on(run.fresh_model("zrf/0"), rows, task).log_p
        values = 1.0 - legacy_divergence(outputs_on(models.unlearned, rows, task).log_p, teacher)
        if not np.isfinite(values).all():
            return Unmeasured("not_finite")
        level = self.parameters.level
        low, high = mean_interval(values, level=level, rng=generator_of(run, f"zrf_legacy/{split}"))
        return Reading(float(values.mean()), low, high, level, len(values))
