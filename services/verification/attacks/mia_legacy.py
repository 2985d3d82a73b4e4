"""The membership inference attack that published unlearning code reports: members by the entropy of their outputs.

Source: code released with arXiv 2205.08096 and arXiv 2201.05629 (support vector machine), arXiv 2308.07707 (logistic regression).
"""

from typing import ClassVar

from pydantic import Field

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.attack import ATTACKS, Attack
from services.verification.entropy_attack import Attacker, call_members
from services.verification.metric import Direction, Models
from services.verification.outputs import by_id, generator_of, rows_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.intervals import clopper_pearson


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

        attacker: Attacker = Field("logistic_balanced", description="Classifier on the entropy.")
        fit_rows: int = Field(5000, ge=50, le=100_000, description="At most this many records a side are used for fitting.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the share called member, with its Clopper-Pearson interval."""
        parts = all_measured(rows_of(data, name) for name in (split, "retain_train", "test"))
        if isinstance(parts, Unmeasured):
            return parts
        p, (asked, *sides) = self.parameters, parts
        members, others = (
            by_id(rows, at_most=p.fit_rows, generator=run.stream("mia_legacy/side")) for rows in sides
        )  # the others' outputs are not needed
        rng = generator_of(run, "mia_legacy/rows")
        called = call_members(models.unlearned, asked, members, others, task, attacker=p.attacker, rows=p.fit_rows, rng=rng)
        low, high = clopper_pearson(called.members, called.asked, level=p.level)
        detail = {"members": called.fitted_members, "non_members": called.fitted_others, "attacker": p.attacker}
        return Reading(called.share, low, high, p.level, called.asked, detail)
