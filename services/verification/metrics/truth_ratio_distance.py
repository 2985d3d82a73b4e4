"""Distance of truth ratios: how far those of this model on forgotten records are from those of a model that never saw them.

Source: the statistic of the test behind TOFU's forget quality (Maini et al., COLM 2024).
Differs: the distance itself, beside that of two retrained models, since a large p-value of few records shows nothing.
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


@METRICS.register("truth_ratio_distance")
class TruthRatioDistance(Metric):
    """The distance D of Kolmogorov and Smirnov: 0 where truth ratios are distributed as the retrained model's, 1 where they do not overlap.

    The retrained model's own reading is its distance from a second retrained one: below that no distance means anything.
    """

    tasks = frozenset({"language_model"})
    unit = "distance"
    bounds = (0.0, 1.0)
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    class Parameters(TruthParameters):
        """Parameters of `truth_ratio_distance`."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return D with its percentile interval, the same records drawn for both models."""
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(asked, Unmeasured):
            return asked
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        mine, theirs = (truth_ratios(model, asked, self.parameters, task, run) for model in (models.unlearned, other))
        value, rng = same_distribution(mine, theirs)[0], generator_of(run, "truth_ratio_distance")
        rows = [rng.integers(len(mine), size=len(mine)) for _ in range(RESAMPLES)]
        drawn = [same_distribution(mine[chosen], theirs[chosen])[0] for chosen in rows]
        low, high = percentile_interval(drawn, level=self.parameters.level, around=value)  # pyright: ignore[reportArgumentType]
        return Reading(value, low, high, self.parameters.level, len(mine))
