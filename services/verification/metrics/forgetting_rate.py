"""F_r: what an attack on the original model's outputs calls the forgotten records once they pass through the unlearned model.

Source: code released with arXiv 2410.23693 (layer-wise relevance path perturbation).
"""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.class_attack import FEW, ClassAttackParameters, class_by_class, class_records
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import outputs_on
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import clopper_pearson
from services.verification.statistics.learned import linear_attack

LEAST = 2


@METRICS.register("forgetting_rate")
class ForgettingRate(Metric):
    """F_r, the share of the class's training records called non-members: 0 none, 1 all. It never gates, for it follows output shape, not memory.

    A linear support vector machine is fitted on the original model's standardised probabilities, class-c train against class-c held-out, as many
    of each; several classes are pooled. Runs that forgot have scored .01 and runs that did not .99. `detail.null` is the same share of the class's
    held-out records, which were never learned: where it equals the value, the value says nothing of memory. `detail.few_members` warns below 50.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train",)

    class Parameters(ClassAttackParameters):
        """Parameters of F_r."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:  # noqa: ARG002
        """Return the share with its Clopper-Pearson interval, which leaves the chance in the fit aside; class requests only."""
        counts = self._counts(models.unlearned, models.original, data, task, split)
        if isinstance(counts, Unmeasured):
            return counts
        (called, count), (called_held, held), least = counts
        level = self.parameters.level
        low, high = clopper_pearson(called, count, level=level)
        null = clopper_pearson(called_held, held, level=level)
        detail = {
            "null": {"value": called_held / held, "low": null.low, "high": null.high, "n": held},
            "fitted_rows_a_side": least,
            "few_members": least < FEW,
        }
        return Reading(called / count, low, high, level, count, detail)

    def _counts(
        self, model: nn.Module, original: nn.Module, data: Splits, task: Task, split: str
    ) -> tuple[tuple[int, int], tuple[int, int], int] | Unmeasured:
        """Return called and all training records, called and all held-out records, and the rows a side that the smallest fit had."""
        records = class_records(data, split)
        if isinstance(records, Unmeasured):
            return records
        before, held_before, after, held_after = (outputs_on(m, part, task) for m in (original, model) for part in records)
        fitted = class_by_class((before.y, held_before.y), (np.exp(before.log_p), np.exp(held_before.log_p)), self.parameters, least=LEAST)
        if isinstance(fitted, Unmeasured):
            return fitted
        totals = np.zeros((2, 2), dtype=np.int64)
        for one in fitted:
            called = linear_attack(one.members, one.others, seed=self.parameters.seed)
            for k, (out, chosen) in enumerate(((after, one.inside), (held_after, one.outside))):
                totals[k] += called(np.exp(out.log_p[chosen])), int(chosen.sum())
        (called_train, train), (called_held, held) = totals.tolist()
        return (called_train, train), (called_held, held), min(len(one.members) for one in fitted)
