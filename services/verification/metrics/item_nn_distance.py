"""Item distance: how near a generator comes to the forgotten images, against how near it comes to images that it never saw."""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from services.learning.data import Split, Splits
from services.learning.gan import Draws, as_gan, images_of
from services.learning.inversion import invert
from services.learning.run import Run
from services.learning.task import Task
from services.verification.generator_samples import RECORD_REQUESTS, SampleParameters, flat, sampled
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import by_id, generator_of, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import percentile_interval
from services.verification.statistics.scores import Floats

RESAMPLES = 999
NEAR = 0.05
PAIRED = 512


@METRICS.register("item_nn_distance")
class ItemDistance(Metric):
    """Mean distance of forgotten images to the nearest sample over the same of held-out images: 1 as of the unseen, below 1 still known.

    Samples are free draws, and the images of the latents by which the original comes nearest to each image. Distances are root mean squares over
    pixels. `detail` holds both means and the shares below tau, the distance that 95 % of pairs of retained images exceed.
    """

    tasks = frozenset({"image_generation"})
    unit = "ratio"
    bounds = (0.0, float("inf"))
    direction: ClassVar[Direction] = "band"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train",)

    class Parameters(SampleParameters):
        """Parameters of the item distance."""

        rows: int = Field(64, ge=8, le=5000, description="At most so many forgotten, and as many held-out images.")
        inv_steps: int = Field(100, ge=0, le=5000, description="Steps of the inversion; 0 looks at free draws only.")
        inv_restarts: int = Field(2, ge=1, le=64, description="Starts of the inversion.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:  # noqa: ARG002
        """Return the ratio of the means with a bootstrap interval over both sets of images."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        if data.kind == "class":
            return RECORD_REQUESTS
        held_out = rows_of(data, "test")
        if isinstance(held_out, Unmeasured):
            return held_out
        p = self.parameters
        free = sampled(models.unlearned, data, run, p.samples, retained_only=False)[0].flatten(1)
        items, others = (
            by_id(side, at_most=p.rows, generator=run.stream(f"item_nn_distance/{name}")) for side, name in ((rows, split), (held_out, "test"))
        )
        near, far = (self._nearest(models, side, free, run) for side in (items, others))
        rng = generator_of(run, "item_nn_distance")
        drawn = _resampled_means(near, rng) / _resampled_means(far, rng)
        value = float(near.mean() / far.mean())
        low, high = percentile_interval(drawn, level=p.level, around=value)
        tau = _tau(by_id(data.retain, at_most=PAIRED, generator=run.stream("item_nn_distance/retain")))
        detail = {"distance": float(near.mean()), "held_out_distance": float(far.mean()), "tau": tau}
        shares = {"share_below_tau": float((near < tau).mean()), "held_out_share_below_tau": float((far < tau).mean())}
        return Reading(value, low, high, p.level, len(items), {**detail, **shares})

    def _nearest(self, models: Models, rows: Split, free: Tensor, run: Run) -> Floats:
        """Return the distance of each image of `rows` to the nearest sample, (n,)."""
        p, wanted = self.parameters, flat(rows)
        least = torch.cdist(wanted, free).min(dim=1).values
        if p.inv_steps:
            original, subject = as_gan(models.original), as_gan(models.unlearned)
            batch = rows.batch(torch.arange(len(rows)))
            y = batch.y if original.conditional else None
            stream = run.stream("item_nn_distance/inversion")
            found = invert(original, batch.x, y, run, steps=p.inv_steps, restarts=p.inv_restarts, lr=0.05, generator=stream, stage="evaluate/invert")
            again = images_of(subject, Draws(found.z, y)).flatten(1)
            least = torch.minimum(least, (wanted - again).norm(dim=1))
        return least.double().cpu().numpy() / np.sqrt(wanted.shape[1])


def _tau(retain: Split) -> float:
    """Return the distance that all but 5 % of pairs exceed."""
    x = flat(retain)
    return float(torch.quantile(torch.pdist(x).double(), NEAR)) / float(np.sqrt(x.shape[1])) if len(x) > 1 else 0.0


def _resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    return values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
