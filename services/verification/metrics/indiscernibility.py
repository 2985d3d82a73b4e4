"""Indiscernibility: how near a coin an attack on the losses comes, as tables of published methods print it.

Source: Cadet et al., "Deep Unlearn: Benchmarking Machine Unlearning for Image Classification", arXiv 2410.01276.
"""

from typing import ClassVar

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.class_attack import FEW, ClassAttackParameters
from services.verification.loss_attack import tested_on_losses
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.attack_accuracy import indiscernibility, indiscernibility_interval


@METRICS.register("indiscernibility")
class Indiscernibility(Metric):
    """1 - |MIA - .5| / .5 of an attack's share of right calls, forgotten against held-out records: 1 no better than a coin, 0 always right.

    For tables only, and never a gate: it is blind to the sign, and a retrained model need not have 1. `detail.few_members` warns below 50 records a
    side, where chance alone is far from 1.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    class Parameters(ClassAttackParameters):
        """Parameters of the indiscernibility."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the indiscernibility with a bootstrap interval over records, the fits held."""
        p = self.parameters
        tested = tested_on_losses(models.unlearned, data, task, split, p)
        if isinstance(tested, Unmeasured):
            return tested
        attack, side = float(tested.accuracy()[0]), len(tested.times) // 2
        low, high = indiscernibility_interval(tested, level=p.level, rng=generator_of(run, "indiscernibility"))
        return Reading(indiscernibility(attack), low, high, p.level, side, {"attack_accuracy": attack, "few_members": side < FEW})
