"""A classifier's outputs on one split, in an order that does not depend on how the rows came."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from services.learning.data import Split, Splits, Withheld
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.verification.reading import Unmeasured
from services.verification.statistics.scores import Floats, Integers, log_probabilities

NO_ARCHITECTURE = Unmeasured("no_architecture")
NO_HELD_OUT = Unmeasured("no_held_out_records_of_these_classes")
NO_RECORDS = Unmeasured("no_records")
NO_REFERENCE = Unmeasured("no_retrained_reference")
NO_TWIN = Unmeasured("no_second_retrained_model")
UNKNOWN_SPLIT = Unmeasured("no_such_split")
WITHHELD = Unmeasured("split_withheld")


@dataclass(frozen=True, slots=True)
class Outputs:
    """z (n, C) logits float64 and y (n,) int64, rows sorted by record id."""

    z: Floats
    y: Integers

    def __len__(self) -> int:
        return len(self.y)

    @property
    def log_p(self) -> Floats:
        """Return the log-probabilities, (n, C)."""
        return log_probabilities(self.z)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return whether the largest logit is that of the row's label, (n,)."""
        return self.z.argmax(axis=1) == self.y


def rows_of(data: Splits, split: str) -> Split | Unmeasured:
    """Return the records of `split`, or that there are none."""
    try:
        rows = data.named(split)
    except KeyError:
        return UNKNOWN_SPLIT
    except Withheld:
        return WITHHELD
    return rows if len(rows) else NO_RECORDS


def order_by_id(rows: Split) -> list[int]:
    """Return the row numbers in the order of the record ids."""
    return sorted(range(len(rows)), key=rows.ids.__getitem__)


def by_id(rows: Split, *, at_most: int | None = None, generator: torch.Generator | None = None) -> Split:
    """Return the rows sorted by record id; where there are more than `at_most`, so many of them, drawn by `generator`."""
    order = torch.tensor(order_by_id(rows), dtype=torch.int64)
    if at_most is not None and len(order) > at_most:
        order = order[torch.randperm(len(order), generator=generator)[:at_most].sort().values]
    return rows.take(order)


def with_labels_of(rows: Split, other: Split) -> Split:
    """Return the rows whose label occurs in `other`."""
    return rows.take(torch.nonzero(torch.isin(rows.y, other.y.unique())).flatten().cpu())


def joined(first: Split, second: Split) -> Split:
    """Return the rows of both splits."""
    return Split(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]), first.ids + second.ids, first.prepare)


def outputs_on(model: nn.Module, rows: Split, task: Task) -> Outputs:
    """Return the outputs of `model` on every row, sorted by record id."""
    order = order_by_id(rows)
    z = task.predict(model, rows).detach().cpu().double().numpy()
    y = rows.y.detach().cpu().long().numpy()
    return Outputs(z[order], y[order])


def generator_of(run: Run, purpose: str) -> np.random.Generator:
    """Return a numpy generator that depends on the run's seed and `purpose` alone."""
    return np.random.default_rng(derived_seed(run.seed, purpose))
