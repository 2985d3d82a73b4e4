"""Privacy leak: how far membership can be told from where it could on a model that never saw the records.

Source: Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", 2024, as in the repository open-unlearning: with min-k's AUC.
"""

from typing import ClassVar

import numpy as np

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.distance import counterpart
from services.verification.least_likely import MinKParameters, auc, drawn_aucs, scores_of
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.language import privacy_leak

BOUNDLESS = Unmeasured("reference_auc_is_one")


@METRICS.register("privleak")
class PrivacyLeak(Metric):
    """100 ((1 - AUC) - (1 - AUC_r)) / (1 - AUC_r): 0 as the retrained model, below it known, above it over-forgotten; `detail` has both AUCs."""

    tasks = frozenset({"language_model"})
    unit = "percent"
    bounds = (-float("inf"), float("inf"))
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "band"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train",)

    class Parameters(MinKParameters):
        """Parameters of `privleak`."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return it with its percentile interval, the records of both models resampled."""
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        found = [scores_of(model, data, split, self.parameters.share, task) for model in (models.unlearned, other)]
        mine, theirs = found
        if isinstance(mine, Unmeasured):
            return mine
        if isinstance(theirs, Unmeasured):
            return theirs
        ours, reference = auc(*mine), auc(*theirs)
        if reference >= 1:
            return BOUNDLESS
        value, level = privacy_leak(ours, reference), self.parameters.level
        drawn = zip(drawn_aucs(*mine, generator_of(run, "privleak")), drawn_aucs(*theirs, generator_of(run, "privleak/reference")), strict=True)
        spread = np.array([privacy_leak(float(one), float(base)) for one, base in drawn if base < 1])
        low, high = percentile_interval(spread, level=level, around=value) if len(spread) else (value, value)
        return Reading(value, low, high, level, len(mine[0]), {"auc": ours, "reference_auc": reference})
