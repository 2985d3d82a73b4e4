"""Windows of a series as columns of numbers, and the gaps for which they are refused: where they are uploaded, and where a job decodes them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.errors import InvalidInput

EVEN = 1e-6
Column = np.ndarray
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Windowed:
    """How a record holds its window: `length` steps of `channels` numbers in `past`, `horizon` numbers in `target`, all their times in `times`."""

    length: int
    channels: int
    horizon: int
    past: str
    target: str
    times: str | None

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.past, self.target, self.times) if name is not None]

    def past_of(self, rows: Mapping[str, Column]) -> Floats:
        """Return the past, (n, length * channels). Raises InvalidInput: a list has another length, or a number is missing or not finite."""
        found = lists(rows[self.past], self.length * self.channels, self.past).astype(np.float64)
        lacking = int(np.sum(~np.isfinite(found)))
        if lacking:
            raise InvalidInput(detail=f"the column {self.past!r} has gaps: {lacking} numbers are missing or not finite")
        return found

    def refuse_gaps(self, rows: Mapping[str, Column], *, step: float | None = None) -> float | None:
        """Return the step between the times of the windows, where there are times. Raises InvalidInput unless all share it, and `step` if given."""
        if self.times is None:
            return step
        return refuse_gaps(lists(rows[self.times], self.length + self.horizon, self.times).astype(np.float64), step=step)


def lists(values: Column, size: int, name: str) -> Column:
    """Return a column of lists, or for size 1 of numbers, as an array (n, size) of numbers. Raises InvalidInput for lists of another length."""
    if values.dtype == object:
        rows = values.tolist()
        if any(isinstance(row, str | bytes) or row is None or np.size(row) != size for row in rows):
            raise InvalidInput(detail=f"every value of the column {name!r} must be {size} numbers: the series has gaps, or is cut otherwise")
        try:
            return np.array([np.ravel(row) for row in rows], dtype=np.float64).reshape(-1, size)
        except (TypeError, ValueError) as error:
            raise InvalidInput(detail=f"the column {name!r} must hold numbers") from error
    flat = values.reshape(len(values), -1)
    if flat.dtype.kind not in "iufb" or (len(flat) and flat.shape[1] != size):
        raise InvalidInput(detail=f"every value of the column {name!r} must be {size} numbers: the series has gaps, or is cut otherwise")
    return flat.reshape(-1, size)


def refuse_gaps(times: Floats, *, step: float | None = None) -> float | None:
    """Return the one step by which the times of every window (n, T) rise, `step` where it is known. Raises InvalidInput where one rises otherwise."""
    if times.size == 0 or times.shape[1] < 2:
        return step
    steps = np.diff(times, axis=1)
    known = float(np.median(steps)) if step is None else step
    odd = ~(np.abs(steps - known) <= EVEN * max(1.0, abs(known)))
    if known <= 0 or bool(odd.any()):
        rows = int(np.sum(odd.any(axis=1))) or len(times)
        raise InvalidInput(detail=f"the series has gaps: the times of {rows} records do not rise evenly")
    return known
