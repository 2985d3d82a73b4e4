"""Accuracy on near-duplicates: is the model as ignorant of what is almost a forgotten record as it is of the record?

A model may be taught to answer like a retrained one on the listed records and on nothing else. That no reading on these records can show; the same
question about records that differ from them by a little noise does. The perturbation is that of corruption benchmarks: Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019 (arXiv 1903.12261).
"""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.verification.metric import METRICS, Metric
from services.verification.outputs import by_id, rows_of
from services.verification.reading import Unmeasured
from services.verification.share_right import ShareRight


@METRICS.register("near_duplicate_accuracy")
class NearDuplicateAccuracy(ShareRight):
    """Share of right answers on one near-duplicate of each record; the aim is the retrained model's share.

    The noise depends on the evaluation's seed, which no method and no operator knows before the plan is frozen. Records are perturbed in storage form:
    to pixels and features (n, *record) Gaussian noise is added, to each record with a deviation drawn from 0 to twice `share` of the spread of all
    values; of tokens (n, length) each is replaced with a chance of `share` by the token that another of the records has at the same place.
    """

    splits = ("forget_train", "forget_test")

    class Parameters(Metric.Parameters):
        """Parameters of the accuracy on near-duplicates."""

        share: float = Field(default=0.05, gt=0, le=0.5, description="Noise as a share of the spread of the values; of tokens, the share replaced.")

    def rows(self, data: Splits, run: Run, split: str) -> Split | Unmeasured:
        """Return a near-duplicate of each record under its label; the same ones for every model."""
        rows = rows_of(data, split)
        if isinstance(rows, Unmeasured):
            return rows
        rows = by_id(rows)
        generator = run.stream(f"near_duplicate_accuracy/{split}")
        x = rows.x.cpu()
        moved = (
            _noisy(x, self.parameters.share, generator)
            if x.is_floating_point() or x.dtype == torch.uint8
            else _swapped(x, self.parameters.share, generator)
        )
        return replace(rows, x=moved.to(rows.x.device), ids=tuple(f"{record}~near" for record in rows.ids))


def _noisy(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return x (n, *record) of pixels or features with Gaussian noise, in its own type; pixels stay from 0 to 255."""
    values = x.float()
    deviation = 2 * share * values.std(unbiased=False) * torch.rand(len(x), generator=generator)
    moved = values + deviation.reshape(-1, *[1] * (x.ndim - 1)) * torch.randn(x.shape, generator=generator)
    return moved.round().clamp(0, 255).to(x.dtype) if x.dtype == torch.uint8 else moved.to(x.dtype)


def _swapped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return x (n, length) of tokens, each replaced with a chance of `share` by that of another record at its place."""
    others = torch.randint(len(x), x.shape, generator=generator)
    return torch.where(torch.rand(x.shape, generator=generator) < share, x.gather(0, others), x)
