"""Zero retrain forgetting: how close the outputs on forgotten records are to those of models that never learned anything.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023 (arXiv 2205.08096).
"""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Models
from services.verification.reading import Reading, Unmeasured
from services.verification.record_mean import RecordMean
from services.verification.statistics.divergence import jensen_shannon_bits
from services.verification.statistics.scores import Floats
from services.verification.untrained import UntrainedParameters, likeness


@METRICS.register("zrf")
class ZeroRetrainForgetting(RecordMean):
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

    class Parameters(UntrainedParameters):
        """Parameters of zero retrain forgetting."""

        teachers: int = Field(5, ge=5, le=50, description="Randomly initialised teachers to average over.")

    def values(self, model: nn.Module, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Floats | Unmeasured:  # noqa: ARG002
        """Return 1 - JS of every teacher and record, (K, n).

        Raises:
            ParameterOutOfRange: a score seed is one of `excluded_seeds`.
        """
        p = self.parameters
        return likeness(jensen_shannon_bits, model, data, task, run, split=split, teachers=p.teachers, excluded_seeds=p.excluded_seeds)

    def reading(self, values: Floats, run: Run, purpose: str) -> Reading:
        """Return the mean over teachers and records, with the BCa interval of the mean over records."""
        per_seed = values.mean(axis=1)
        detail = {"per_seed": per_seed.tolist(), "spread": float(per_seed.std(ddof=1)), "teachers": len(per_seed)}
        return replace(super().reading(values.mean(axis=0), run, f"interval/{purpose}"), detail=detail)
