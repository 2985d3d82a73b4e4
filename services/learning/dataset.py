"""Dataset adapters: columns of a parquet file to tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from services.errors import InvalidInput, MissingLabels
from services.registry import Registry


class AdapterParameters(BaseModel):
    """Parameters of an adapter; they are part of the dataset's record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetAdapter(ABC):
    """Turns named columns (numpy arrays, row by row) into x and y.

    `columns` are the columns it reads with default parameters; the parameter `label_column` is the one that the ledger indexes for class
    requests. Nothing is computed over records here: scales and vocabularies are parameters, so that no statistic of a forgotten record
    survives outside the weights.
    """

    name: ClassVar[str]
    modality: ClassVar[str]
    tasks: ClassVar[frozenset[str]]
    columns: ClassVar[tuple[str, ...]]

    class Parameters(AdapterParameters):
        """Parameters of this adapter."""

    def __init__(self, parameters: Any) -> None:  # each subclass has its own Parameters class
        self.parameters = parameters

    @abstractmethod
    def decode(self, rows: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return x (n, *record) in storage form and y (n,), or (n, H) of several steps. Raises InvalidInput where a column is missing or malformed."""

    @abstractmethod
    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the function that turns a batch of x in storage form into what the model takes, on x's device."""


class LabelledParameters(DatasetAdapter.Parameters):
    """Parameters of an adapter with one label per record, or with one real-valued target in place of it."""

    target: Literal["label", "number"] = Field(
        "label", description="What the label column holds: a class, or a real number to be predicted (regression)."
    )
    label_column: str = Field("label", min_length=1, max_length=128, description="Column of the labels.")
    classes: tuple[str, ...] = Field((), max_length=100_000, description="Names of the classes in order, where labels are names; else 0 to C - 1.")


def column(rows: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Return the column `name`. Raises InvalidInput with the columns that there are."""
    if name not in rows:
        raise InvalidInput(detail=f"the column {name!r} is missing; there are {', '.join(sorted(rows)) or 'none'}")
    return rows[name]


def labels(rows: Mapping[str, np.ndarray], parameters: LabelledParameters) -> Tensor:
    """Return the labels of the records, (n,) int64: whole numbers as they are, names by their place in `classes`; or real targets, (n,) float32.

    Raises:
        MissingLabels: there is no such column. InvalidInput: a label is empty, is no whole number, or is not in `classes`; a target is no number.
    """
    name = parameters.label_column
    if name not in rows:
        raise MissingLabels(dataset="of this job", column=name, task="regression" if parameters.target == "number" else "classification")
    values = rows[name]
    if parameters.target == "number":
        return torch.from_numpy(real_numbers(values, name))
    if parameters.classes:
        places = {label: place for place, label in enumerate(parameters.classes)}
        unknown = sorted({str(value) for value in values.tolist()} - places.keys())
        if unknown:
            raise InvalidInput(detail=f"the column {name!r} holds labels that are not among the classes: {', '.join(unknown[:3])}")
        return torch.tensor([places[str(value)] for value in values.tolist()], dtype=torch.int64)
    return torch.from_numpy(whole_numbers(values, name))


def whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Return a column as int64. Raises InvalidInput where a value is empty or no whole number; strings need the parameter `classes`."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f" and bool(np.isfinite(values).all()) and bool((values == np.floor(values)).all()):
        return values.astype(np.int64)
    if values.dtype.kind == "O" and any(isinstance(value, str) for value in values.tolist()):
        raise InvalidInput(detail=f"the column {name!r} holds names; give the dataset parameter 'classes' with all of them in order")
    raise InvalidInput(detail=f"the column {name!r} must hold a whole number for every record")


def real_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Return a column of targets as float32, of its shape. Raises InvalidInput where a value is missing, is no number, or is not finite."""
    numbers = values.astype(np.float32) if values.dtype.kind in "iufb" else None
    if numbers is None:
        raise InvalidInput(detail=f"the column {name!r} must hold a number for every record")
    lacking = int(np.sum(~np.isfinite(numbers)))
    if lacking:
        raise InvalidInput(detail=f"the column {name!r} holds {lacking} targets that are missing or not finite")
    return numbers


DATASETS: Registry[DatasetAdapter] = Registry("dataset_adapter")
