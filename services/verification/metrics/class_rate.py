"""Class rate: how often a generator still shows what it was to forget."""

from typing import ClassVar

import torch

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import CLASS_REQUESTS, SampleParameters, judge_of, kept, sampled
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.outputs import rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import clopper_pearson


@METRICS.register("class_rate")
class ClassRate(Metric):
    """Share of samples that an independent classifier calls a forgotten class: 1/C expected before; after, the retrained generator's, which is its error.

    A conditional generator is asked for every class alike, the forgotten ones too. `detail` holds the share of each class.
    """

    tasks = frozenset({"image_generation"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    splits = ("forget_train",)

    class Parameters(SampleParameters):
        """Parameters of the class rate."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the share with its Clopper-Pearson interval."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if data.kind != "class":
            return CLASS_REQUESTS
        judge = judge_of(data, task, run)
        if isinstance(judge, Unmeasured):
            return judge
        p = self.parameters
        seen = judge.look(sampled(models.unlearned, data, run, p.samples, retained_only=False)[0])
        shown = int((~kept(seen, data)).sum())
        counts = torch.bincount(seen.classes, minlength=task.outputs).tolist()
        low, high = clopper_pearson(shown, p.samples, level=p.level)
        return Reading(shown / p.samples, low, high, p.level, p.samples, {"per_class": {str(c): count / p.samples for c, count in enumerate(counts)}})
