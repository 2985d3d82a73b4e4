"""Zero retrain forgetting: how close the outputs on forgotten records are to those of models that never learned anything.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023 (arXiv 2205.08096).
"""

from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from services.errors import ParameterOutOfRange
from services.learning.data import Split, Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.divergence import jensen_shannon_bits
from services.verification.statistics.intervals import mean_interval
from services.verification.statistics.scores import Floats


@METRICS.register("zrf")
class ZeroRetrainForgetting(Metric):
    """1 - mean Jensen-Shannon divergence, in bits, to randomly initialised teachers: 1 knows nothing, 0 is certain of everything.

    The aim is the retrained model's value, not 1. `detail.per_seed` holds the value for each teacher, `detail.spread` their standard deviation.
    Differs: the released code averages another divergence (`zrf_legacy`) over one teacher, the one that the method itself used.
    """

    tasks = frozenset({"classification"})
    unit = "bits"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train", "forget_test")

    class Parameters(Metric.Parameters):
        """Parameters of zero retrain forgetting."""

        teachers: int = Field(5, ge=5, le=50, description="Randomly initialised teachers to average over.")
        excluded_seeds: tuple[int, ...] = Field((), description="Seeds of teachers that the method used; a score with one of them is refused.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the score over `teachers` seeds, with the BCa interval of the mean over records.

        Raises:
            ParameterOutOfRange: a score seed is one of `excluded_seeds`.
        """
        values = self._per_teacher(models.unlearned, data, task, run, split)
        if isinstance(values, Unmeasured):
            return values
        return self._reading(values, run, split)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the difference of the two scores against the same teachers and rows."""
        mine = self._per_teacher(models.unlearned, data, task, run, split)
        theirs = self._per_teacher(versus, data, task, run, split)
        if isinstance(mine, Unmeasured):
            return mine
        if isinstance(theirs, Unmeasured):
            return theirs
        return self._reading(mine - theirs, run, f"{split}/paired")

    def _per_teacher(self, model: nn.Module, data: Splits, task: Task, run: Run, split: str) -> Floats | Unmeasured:
        """Return 1 - JS of every teacher and record, (K, n)."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if run.architecture is None:
            return Unmeasured("no_architecture")
        return np.stack([self._against(model, rows, task, run, f"zrf/{k}") for k in range(self.parameters.teachers)])

    def _against(self, model: nn.Module, rows: Split, task: Task, run: Run, purpose: str) -> Floats:
        seed = derived_seed(run.seed, purpose)
        if seed in self.parameters.excluded_seeds:
            raise ParameterOutOfRange(name="excluded_seeds", detail=f"the score seed {seed} is the seed of the method's own teacher")
        teacher = outputs_on(run.fresh_model(purpose), rows, task).log_p
        return 1.0 - jensen_shannon_bits(outputs_on(model, rows, task).log_p, teacher)

    def _reading(self, values: Floats, run: Run, purpose: str) -> Reading:
        per_record, per_seed = values.mean(axis=0), values.mean(axis=1)
        level = self.parameters.level
        low, high = mean_interval(per_record, level=level, rng=generator_of(run, f"zrf/interval/{purpose}"))
        detail = {"per_seed": per_seed.tolist(), "spread": float(per_seed.std(ddof=1)), "teachers": len(per_seed)}
        return Reading(float(per_record.mean()), low, high, level, len(per_record), detail)
