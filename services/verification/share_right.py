"""Metrics that are the share of records which the model labels as they are labelled."""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import Direction, Metric, Models
from services.verification.outputs import outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import clopper_pearson, paired_proportions


class ShareRight(Metric):
    """Share of right answers on `rows`; `detail` holds that of each class with its records. Two models are compared on the same rows."""

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"

    def rows(self, data: Splits, run: Run, split: str) -> Split | Unmeasured:  # noqa: ARG002
        """Return the records that are asked about."""
        return rows_of(data, split)

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the share of right answers with its Clopper-Pearson interval."""
        rows = self.rows(data, run, split)
        if isinstance(rows, Unmeasured):
            return rows
        out = outputs_on(models.unlearned, rows, task)
        right = out.right
        level = self.parameters.level
        classes = {
            str(label): {"value": float(right[out.y == label].mean()), "n": int(np.sum(out.y == label))} for label in np.unique(out.y).tolist()
        }
        low, high = clopper_pearson(int(right.sum()), len(out), level=level)
        return Reading(float(right.mean()), low, high, level, len(out), {"per_class": classes})

    def difference(
        self,
        models: Models,
        data: Splits,
        task: Task,
        run: Run,
        *,
        split: str,
        versus: nn.Module,
    ) -> Reading | Unmeasured | None:
        """Return the difference of the two shares on the same rows with Tango's score interval; `detail` has it per class."""
        rows = self.rows(data, run, split)
        if isinstance(rows, Unmeasured):
            return rows
        out = outputs_on(models.unlearned, rows, task)
        mine, theirs = out.right, outputs_on(versus, rows, task).right
        level = self.parameters.level

        def compared(chosen: np.ndarray) -> dict[str, float | int]:
            gained, lost = int(np.sum(mine & ~theirs & chosen)), int(np.sum(theirs & ~mine & chosen))
            count = int(chosen.sum())
            low, high = paired_proportions(gained, lost, count, level=level)
            return {"value": (gained - lost) / count, "low": low, "high": high, "n": count}

        whole = compared(np.ones(len(out), dtype=bool))
        classes = {str(label): compared(out.y == label) for label in np.unique(out.y).tolist()}
        return Reading(whole["value"], whole["low"], whole["high"], level, len(out), {"per_class": classes})
