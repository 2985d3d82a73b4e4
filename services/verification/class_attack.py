"""Attacks on one class after another: its training records against as many of its held-out records.

Source: code released with arXiv 2410.23693 (layer-wise relevance path perturbation).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from services.learning.data import Split, Splits
from services.verification.metric import Metric
from services.verification.outputs import NO_HELD_OUT, rows_of
from services.verification.reading import Unmeasured
from services.verification.statistics.learned import balanced
from services.verification.statistics.scores import Floats, Integers

FEW = 50


class ClassAttackParameters(Metric.Parameters):
    """Parameters of an attack that is fitted class by class."""

    rows: int = Field(1500, ge=10, le=10_000, description="At most this many records a side and class are used for fitting.")
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of the balanced sample and of the attack.")


@dataclass(frozen=True, slots=True)
class ClassSides:
    """One class: which training and which held-out records are of it, (n,) and (m,) bool, and the values of as many of both, (k, ...)."""

    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    members: Floats
    others: Floats


def class_records(data: Splits, split: str) -> tuple[Split, Split] | Unmeasured:
    """Return the records of `split` and the held-out records of the same classes; class requests only."""
    rows = rows_of(data, split)
    if isinstance(rows, Unmeasured):
        return rows
    if data.kind != "class":
        return Unmeasured("class_requests_only")
    held_out = rows_of(data, "forget_test")
    return NO_HELD_OUT if isinstance(held_out, Unmeasured) else (rows, held_out)


def class_by_class(
    labels: tuple[Integers, Integers], values: tuple[Floats, Floats], p: ClassAttackParameters, *, least: int
) -> list[ClassSides] | Unmeasured:
    """Return the sides of every class of the training records, from labels (n,), (m,) and values (n, ...), (m, ...) of both sides.

    Unmeasured where a class has fewer than `least` records on a side.
    """
    found: list[ClassSides] = []
    for label in np.unique(labels[0]).tolist():
        inside, outside = (side == label for side in labels)
        members, others = balanced(values[0][inside], values[1][outside], rows=p.rows, seed=p.seed)
        if len(members) < least:
            return Unmeasured("too_few_records")
        found.append(ClassSides(inside, outside, members, others))
    return found
