"""F_s: how far from chance an attack on the losses tells the forgotten class's training records from its held-out ones.

Source: code released with arXiv 2410.23693 (layer-wise relevance path perturbation), after the attack of the NeurIPS 2023 unlearning competition.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.learned import SplitCounts, advantage_interval, balanced, resampled_rows, shuffled_accuracy
from services.verification.statistics.scores import negative_losses

FEW = 50
LEAST = 5


@METRICS.register("forgetting_score")
class ForgettingScore(Metric):
    """F_s = |0.5 - accuracy| of a logistic regression on cross-entropies, class-c train against class-c held-out: 0 chance, .5 always right.

    Ten stratified shuffled splits, as many of each side; several classes are fitted apart and pooled. It is blind to the sign: over-forgetting
    separates as well as memory does. The aim is the retrained model's value. `detail.few_members` warns below 50 records a side.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 0.5)
    direction: ClassVar[Direction] = "band"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    class Parameters(Metric.Parameters):
        """Parameters of F_s."""

        rows: int = Field(1500, ge=10, le=10_000, description="At most this many records a side and class.")
        seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of the balanced sample and of the splits.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the score with a bootstrap interval over records, the fits held; class requests only."""
        tested = self._tested(models.unlearned, data, task, split)
        if isinstance(tested, Unmeasured):
            return tested
        accuracy, level = float(tested.accuracy()[0]), self.parameters.level
        low, high = advantage_interval(tested, level=level, rng=generator_of(run, "forgetting_score"))
        side = len(tested.times) // 2
        return Reading(abs(0.5 - accuracy), low, high, level, side, {"accuracy": accuracy, "few_members": side < FEW})

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the difference of the two scores on the same records and splits, records resampled in pairs."""
        mine, theirs = (self._tested(model, data, task, split) for model in (models.unlearned, versus))
        if isinstance(mine, Unmeasured):
            return mine
        if isinstance(theirs, Unmeasured):
            return theirs
        value = float(abs(0.5 - mine.accuracy()[0]) - abs(0.5 - theirs.accuracy()[0]))
        counts = resampled_rows(len(mine.times), rng=generator_of(run, "forgetting_score/paired"))
        drawn = np.abs(0.5 - mine.accuracy(counts)) - np.abs(0.5 - theirs.accuracy(counts))
        level = self.parameters.level
        low, high = (float(q) for q in np.quantile(drawn, [(1.0 - level) / 2, (1.0 + level) / 2]))
        return Reading(value, min(low, value), max(high, value), level, len(mine.times) // 2)

    def _tested(self, model: nn.Module, data: Splits, task: Task, split: str) -> SplitCounts | Unmeasured:
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if data.kind != "class":
            return Unmeasured("class_requests_only")
        held_out = rows_of(data, "forget_test")
        if isinstance(held_out, Unmeasured):
            return Unmeasured("no_held_out_records_of_these_classes")
        inside, outside = (outputs_on(model, part, task) for part in (rows, held_out))
        found: list[SplitCounts] = []
        for label in np.unique(inside.y).tolist():
            losses = [-negative_losses(out.z, out.y)[out.y == label] for out in (inside, outside)]
            members, others = balanced(*losses, rows=self.parameters.rows, seed=self.parameters.seed)
            if len(members) < LEAST:
                return Unmeasured("too_few_records")
            found.append(shuffled_accuracy(members, others, seed=self.parameters.seed))
        return SplitCounts(np.concatenate([part.times for part in found]), np.concatenate([part.right for part in found]))
