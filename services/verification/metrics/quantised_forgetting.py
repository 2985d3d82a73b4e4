"""Forgetting after quantisation: whether rounding the weights to 4 bits brings forgotten answers back.

Source: Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization", ICLR 2025.
Differs: plain rounding to the nearest of the levels of each row of a weight matrix, without calibration.
"""

import copy
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.learning.tokens import IGNORED
from services.verification.answers import asked_of, grouped_reading, mean_nlls
from services.verification.metric import METRICS, Direction, Metric, Models
from services.verification.reading import Reading, Unmeasured


@METRICS.register("quantised_forgetting")
class QuantisedForgetting(Metric):
    """Answer probability after rounding all weight matrices to 4 bits; `detail` has it before, and exact match before and after."""

    tasks = frozenset({"language_model"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    splits = ("forget_train", "retain_train")

    class Parameters(Metric.Parameters):
        """Parameters of `quantised_forgetting`."""

        bits: int = Field(4, ge=2, le=8, description="Bits of a weight.")
        rows: int = Field(400, ge=1, le=100_000, description="At most this many records, drawn by the seed.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the mean with its interval; the model itself is not changed."""
        asked = asked_of(data, split, run, at_most=self.parameters.rows)
        if isinstance(asked, Unmeasured):
            return asked
        coarse = quantised(models.unlearned, self.parameters.bits)
        likely = [np.exp(-mean_nlls(model, asked.rows, task)) for model in (models.unlearned, coarse)]
        answered = (asked.rows.y[:, 1:] == IGNORED).cpu()
        exact = [
            float(((task.predict(model, asked.rows)[:, 1:, 1] == 1) | answered).all(dim=1).double().mean()) for model in (models.unlearned, coarse)
        ]
        found = grouped_reading(likely[1], asked.groups, run, f"quantised/{split}", level=self.parameters.level)
        detail = {"unquantised": float(likely[0].mean()), "exact_match": {"before": exact[0], "after": exact[1]}, "bits": self.parameters.bits}
        return Reading(found.value, found.low, found.high, found.level, found.n, detail)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Return a matrix (rows, ...) with each row rounded to 2^bits - 1 levels of its own, symmetric about 0."""
    steps = 2 ** (bits - 1) - 1
    scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / steps
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round().clamp(-steps, steps) * scale


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """Return a copy of the model whose weight matrices are rounded; vectors (norms, biases) stay."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.ndim > 1:
                parameter.copy_(rounded(parameter, bits))
    return copied
