"""The membership inference attack that published unlearning code reports: members by the entropy of their outputs.

Source: code released with arXiv 2205.08096 and arXiv 2201.05629 (support vector machine), arXiv 2308.07707 (logistic regression).
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.attack import ATTACKS, Attack
from services.verification.metric import Direction, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.intervals import clopper_pearson
from services.verification.statistics.learned import called_members
from services.verification.statistics.scores import Floats, entropies


@ATTACKS.register("mia_legacy")
class LegacyMembershipInference(Attack):
    """Share of forgotten records that the attacker calls members: neither an accuracy nor an AUC, and never a gate.

    Members are retained training records, non-members all held-out verification records, as published. It is fitted and judged in sample,
    takes uncertainty for absence, and its 0 can be inverted; only the distance to the retrained model's value means something.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "info"
    paper = "arXiv 2205.08096"
    splits = ("forget_train",)

    class Parameters(Attack.Parameters):
        """Parameters of the legacy attack."""

        attacker: Literal["logistic_balanced", "svc"] = Field("logistic_balanced", description="Classifier on the entropy.")
        fit_rows: int = Field(5000, ge=50, le=100_000, description="At most this many records a side are used for fitting.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the share called member, with its Clopper-Pearson interval."""
        parts: list[Split] = []
        for name in (split, "retain_train", "test"):
            rows = rows_of(data, name)
            if isinstance(rows, Unmeasured):
                return rows
            parts.append(rows)
        targets = _entropies(models.unlearned, parts[0], task)
        rng = generator_of(run, "mia_legacy/rows")
        sides = [_entropies(models.unlearned, rows, task) for rows in parts[1:]]
        members, others = (side[np.sort(rng.permutation(len(side))[: self.parameters.fit_rows])] for side in sides)
        called = called_members(members, others, targets, attacker=self.parameters.attacker)
        level = self.parameters.level
        low, high = clopper_pearson(called, len(targets), level=level)
        detail = {"members": len(members), "non_members": len(others), "attacker": self.parameters.attacker}
        return Reading(called / len(targets), low, high, level, len(targets), detail)


def _entropies(model: nn.Module, rows: Split, task: Task) -> Floats:
    return entropies(outputs_on(model, rows, task).log_p)
