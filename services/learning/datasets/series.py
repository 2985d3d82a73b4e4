"""Series: every record is a stretch of the past and the steps that follow it, as `windows` cuts them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from services.errors import InvalidInput, MissingLabels
from services.learning.data import identity
from services.learning.dataset import DATASETS, DatasetAdapter, column, real_numbers
from services.series import Windowed, lists, refuse_gaps

Scale = Annotated[float, Field(allow_inf_nan=False)]


@DATASETS.register("series")
class Series(DatasetAdapter):
    """One window per record: the past as a list of length * channels numbers, step by step, and the targets that follow, one or a list."""

    modality = "series"
    tasks = frozenset({"forecasting", "regression"})
    columns = ("past", "target")

    class Parameters(DatasetAdapter.Parameters):
        """Parameters of `series`."""

        length: int = Field(ge=1, le=100_000, description="Steps of the past.")
        channels: int = Field(1, ge=1, le=4096, description="Numbers per step of the past.")
        horizon: int = Field(1, ge=1, le=10_000, description="Steps to be predicted.")
        past_column: str = Field("past", min_length=1, max_length=128, description="Column of the past: lists of length * channels numbers.")
        label_column: str = Field("target", min_length=1, max_length=128, description="Column of the targets: a number, or lists of `horizon`.")
        time_column: str | None = Field(
            None, min_length=1, max_length=128, description="Column of the times of past and targets, lists of length + horizon numbers; null: none."
        )
        mean: tuple[Scale, ...] = Field((), description="Subtracted per channel; empty means nothing is.")
        std: tuple[Annotated[Scale, Field(gt=0)], ...] = Field((), description="Divisor per channel after that; empty means none.")

        @model_validator(mode="after")
        def _one_per_channel(self) -> "Series.Parameters":
            if any(len(scale) not in {0, self.channels} for scale in (self.mean, self.std)):
                raise ValueError("mean and std take one number per channel")
            return self

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, T, ch) float32 and y (n,) float32, (n, H) of several steps.

        Raises:
            MissingLabels: there are no targets. InvalidInput: a column is missing, a number is, or the series has gaps.
        """
        p = self.parameters
        if p.label_column not in rows:
            raise MissingLabels(dataset="of this job", column=p.label_column, task="forecasting")
        held = Windowed(p.length, p.channels, p.horizon, p.past_column, p.label_column, p.time_column)
        given = {name: column(rows, name) for name in held.columns}
        y = real_numbers(lists(given[p.label_column], p.horizon, p.label_column), p.label_column)
        past = held.past_of(given)
        held.refuse_gaps(given)
        x = past.reshape(len(past), p.length, p.channels)
        x = (x - np.array(p.mean or (0.0,) * p.channels)) / np.array(p.std or (1.0,) * p.channels)
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y if p.horizon > 1 else y[:, 0])

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the identity: records are stored as the model takes them."""
        return identity


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows cut from one series: past (n, T, ch), target (n, H), and the number of the first predicted step of each, (n,)."""

    past: np.ndarray
    target: np.ndarray
    first: np.ndarray


def windows(series: np.ndarray, target: np.ndarray, times: np.ndarray, *, length: int, horizon: int, stride: int = 1) -> Windows:
    """Return the windows of series (N, ch) with targets (N,), one every `stride` steps.

    Raises:
        InvalidInput: the times (N,) do not rise evenly, a number is missing, or the series is too short for one window.
    """
    refuse_gaps(times[None].astype(np.float64))
    if not (bool(np.isfinite(series).all()) and bool(np.isfinite(target).all())):
        raise InvalidInput(detail="the series has gaps: a number is missing or not finite")
    first = np.arange(length, len(series) - horizon + 1, stride)
    if len(first) == 0:
        raise InvalidInput(detail=f"{len(series)} steps are too few for a past of {length} and a horizon of {horizon}")
    past = np.stack([series[at - length : at] for at in first])
    return Windows(past, np.stack([target[at : at + horizon] for at in first]), first)
