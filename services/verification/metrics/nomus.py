"""NoMUS: held-out accuracy and indiscernibility in one number, as tables of published methods print it.

Source: Choi and Na, "Towards Machine Unlearning Benchmarks: Forgetting the Personal Identities in Facial Recognition Systems", arXiv 2311.02240.
"""

from typing import ClassVar

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.class_attack import FEW, ClassAttackParameters
from services.verification.loss_attack import tested_on_losses
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.attack_accuracy import nomus, nomus_interval


@METRICS.register("nomus")
class NormalisedUnlearningScore(Metric):
    """.5 held-out accuracy + .5 (1 - 2 |MIA - .5|): 1 every answer right and no record told apart, 0 every answer wrong and all told apart.

    For tables only, and never a gate: a model that forgot nothing but never learned by heart scores as high as a retrained one. Of class requests
    the accuracy is that of the retained classes. `detail` has both halves; `few_members` warns below 50 records a side.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    class Parameters(ClassAttackParameters):
        """Parameters of NoMUS."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the score with an interval that holds both halves."""
        p, held_out = self.parameters, rows_of(data, "retain_test")
        if isinstance(held_out, Unmeasured):
            return held_out
        tested = tested_on_losses(models.unlearned, data, task, split, p)
        if isinstance(tested, Unmeasured):
            return tested
        right = outputs_on(models.unlearned, held_out, task).right
        test, attack, side = float(right.mean()), float(tested.accuracy()[0]), len(tested.times) // 2
        low, high = nomus_interval(int(right.sum()), len(right), tested, level=p.level, rng=generator_of(run, "nomus"))
        detail = {"test_accuracy": test, "attack_accuracy": attack, "few_members": side < FEW}
        return Reading(nomus(test, attack), low, high, p.level, side, detail)
