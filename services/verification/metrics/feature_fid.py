"""Fréchet distance between samples and real records, in the features of the project's own classifier.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017 (the distance).
Differs: no Inception network; the numbers are comparable within one evaluation, not with an Inception FID.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import FeaturesAsTheyAre, SampleParameters, features_beside, remembered
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, rows_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.scores import Floats

RESAMPLES = 20
NO_DISTANCE = Unmeasured("the_original_lies_at_no_distance")


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

        scale: Literal["features", "original"] = Field(
            "features", description="Unit: squared feature distance, or the distance of the original, so that it is 1 and one limit serves any set."
        )

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the distance with a bootstrap interval; with scale original, `detail.distance` is the distance itself."""
        pair = self._scaled(models, data, task, run, split, models.unlearned)
        if isinstance(pair, Unmeasured):
            return pair
        unit, found = pair
        value, drawn = found.value / unit, found.drawn / unit
        low, high = percentile_interval(drawn - float(drawn.mean()) + value, level=self.parameters.level, around=value)
        detail = {"real": found.real, "samples": found.samples, "distance": found.value, "note": "not comparable with Inception FID"}
        return Reading(value, low, high, self.parameters.level, found.samples, detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return the distance less that of `versus`, both to the same records and resampled together."""
        pair = all_measured(self._scaled(models, data, task, run, split, model) for model in (models.unlearned, versus))
        if isinstance(pair, Unmeasured):
            return pair
        (unit, mine), (_, theirs) = pair
        value, drawn = (mine.value - theirs.value) / unit, (mine.drawn - theirs.drawn) / unit
        low, high = percentile_interval(drawn - float(drawn.mean()) + value, level=self.parameters.level, around=value)
        return Reading(value, low, high, self.parameters.level, min(mine.samples, theirs.samples))

    def _scaled(self, models: Models, data: Splits, task: Task, run: Run, split: str, model: nn.Module) -> tuple[float, "Distance"] | Unmeasured:
        """Return the unit, and the distance of `model` in squared features."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        count = self.parameters.samples

        def of(one: nn.Module) -> Distance | Unmeasured:
            return remembered(run, one, data, rows, ("feature_fid", split, count), lambda: distance_of(one, data, task, run, count, split))

        found = all_measured(of(one) for one in (model, *([models.original] if self.parameters.scale == "original" else [])))
        if isinstance(found, Unmeasured):
            return found
        unit = found[1].value if len(found) > 1 else 1.0
        return (unit, found[0]) if unit > 0 else NO_DISTANCE


@dataclass(frozen=True, slots=True)
class Distance:
    """The distance of one model, that of each resampling, (r,), and how many records and samples are behind it."""

    value: float
    drawn: Floats
    real: int
    samples: int


def distance_of(model: nn.Module, data: Splits, task: Task, run: Run, count: int, split: str) -> Distance | Unmeasured:
    """Return the distance of `count` samples of `model` to the records of `split`. Every model is resampled by the same draws."""
    found = features_beside(model, data, task, run, count, split)
    if isinstance(found, Unmeasured):
        return found
    real, made = found
    rng = generator_of(run, "feature_fid")
    drawn: Floats = np.array([frechet_distance(_again(real, rng), _again(made, rng)) for _ in range(RESAMPLES)], dtype=np.float64)
    return Distance(frechet_distance(real, made), drawn, len(real), len(made))


def _again(rows: Tensor, rng: np.random.Generator) -> Tensor:
    """Return as many rows, drawn with replacement."""
    return rows[torch.from_numpy(rng.integers(len(rows), size=len(rows)))]
