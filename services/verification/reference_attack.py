"""What attacks with reference models share: who is scored, the area under the curve and its paired difference."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_difference
from services.verification.attack import Attack
from services.verification.metric import Models
from services.verification.outputs import by_id, generator_of, rows_of, with_labels_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.shadows import Shadows, shadows
from services.verification.statistics.ranks import EXACT_BELOW, within_classes_p
from services.verification.statistics.roc import Sides, class_weights
from services.verification.statistics.scores import Floats


@dataclass(frozen=True, slots=True)
class Scored:
    """The rows of both sides, the non-members' weights (n,), and the reference models."""

    members: Split
    non_members: Split
    weights: Floats
    references: Shadows


class ReferenceAttack(Attack):
    """An attack that compares the judged model with reference models which did or did not learn from each record."""

    tasks = frozenset({"classification"})
    unit = "auc"
    bounds = (0.0, 1.0)
    splits: ClassVar[tuple[str, ...]] = ("forget_train", "retain_train")

    class Parameters(Attack.Parameters):
        """Parameters of the attack."""

        models: int = Field(8, ge=2, le=256, description="Reference models; each costs one training on half of the records.")
        member_rows: int = Field(5000, ge=50, le=100_000, description="At most this many members are scored.")

    @abstractmethod
    def scores(self, model: nn.Module, rows: Split, scored: Scored, data: Splits, task: Task) -> Floats:
        """Return the score of each row (n,), sorted by record id; higher is more member-like."""

    @abstractmethod
    def form(self, scored: Scored) -> str:
        """Return which form of the attack was taken."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with DeLong's interval; below 50 members its exact permutation test stands in `detail`."""
        scored = self._scored(data, task, run, split)
        if isinstance(scored, Unmeasured):
            return scored
        sides = self._sides(models.unlearned, scored, data, task)
        detail: dict[str, object] = {
            "members": len(sides.members), "non_members": len(sides.non_members), "models": self.parameters.models, "form": self.form(scored),
        }  # fmt: skip
        if len(sides.members) < EXACT_BELOW:
            labels = [rows.y.cpu().numpy() for rows in (scored.members, scored.non_members)]
            detail["permutation_p"] = within_classes_p(*sides, *labels, rng=generator_of(run, f"{self.name}/{split}/permutation"))
        n = min(len(sides.members), len(sides.non_members))
        return area(sides, scored.weights, level=self.parameters.level, n=n, detail=detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus` on the same rows, both sides resampled in pairs."""
        scored = self._scored(data, task, run, split)
        if isinstance(scored, Unmeasured):
            return scored
        mine, theirs = (self._sides(model, scored, data, task) for model in (models.unlearned, versus))
        n = min(len(scored.members), len(scored.non_members))
        return area_difference(mine, theirs, scored.weights, run, f"{self.name}/{split}/paired", level=self.parameters.level, n=n)

    def _sides(self, model: nn.Module, scored: Scored, data: Splits, task: Task) -> Sides:
        members, others = (self.scores(model, rows, scored, data, task) for rows in (scored.members, scored.non_members))
        return Sides(members, others)

    def _scored(self, data: Splits, task: Task, run: Run, split: str) -> Scored | Unmeasured:
        parts = all_measured(rows_of(data, name) for name in (split, "attack"))
        if isinstance(parts, Unmeasured):
            return parts
        others = with_labels_of(parts[1], parts[0])
        if not len(others):
            return Unmeasured("no_nonmembers_of_these_classes")
        members = with_labels_of(parts[0], others)
        chosen = by_id(members, at_most=self.parameters.member_rows, generator=run.stream(f"{self.name}/{split}/members"))
        found = shadows(data, task, run, models=self.parameters.models)
        if isinstance(found, Unmeasured):
            return found
        sorted_others = by_id(others)
        weights = class_weights(chosen.y.cpu().numpy(), sorted_others.y.cpu().numpy())
        return Scored(chosen, sorted_others, weights, found)
