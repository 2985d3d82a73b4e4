"""The membership attack on the entropy of outputs, fitted on one model and asked about records of the same.

Source: code released with arXiv 2205.08096 and arXiv 2201.05629 (support vector machine), arXiv 2308.07707 (logistic regression).
"""

from typing import Literal, NamedTuple

import numpy as np
from torch import nn

from services.learning.data import Split
from services.learning.task import Task
from services.verification.outputs import outputs_on
from services.verification.statistics.learned import called_members
from services.verification.statistics.scores import entropies

Attacker = Literal["logistic_balanced", "svc"]


class Called(NamedTuple):
    """How many of `asked` records were called members, and the rows of both sides that the attacker was fitted on."""

    members: int
    asked: int
    fitted_members: int
    fitted_others: int

    @property
    def share(self) -> float:
        """The share of the records that were called members."""
        return self.members / self.asked


def call_members(
    model: nn.Module, asked: Split, members: Split, others: Split, task: Task, *, attacker: Attacker, rows: int, rng: np.random.Generator
) -> Called:
    """Fit the attacker on at most `rows` of `members` and of `others`, drawn by `rng`, and ask it about every record of `asked`."""
    targets, *sides = (entropies(outputs_on(model, part, task).log_p) for part in (asked, members, others))
    inside, outside = (side[np.sort(rng.permutation(len(side))[:rows])] for side in sides)
    return Called(called_members(inside, outside, targets, attacker=attacker), len(targets), len(inside), len(outside))
