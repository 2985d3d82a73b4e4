"""Stages that see the parts of one numbered list in turn: rows 0 to n_f - 1 are the forget set's, the next are the retain set's."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from services.unlearning.mechanisms.descent import Plan


@dataclass(frozen=True, slots=True)
class Leg:
    """`plan` over the rows of the list that start at number `first`."""

    first: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Course:
    """Epochs, each of which takes its legs one after another."""

    epochs: tuple[tuple[Leg, ...], ...]

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(leg.plan.steps for legs in self.epochs for leg in legs)

    @property
    def epoch_ends(self) -> list[int]:
        """The number of the last step of each epoch, counted from 1."""
        return list(accumulate(sum(leg.plan.steps for leg in legs) for legs in self.epochs))

    def epoch_of(self, step: int) -> int:
        """Return the epoch of `step`, both counted from 0."""
        return bisect_right(self.epoch_ends, step)

    def described(self) -> dict[str, object]:
        """Return the effective values for the report."""
        legs = [{"rows": leg.plan.rows, "batch_size": leg.plan.batch_size} for leg in self.epochs[0]]
        return {"legs": legs, "epochs": len(self.epochs), "steps": self.steps}

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row numbers of each step, (B,) int64; no step mixes two legs."""
        for legs in self.epochs:
            for leg in legs:
                for rows in leg.plan.order(generator):
                    yield rows + leg.first


def forget_then_retain(forget_rows: int, retain_rows: int, *, batch_size: int, epochs: int) -> Course:
    """Return epochs that show the whole forget set first, then the whole retain set."""
    legs = (Leg(0, Plan(forget_rows, batch_size, 1)), Leg(forget_rows, Plan(retain_rows, batch_size, 1)))
    return Course((legs,) * epochs)
