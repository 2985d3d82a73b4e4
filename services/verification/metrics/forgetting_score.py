"""F_s: how far from chance an attack on the losses tells the forgotten class's training records from its held-out ones.

Source: code released with arXiv 2410.23693 (layer-wise relevance path perturbation), after the attack of the NeurIPS 2023 unlearning competition.
"""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.class_attack import FEW, ClassAttackParameters, class_by_class, class_records
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.learned import SplitCounts, advantage_interval, resampled_rows, shuffled_accuracy
from services.verification.statistics.scores import negative_losses

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

    class Parameters(ClassAttackParameters):
        """Parameters of F_s."""

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
        pair = all_measured(self._tested(model, data, task, split) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        mine, theirs = pair
        value = float(abs(0.5 - mine.accuracy()[0]) - abs(0.5 - theirs.accuracy()[0]))
        counts = resampled_rows(len(mine.times), rng=generator_of(run, "forgetting_score/paired"))
        drawn = np.abs(0.5 - mine.accuracy(counts)) - np.abs(0.5 - theirs.accuracy(counts))
        level = self.parameters.level
        low, high = percentile_interval(drawn, level=level, around=value)
        return Reading(value, low, high, level, len(mine.times) // 2)

    def _tested(self, model: nn.Module, data: Splits, task: Task, split: str) -> SplitCounts | Unmeasured:
        records = class_records(data, split)
        if isinstance(records, Unmeasured):
            return records
        inside, outside = (outputs_on(model, part, task) for part in records)
        losses = (-negative_losses(inside.z, inside.y), -negative_losses(outside.z, outside.y))
        sides = class_by_class((inside.y, outside.y), losses, self.parameters, least=LEAST)
        if isinstance(sides, Unmeasured):
            return sides
        found = [shuffled_accuracy(one.members, one.others, seed=self.parameters.seed) for one in sides]
        return SplitCounts(np.concatenate([part.times for part in found]), np.concatenate([part.right for part in found]))
