"""Prediction distribution: which retained classes the forgotten records are now given to.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023.
"""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.bootstrap import entropy_interval, normalised_entropy, paired_entropy_interval
from services.verification.statistics.intervals import clopper_pearson
from services.verification.statistics.scores import Integers


@METRICS.register("prediction_distribution")
class PredictionDistribution(Metric):
    """Normalised entropy of the largest logit's class among the retained classes: 1 spread evenly, 0 all on one class.

    A spike on one class tells an observer what was forgotten. `detail.largest_share` is that class's share with its Clopper-Pearson interval, and
    `detail.shares` the histogram; the aim is the retrained model's. Either side of its band is a tell-tale, so the metric has no sign.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train", "forget_test")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the normalised entropy with its bootstrap interval."""
        asked = _asked(data, task, split)
        if isinstance(asked, Unmeasured):
            return asked
        rows, retained = asked
        counts = np.bincount(_choices(models.unlearned, rows, task, retained), minlength=len(retained))
        level = self.parameters.level
        low, high = entropy_interval(counts, level=level, rng=generator_of(run, f"prediction_distribution/{split}"))
        shares = {str(label): float(count / counts.sum()) for label, count in zip(retained, counts, strict=True)}
        largest = clopper_pearson(int(counts.max()), len(rows), level=level)
        detail = {
            "largest_share": float(counts.max() / counts.sum()),
            "largest_share_low": largest.low,
            "largest_share_high": largest.high,
            "largest_class": str(retained[int(counts.argmax())]),
            "shares": shares,
        }
        return Reading(float(normalised_entropy(counts)), low, high, level, len(rows), detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the difference of the two entropies, records resampled in pairs; `detail` has that of the largest shares."""
        asked = _asked(data, task, split)
        if isinstance(asked, Unmeasured):
            return asked
        rows, retained = asked
        mine, theirs = (_choices(model, rows, task, retained) for model in (models.unlearned, versus))
        sizes = [np.bincount(column, minlength=len(retained)) for column in (mine, theirs)]
        first, second = (float(normalised_entropy(counts)) for counts in sizes)
        level = self.parameters.level
        rng = generator_of(run, f"prediction_distribution/{split}/paired")
        low, high = paired_entropy_interval(mine, theirs, len(retained), level=level, rng=rng)
        value = first - second
        detail = {"largest_share": float((sizes[0].max() - sizes[1].max()) / len(rows))}
        return Reading(value, min(low, value), max(high, value), level, len(rows), detail)


def _asked(data: Splits, task: Task, split: str) -> tuple[Split, list[int]] | Unmeasured:
    """Return the records of `split` and the classes that the request does not forget."""
    rows = rows_of(data, split)
    if isinstance(rows, Unmeasured):
        return rows
    retained = [label for label in range(task.outputs) if label not in data.classes]
    return (rows, retained) if len(retained) > 1 else Unmeasured("too_few_retained_classes")


def _choices(model: nn.Module, rows: Split, task: Task, retained: list[int]) -> Integers:
    """Return for each row the position in `retained` of the class with the largest logit, (n,)."""
    return outputs_on(model, rows, task).z[:, retained].argmax(axis=1).astype(np.int64)
