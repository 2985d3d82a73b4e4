"""Membership inference with a fixed scorer: do the forgotten records look more like members than like-labelled records never trained on?

Source: Yeom et al., "Privacy Risk in Machine Learning", CSF 2018 (loss scorer); Carlini et al., arXiv 2112.03570 (margin).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_beside_unseen, area_difference
from services.verification.attack import ATTACKS, Attack
from services.verification.metric import BesideUnseen, Direction, Models
from services.verification.outputs import Outputs, by_id, generator_of, joined, outputs_on, rows_of, with_labels_of
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.shadows import Shadows
from services.verification.statistics.learned import cross_fitted_scores
from services.verification.statistics.ranks import EXACT_BELOW, within_classes_p
from services.verification.statistics.roc import Sides, auc, class_weights, epsilon_lower, tpr_at_fpr
from services.verification.statistics.scores import Floats, attack_features, margins, negative_losses

LEARNED_ROWS = 5


@dataclass(frozen=True, slots=True)
class _Sides:
    """The rows of both sides and the non-members' weights (n,)."""

    members: Split
    non_members: Split
    weights: Floats
    without_counterpart: int


@ATTACKS.register("mia_v2")
class MembershipInference(Attack):
    """AUC of a fixed score, D_f against records of the same labels that were never trained on: .5 tells nothing, 1 member, 0 inverted.

    The score is not fitted, so nothing is judged in sample; it is the number that gates, by its paired difference to the retrained model.
    `detail` adds a learned attack, five-fold cross-fitted over {entropy, largest probability, loss, margin} (sign-blind, information only),
    and the true positive rate at a low false positive rate where there are non-members enough for it. On split `retain_train` the members are
    a sample of retained records: the risk that unlearning put on others.
    """

    tasks = frozenset({"classification"})
    unit = "auc"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    paper = "arXiv 1709.01604"
    splits = ("forget_train", "retain_train")

    class Parameters(Attack.Parameters):
        """Parameters of the attack."""

        scorer: Literal["phi", "loss"] = Field("phi", description="Score: the margin phi, or minus the loss of the true label.")
        pool_held_out: bool = Field(default=False, description="Class requests: take the class's verification rows as non-members too.")
        learned: bool = Field(default=True, description="Also run the cross-fitted attack, for information.")
        member_rows: int = Field(5000, ge=50, le=100_000, description="At most this many members are scored.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with DeLong's interval; below 50 members the p-value of a permutation test stands in `detail`."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        members, others = (outputs_on(models.unlearned, rows, task) for rows in (sides.members, sides.non_members))
        scores = Sides(self._scores(members), self._scores(others))
        weights = class_weights(members.y, others.y)
        level = self.parameters.level
        detail: dict[str, object] = {
            "members": len(members),
            "non_members": len(others),
            "members_without_counterpart": sides.without_counterpart,
            **_low_fpr(*scores, run, level=level),
        }
        if len(members) < EXACT_BELOW:
            detail["permutation_p"] = within_classes_p(*scores, members.y, others.y, rng=generator_of(run, f"mia_v2/{split}/permutation"))
        if self.parameters.learned:
            detail["learned_auc"] = _learned_auc(members, others, weights, run)
        return area(scores, weights, level=level, n=min(len(members), len(others)), detail=detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus` on the same rows, both sides resampled in pairs."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        found = [[outputs_on(model, rows, task) for rows in (sides.members, sides.non_members)] for model in (models.unlearned, versus)]
        mine, theirs = (Sides(self._scores(inside), self._scores(outside)) for inside, outside in found)
        weights = class_weights(found[0][0].y, found[0][1].y)
        n = min(len(sides.members), len(sides.non_members))
        return area_difference(mine, theirs, weights, run, f"mia_v2/{split}/paired", level=self.parameters.level, n=n)

    def beside_unseen(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, unseen: Shadows) -> BesideUnseen | Unmeasured:
        """Return the AUC beside that of models which had not seen the records: theirs is about .5, whatever they learned from."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        outputs = outputs_on(models.unlearned, sides.members, task), outputs_on(models.unlearned, sides.non_members, task)
        return area_beside_unseen((sides.members, sides.non_members), outputs, unseen, self._of_margins, level=self.parameters.level)

    def _of_margins(self, phi: Floats) -> Floats:
        """Return the score of margins; the log-probability of the true label is log(1 / (1 + exp(-phi)))."""
        return phi if self.parameters.scorer == "phi" else -np.logaddexp(0.0, -phi)

    def _scores(self, out: Outputs) -> Floats:
        return margins(out.z, out.y) if self.parameters.scorer == "phi" else negative_losses(out.z, out.y)

    def _sides(self, data: Splits, run: Run, split: str) -> _Sides | Unmeasured:
        parts = all_measured(rows_of(data, name) for name in (split, "attack"))
        if isinstance(parts, Unmeasured):
            return parts
        members, others = parts
        if data.kind == "class" and split == "forget_train" and self.parameters.pool_held_out:
            verification = rows_of(data, "test")
            others = others if isinstance(verification, Unmeasured) else joined(others, verification)
        others = with_labels_of(others, members)
        if not len(others):
            return Unmeasured("no_nonmembers_of_these_classes")
        matched = with_labels_of(members, others)
        chosen = by_id(matched)
        if len(chosen) > self.parameters.member_rows:
            chosen = chosen.sample(self.parameters.member_rows, run.stream(f"mia_v2/{split}/members"))
        return _Sides(chosen, others, class_weights(chosen.y.cpu().numpy(), others.y.cpu().numpy()), len(members) - len(matched))


def _low_fpr(inside: Floats, outside: Floats, run: Run, *, level: float) -> dict[str, object]:
    """Return the true positive rate that the sample sizes allow to be stated, or why there is none.

    Below 50 members none; below 1000, at 5 % with 200 non-members; from 1000, at 1 % with 1000 non-members, and the epsilon it implies. The
    threshold comes from one random half of the non-members, false positives are counted on the other.
    """
    if len(inside) < EXACT_BELOW:
        return {"tpr_at_fpr": None, "tpr_reason": "too_few_members"}
    fpr = 0.05 if len(inside) < 1000 else 0.01
    if len(outside) < 10 / fpr:
        return {"tpr_at_fpr": None, "tpr_reason": "too_few_nonmembers"}
    order = generator_of(run, "mia_v2/halves").permutation(len(outside))
    half = len(outside) // 2
    calibrate, evaluate = outside[order[:half]], outside[order[half:]]
    rate = tpr_at_fpr(inside, calibrate, fpr=fpr, level=level)
    detail: dict[str, object] = {"tpr_at_fpr": {"fpr": fpr, "value": rate.value, "low": rate.interval.low, "high": rate.interval.high}}
    if fpr == 0.01:
        detail["eps_lower"] = epsilon_lower(
            false_positives=int(np.sum(evaluate >= rate.threshold)),
            non_members=len(evaluate),
            false_negatives=int(np.sum(inside <= rate.threshold)),
            members=len(inside),
        )
    return detail


def _learned_auc(members: Outputs, others: Outputs, weights: Floats, run: Run) -> float | None:
    """Return the AUC of the cross-fitted attack, None with fewer than five rows on a side."""
    if min(len(members), len(others)) < LEARNED_ROWS:
        return None
    first, second = attack_features(members.z, members.y), attack_features(others.z, others.y)
    inside, outside = cross_fitted_scores(first, second, weights, rng=generator_of(run, "mia_v2/folds"))
    return auc(inside, outside, weights)
