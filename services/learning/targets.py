"""Real-valued targets: how they are scaled, and the loss that predictions of them are scored by."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Loss = Literal["l1", "mse", "huber", "quantile"]
MEDIAN = 0.5


class Targets(BaseModel):
    """How real-valued targets are learned: as (y - mean) / std, by `loss`. Part of the recipe, so that every retraining repeats it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Loss = Field("mse", description="Absolute, squared or Huber error, or the quantile (pinball) loss of `quantiles`.")
    mean: float = Field(0.0, allow_inf_nan=False, description="Subtracted from every target. Take it from public knowledge, not from the records.")
    std: float = Field(1.0, gt=0, allow_inf_nan=False, description="Divisor of every target after that.")
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.1, MEDIAN, 0.9), min_length=1, max_length=99, description="Quantiles that are predicted for each step; quantile loss only."
    )

    @model_validator(mode="after")
    def _quantiles_rise(self) -> "Targets":
        if list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError("quantiles must rise, each named once")
        return self

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles that the model predicts for each step: one, the middle, where the loss is not the quantile loss."""
        return self.quantiles if self.loss == "quantile" else (MEDIAN,)

    def scaled(self, y: Tensor) -> Tensor:
        """Return targets in the units that the model is trained in."""
        return (y - self.mean) / self.std

    def points(self, predicted: Tensor) -> Tensor:
        """Return one number for each step, (n, H), of predictions (n, H * Q): the quantile nearest the middle where there are several."""
        levels = self.levels
        middle = min(range(len(levels)), key=lambda place: abs(levels[place] - MEDIAN))
        return predicted.view(len(predicted), -1, len(levels))[..., middle]

    def unscaled(self, outputs: Tensor) -> Tensor:
        """Return outputs of the model in the units of the targets."""
        return outputs * self.std + self.mean


def errors(loss: Loss, levels: Sequence[float], predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss of every prediction, (B, H, Q), of `predicted` (B, H, Q) for `wanted` (B, H, Q) or (B, H, 1); 0 where they are equal.

    Huber's error turns from squared to absolute at 1; the quantile loss is max(q (wanted - predicted), (q - 1) (wanted - predicted)).
    """
    gap = wanted - predicted
    if loss == "l1":
        return gap.abs()
    if loss == "mse":
        return gap.square()
    if loss == "huber":
        size = gap.abs()
        return torch.where(size <= 1, 0.5 * size.square(), size - 0.5)
    level = torch.tensor(levels, dtype=gap.dtype, device=gap.device)
    return torch.maximum(level * gap, (level - 1) * gap)
