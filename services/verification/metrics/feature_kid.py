"""Kernel distance between samples and real records, in the features of the project's own classifier; unbiased, so fit for few images.

Source: Bińkowski et al., "Demystifying MMD GANs", ICLR 2018 (arXiv 1801.01401).
Differs: no Inception network; the numbers are comparable within one evaluation only.
"""

import warnings
from typing import ClassVar

from pydantic import Field

from services.learning.data import Splits
from services.learning.modes import global_draws
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import FeaturesAsTheyAre, SampleParameters, features_beside
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import normal_quantile


@METRICS.register("feature_kid")
class FeatureKID(Metric):
    """Squared maximum mean discrepancy with the kernel (a.b/d + 1)^3: about 0 alike, more is worse; the unbiased estimate may fall below 0.

    Samples that the classifier calls forgotten are left out. Mean over random subsets; the interval is normal, with the spread over subsets.
    """

    tasks = frozenset({"image_generation"})
    unit = "squared kernel distance"
    bounds = (float("-inf"), float("inf"))
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("retain_test",)

    class Parameters(SampleParameters):
        """Parameters of the distance."""

        subsets: int = Field(20, ge=2, le=1000, description="Random subsets.")
        subset_size: int = Field(500, ge=10, le=10_000, description="Images of a subset, at most as many as there are.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean over subsets."""
        p = self.parameters
        found = features_beside(models.unlearned, data, task, run, p.samples, split)
        if isinstance(found, Unmeasured):
            return found
        real, made = found
        from torchmetrics.image.kid import KernelInceptionDistance  # noqa: PLC0415  two seconds that every runner would wait

        size = min(p.subset_size, len(real), len(made))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it warns that it keeps all features, which are few here
            metric = KernelInceptionDistance(feature=FeaturesAsTheyAre(real.shape[1]), subsets=p.subsets, subset_size=size)
        metric.update(real, real=True)
        metric.update(made, real=False)
        with global_draws(run.stream("feature_kid"), run.device):
            mean, spread = metric.compute()
        value, half = float(mean), normal_quantile(p.level) * float(spread)
        return Reading(value, value - half, value + half, p.level, len(made), {"real": len(real), "subset_size": size})
