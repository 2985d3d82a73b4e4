"""Min-k: how well the least likely tokens of an answer tell forgotten records from records that nobody trained on.

Source: Shi et al., "Detecting Pretraining Data from Large Language Models", ICLR 2024.
"""

from typing import ClassVar

from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.least_likely import MinKParameters, scores_of, separation, separation_difference
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.reading import Reading, Unmeasured


@METRICS.register("min_k")
class MinK(Metric):
    """AUC of the mean of the lowest k % token log-probabilities, forgotten records against non-members: 1 told apart, .5 not; far below .5 is a trace too."""

    tasks = frozenset({"language_model"})
    unit = "AUC"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    splits = ("forget_train",)

    class Parameters(MinKParameters):
        """Parameters of `min_k`."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with its bootstrap interval, both sides resampled."""
        found = scores_of(models.unlearned, data, split, self.parameters.share, task)
        return found if isinstance(found, Unmeasured) else separation(*found, run, level=self.parameters.level)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured:
        """Return the difference of the areas on the same records."""
        mine, theirs = (scores_of(model, data, split, self.parameters.share, task) for model in (models.unlearned, versus))
        if isinstance(mine, Unmeasured):
            return mine
        return theirs if isinstance(theirs, Unmeasured) else separation_difference(mine, theirs, run, level=self.parameters.level)
