"""Forget quality: whether the truth ratios on forgotten records could be those of a model that never saw them.

Source: Maini et al., "TOFU", COLM 2024: the p-value of a two-sample Kolmogorov-Smirnov test against the retained-only model.
Differs: the distance D is printed beside it, for with few questions p is large whatever happened.
"""

from typing import ClassVar

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.answers import asked_of
from services.verification.distance import counterpart
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.language import same_distribution
from services.verification.truth import TruthParameters, truth_ratios

RESAMPLES = 200


@METRICS.register("forget_quality")
class ForgetQuality(Metric):
    """The p-value that truth ratios of this and of the retrained model are of one distribution: above .05 they cannot be told apart.

    A large p is no proof with few records. `detail.distance` is the test's D with its interval; the retrained model is compared with a second one.
    """

    tasks = frozenset({"language_model"})
    unit = "p-value"
    bounds = (0.0, 1.0)
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    class Parameters(TruthParameters):
        """Parameters of `forget_quality`."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return p, its percentile interval over resampled records, and D."""
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(asked, Unmeasured):
            return asked
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        mine, theirs = (truth_ratios(model, asked, self.parameters, task, run) for model in (models.unlearned, other))
        distance, p = same_distribution(mine, theirs)
        rng, level = generator_of(run, "forget_quality"), self.parameters.level
        drawn = [same_distribution(rng.choice(mine, len(mine)), rng.choice(theirs, len(theirs))) for _ in range(RESAMPLES)]
        low, high = percentile_interval([one for _, one in drawn], level=level, around=p)  # pyright: ignore[reportArgumentType]
        bounds = percentile_interval([one for one, _ in drawn], level=level, around=distance)  # pyright: ignore[reportArgumentType]
        return Reading(p, low, high, level, len(mine), {"distance": distance, "distance_interval": list(bounds)})
