"""Fréchet distance between samples and real records, in the features of the project's own classifier.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017 (the distance).
Differs: no Inception network; the numbers are comparable within one evaluation, not with an Inception FID.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import FeaturesAsTheyAre, SampleParameters, features_beside
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.scores import Floats

RESAMPLES = 20


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Return the Fréchet distance of features (n, d) and (m, d) float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415  two seconds that every runner would wait

    metric = FrechetInceptionDistance(feature=FeaturesAsTheyAre(real.shape[1]))
    metric.update(real, real=True)
    metric.update(made, real=False)
    return max(0.0, float(metric.compute()))


@METRICS.register("feature_fid")
class FeatureFID(Metric):
    """Fréchet distance of samples to held-out records of retained classes: 0 alike, more is worse; not comparable with an Inception FID.

    Samples that the classifier calls forgotten are left out, so that forgetting by itself does not change the number. The interval is a bootstrap
    over records and samples, moved back by its own bias: the distance of few samples is too great, and that of resampled ones more so.
    """

    tasks = frozenset({"image_generation"})
    unit = "squared feature distance"
    bounds = (0.0, float("inf"))
    direction: ClassVar[Direction] = "max"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("retain_test",)

    class Parameters(SampleParameters):
        """Parameters of the distance."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the distance with a bootstrap interval."""
        p = self.parameters
        found = features_beside(models.unlearned, data, task, run, p.samples, split)
        if isinstance(found, Unmeasured):
            return found
        real, made = found
        rng, value = generator_of(run, "feature_fid"), frechet_distance(real, made)
        drawn: Floats = np.array([frechet_distance(_again(real, rng), _again(made, rng)) for _ in range(RESAMPLES)], dtype=np.float64)
        low, high = percentile_interval(drawn - float(drawn.mean()) + value, level=p.level, around=value)
        detail = {"real": len(real), "samples": len(made), "note": "not comparable with Inception FID"}
        return Reading(value, low, high, p.level, len(made), detail)


def _again(rows: Tensor, rng: np.random.Generator) -> Tensor:
    """Return as many rows, drawn with replacement."""
    return rows[torch.from_numpy(rng.integers(len(rows), size=len(rows)))]
