"""Dataset adapters: columns of a parquet file to tensors."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from services.registry import Registry


class AdapterParameters(BaseModel):
    """Parameters of an adapter; they are part of the dataset's record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetAdapter(ABC):
    """Turns named columns (numpy arrays, row by row) into x and y.

    `columns` are the columns it reads with default parameters; `label_column` is the one that the ledger indexes for class requests.
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
        """Return x (n, *record) in storage form and y (n,). Raises InvalidInput where a column is missing or malformed."""

    @abstractmethod
    def prepare(self) -> Callable[[Tensor], Tensor]:
        """Return the function that turns a batch of x in storage form into what the model takes, on x's device."""


DATASETS: Registry[DatasetAdapter] = Registry("dataset_adapter")
