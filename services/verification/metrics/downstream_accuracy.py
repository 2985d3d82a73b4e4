"""Downstream accuracy: what a classifier learns from samples alone, tested on real records."""

import math
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.judge import train_judge
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import MOST_EPOCHS, NO_SAMPLES, SampleParameters, judge_of, kept, remembered, sampled
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.outputs import by_id, rows_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import clopper_pearson, paired_proportions


@METRICS.register("downstream_accuracy")
class DownstreamAccuracy(Metric):
    """Accuracy on held-out records of retained classes of a classifier trained on samples: more is better, the original's is the measure.

    Samples carry the label they were made for, or where the generator takes none the label that an independent classifier gives them; those of
    forgotten classes are left out.
    """

    tasks = frozenset({"image_generation"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "min"
    splits = ("retain_test",)

    class Parameters(SampleParameters):
        """Parameters of the downstream classifier."""

        records: int = Field(20_000, ge=500, le=10_000_000, description="Samples that the classifier is shown in all, in at most 20 passes.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the accuracy with its Clopper-Pearson interval."""
        right = self._right(models.unlearned, data, task, run, split)
        if isinstance(right, Unmeasured):
            return right
        low, high = clopper_pearson(int(right.sum()), len(right), level=self.parameters.level)
        return Reading(float(right.mean()), low, high, self.parameters.level, len(right))

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the difference of the two accuracies on the same records with Tango's score interval."""
        pair = all_measured(self._right(model, data, task, run, split) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        gained, lost = int(np.sum(pair[0] & ~pair[1])), int(np.sum(pair[1] & ~pair[0]))
        low, high = paired_proportions(gained, lost, len(pair[0]), level=self.parameters.level)
        return Reading((gained - lost) / len(pair[0]), low, high, self.parameters.level, len(pair[0]))

    def _right(self, model: nn.Module, data: Splits, task: Task, run: Run, split: str) -> np.ndarray | Unmeasured:
        """Return whether the classifier trained on samples of `model` is right on each held-out record, (n,) bool."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        p = self.parameters
        key = ("downstream_accuracy", split, p.samples, p.records)
        return remembered(run, model, data, rows, key, lambda: self._learned(model, data, task, run, rows))

    def _learned(self, model: nn.Module, data: Splits, task: Task, run: Run, rows: Split) -> np.ndarray | Unmeasured:
        judge = judge_of(data, task, run)
        if isinstance(judge, Unmeasured):
            return judge
        p = self.parameters
        images, labels = sampled(model, data, run, p.samples, retained_only=True)
        seen = judge.look(images)
        usable = torch.ones(len(images), dtype=torch.bool) if labels is not None else kept(seen, data)
        names = seen.classes if labels is None else labels.cpu()
        made = Split(images.cpu()[usable].to(run.device), names[usable].to(run.device), tuple(f"s{row:06}" for row in range(int(usable.sum()))))
        if len(made) < 2:
            return NO_SAMPLES
        epochs = min(MOST_EPOCHS, max(1, math.ceil(p.records / len(made))))
        student = train_judge(made, task.outputs, run, "evaluate/downstream", epochs=epochs)
        held = by_id(rows)
        return (student.look_at_records(held).classes == held.y.cpu()).numpy()
