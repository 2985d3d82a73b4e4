"""Tables: numeric columns scaled by given numbers, categorical columns one-hot by given vocabularies."""

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from services.errors import InvalidInput, NonFinite
from services.learning.data import identity
from services.learning.dataset import DATASETS, DatasetAdapter, LabelledParameters, column, labels

Name = Annotated[str, Field(min_length=1, max_length=128)]


class Numeric(BaseModel):
    """A numeric column, read as (value - mean) / std. Take the numbers from public knowledge or ranges, not from records to be forgotten."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Column.")
    mean: float = Field(0.0, allow_inf_nan=False, description="Subtracted from the value.")
    std: float = Field(1.0, gt=0, allow_inf_nan=False, description="Divisor after that.")


class Categorical(BaseModel):
    """A column of names, one-hot over `values`; a name outside them is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Column.")
    values: tuple[str, ...] = Field(min_length=1, max_length=100_000, description="All values, in the order of their inputs.")


@DATASETS.register("tabular")
class Tabular(DatasetAdapter):
    """One record per row: numeric columns first, then the one-hot groups, each in the order given."""

    modality = "tabular"
    tasks = frozenset({"classification", "regression"})
    columns = ("label",)

    class Parameters(LabelledParameters):
        """Parameters of `tabular`."""

        numeric: tuple[Numeric, ...] = Field((), max_length=10_000, description="Numeric columns.")
        categorical: tuple[Categorical, ...] = Field((), max_length=10_000, description="Columns of names.")

        @model_validator(mode="after")
        def _some_and_distinct(self) -> "Tabular.Parameters":
            names = [entry.name for entry in (*self.numeric, *self.categorical)]
            if not names:
                raise ValueError("name at least one numeric or categorical column")
            if len(set(names)) != len(names) or self.label_column in names:
                raise ValueError("every column is named once, and the label column not at all")
            return self

    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, d) float32 and y (n,) int64, d = numeric columns + all categories.

        Raises:
            MissingLabels: there are no labels. InvalidInput: a column is missing or of the wrong kind. NonFinite: a number is missing or infinite.
        """
        p = self.parameters
        y = labels(rows, p)
        parts = [scaled(column(rows, entry.name), entry)[:, None] for entry in p.numeric]
        parts += [one_hot(column(rows, entry.name), entry) for entry in p.categorical]
        return torch.from_numpy(np.concatenate(parts, axis=1)), y

    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the identity: records are stored as the model takes them."""
        return identity


def scaled(values: np.ndarray, entry: Numeric) -> np.ndarray:
    """Return a numeric column as float32 (n,). Raises InvalidInput or NonFinite."""
    if values.dtype.kind not in "iufb":
        raise InvalidInput(detail=f"the column {entry.name!r} must hold numbers")
    numbers = ((values.astype(np.float64) - entry.mean) / entry.std).astype(np.float32)
    if not bool(np.isfinite(numbers).all()):
        raise NonFinite(what=f"the column {entry.name!r}")
    return numbers


def one_hot(values: np.ndarray, entry: Categorical) -> np.ndarray:
    """Return a column of names as float32 (n, len(entry.values)). Raises InvalidInput for a name outside the vocabulary."""
    places = {value: place for place, value in enumerate(entry.values)}
    names = [str(value) for value in values.tolist()]
    unknown = sorted(set(names) - places.keys())
    if unknown:
        raise InvalidInput(detail=f"the column {entry.name!r} holds {len(unknown)} values that are not in its vocabulary, as {unknown[0]!r}")
    encoded = np.zeros((len(names), len(places)), dtype=np.float32)
    encoded[np.arange(len(names)), [places[name] for name in names]] = 1
    return encoded
