"""Tug of war: one number for how near forgetting, retained and held-out accuracy are to the retrained model's.

Source: Zhao et al., "What makes unlearning hard and what to do about it", NeurIPS 2024 (arXiv 2406.01257).
"""

from typing import ClassVar

import numpy as np
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.distance import counterpart
from services.verification.entropy_attack import call_members
from services.verification.metric import METRICS, Direction, LeakSide, Metric, Models
from services.verification.outputs import generator_of, outputs_on, rows_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.scores import Floats
from services.verification.statistics.tow import tug_of_war, tug_of_war_interval

PARTS = ("retain_train", "test")
FIT_ROWS = 5000


@METRICS.register("tow")
class TugOfWar(Metric):
    """Product over forget, retain and held-out records of 1 - |accuracy - accuracy of the retrained model|: 1 equal in all three, 0 far off.

    Good forgetting cannot buy off lost utility, nor the other way round. The retrained model itself is measured against a second one.
    `detail.gaps` has the three differences; `detail.tow_mia` puts the share of forgotten records that a membership attack on entropies calls
    members (its members are retained, its non-members held-out records) in the place of forget accuracy.
    """

    tasks = frozenset({"classification"})
    unit = "share"
    bounds = (0.0, 1.0)
    compares_to = frozenset({"retrained"})
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "unsigned"
    splits = ("forget_train",)

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the product with its bootstrap interval, records of each part resampled in pairs."""
        names = (split, *PARTS)
        found = all_measured(rows_of(data, name) for name in names)
        if isinstance(found, Unmeasured):
            return found
        parts = dict(zip(names, found, strict=True))
        other = counterpart(models.unlearned, models)
        if isinstance(other, Unmeasured):
            return other
        signs = {name: _right(models.unlearned, rows, task) - _right(other, rows, task) for name, rows in parts.items()}
        gaps = {name: float(sign.mean()) for name, sign in signs.items()}
        mine, theirs = (self._called(model, found, task, run) for model in (models.unlearned, other))
        level = self.parameters.level
        low, high = tug_of_war_interval(list(signs.values()), level=level, rng=generator_of(run, "tow"))
        detail = {
            "gaps": gaps,
            "tow_mia": float(tug_of_war([mine - theirs, *(gaps[name] for name in PARTS)])),
            "called_members": {"subject": mine, "reference": theirs},
        }
        return Reading(float(tug_of_war(list(gaps.values()))), low, high, level, len(parts[split]), detail)

    def _called(self, model: nn.Module, parts: list[Split], task: Task, run: Run) -> float:
        """Return the share of the forgotten records that the attack calls members."""
        asked, members, others = parts
        rng = generator_of(run, "tow/rows")
        return call_members(model, asked, members, others, task, attacker="logistic_balanced", rows=FIT_ROWS, rng=rng).share


def _right(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return 1 for each row that the model labels as it is labelled, else 0, (n,)."""
    return outputs_on(model, rows, task).right.astype(np.float64)
