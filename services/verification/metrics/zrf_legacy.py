"""The zero retrain forgetting score as the code released with its paper computes it; only for comparison with published numbers.

Source: code of Chundawat et al., arXiv 2205.08096.
"""

from typing import ClassVar

import numpy as np

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.reading import Reading, Unmeasured
from services.verification.record_mean import mean_reading
from services.verification.statistics.divergence import legacy_divergence
from services.verification.untrained import UntrainedParameters, likeness


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

    class Parameters(UntrainedParameters):
        """Parameters of the legacy score."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the score against one teacher; unmeasured where a probability is exactly 0 and the score is minus infinity.

        Raises:
            ParameterOutOfRange: the score seed is one of `excluded_seeds`.
        """
        p = self.parameters
        values = likeness(legacy_divergence, models.unlearned, data, task, run, split=split, teachers=1, excluded_seeds=p.excluded_seeds)
        if isinstance(values, Unmeasured):
            return values
        if not np.isfinite(values).all():
            return Unmeasured("not_finite")
        return mean_reading(values[0], run, f"zrf_legacy/{split}", level=p.level)
