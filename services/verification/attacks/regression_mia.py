"""Membership inference on regression models: are the forgotten records predicted better than like records that were never trained on?

Source: Tarun et al., "Deep Regression Unlearning", ICML 2023 (arXiv 2210.08196).
Differs: the released attack takes forgotten records among the members it is fitted on, augments members alone, and is scored on the rows it was
fitted on. Here the score that counts is not fitted; the fitted attack takes members from the retained records alone, and is scored on others.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.task import Task
from services.verification.areas import area, area_difference
from services.verification.attack import ATTACKS, Attack
from services.verification.metric import Direction, Models
from services.verification.outputs import by_id, rows_of
from services.verification.predictions import REAL_VALUED, predictions_on
from services.verification.reading import Reading, Unmeasured, all_measured
from services.verification.statistics.learned import fitted_scores
from services.verification.statistics.roc import Sides, auc
from services.verification.statistics.scores import Floats

LEAST = 5
NO_LIKES = Unmeasured("no_nonmembers_of_these_targets")


@dataclass(frozen=True, slots=True)
class FittingSides:
    """Who the fitted attack learns from and who it is scored on: no row is in two of them, and no forgotten record in the first two."""

    members: Split
    calibrate: Split
    other_members: Split
    evaluate: Split


@ATTACKS.register("regression_mia")
class RegressionMembershipInference(Attack):
    """AUC of -|prediction - target|, D_f against records that were never trained on: .5 tells nothing, 1 member, 0 inverted.

    Range requests are held against non-members of the same range. `detail.fitted` has the attack that is fitted on retained members against half
    of the non-members, over |residual| and its logarithm: its AUC on D_f and on retained members it was not fitted on, against the other
    half, and the share of D_f that it calls members; information only. On split `retain_train` the members are retained records.
    """

    tasks = REAL_VALUED
    unit = "auc"
    bounds = (0.0, 1.0)
    direction: ClassVar[Direction] = "band"
    paper = "arXiv 2210.08196"
    splits = ("forget_train", "retain_train")

    class Parameters(Attack.Parameters):
        """Parameters of the attack."""

        member_rows: int = Field(2000, ge=50, le=100_000, description="At most this many members are scored, and as many fitted on.")
        fitted: bool = Field(default=True, description="Also run the fitted attack, for information.")

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the AUC with DeLong's interval."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        members, others = (_scores(models.unlearned, rows, task) for rows in sides)
        detail: dict[str, object] = {"members": len(members), "non_members": len(others)}
        if self.parameters.fitted:
            detail["fitted"] = self._fitted(models.unlearned, sides[0], data, task, run)
        return area(Sides(members, others), np.ones(len(others)), level=self.parameters.level, n=min(len(members), len(others)), detail=detail)

    def difference(self, models: Models, data: Splits, task: Task, run: Run, *, split: str, versus: nn.Module) -> Reading | Unmeasured | None:
        """Return AUC minus the AUC of `versus` on the same rows, both sides resampled in pairs."""
        sides = self._sides(data, run, split)
        if isinstance(sides, Unmeasured):
            return sides
        mine, theirs = (Sides(*(_scores(model, rows, task) for rows in sides)) for model in (models.unlearned, versus))
        weights, n = np.ones(len(sides[1])), min(len(sides[0]), len(sides[1]))
        return area_difference(mine, theirs, weights, run, f"regression_mia/{split}/paired", level=self.parameters.level, n=n)

    def _sides(self, data: Splits, run: Run, split: str) -> tuple[Split, Split] | Unmeasured:
        parts = all_measured(rows_of(data, name) for name in (split, "attack"))
        if isinstance(parts, Unmeasured):
            return parts
        members, others = parts
        if data.span is not None and data.ranged:
            others = others.within(data.span, keep=split == "forget_train")
        if not len(others):
            return NO_LIKES
        stream = run.stream(f"regression_mia/{split}/members")
        return by_id(members, at_most=self.parameters.member_rows, generator=stream), by_id(others)

    def fitting_sides(self, data: Splits, run: Run) -> FittingSides | Unmeasured:
        """Return the rows of the fitted attack: retained members and non-members, each cut in two at random."""
        parts = all_measured(rows_of(data, name) for name in ("retain_train", "attack"))
        if isinstance(parts, Unmeasured):
            return parts
        rows = self.parameters.member_rows
        members = by_id(parts[0], at_most=2 * rows, generator=run.stream("regression_mia/fitted/members"))
        others = by_id(parts[1])
        first = members.sample(len(members), run.stream("regression_mia/fitted/halves"))
        second = others.sample(len(others), run.stream("regression_mia/fitted/others"))
        (fit, rest), (calibrate, evaluate) = (halves(side) for side in (first, second))
        return FittingSides(fit, calibrate, rest, evaluate)

    def _fitted(self, model: nn.Module, forgotten: Split, data: Splits, task: Task, run: Run) -> dict[str, object] | None:
        sides = self.fitting_sides(data, run)
        if isinstance(sides, Unmeasured) or min(len(sides.members), len(sides.calibrate)) < LEAST:
            return None
        judged = (forgotten, sides.other_members, sides.evaluate)
        features = [_features(model, rows, task) for rows in (sides.members, sides.calibrate, *judged)]
        forget, retain, evaluate = fitted_scores(features[0], features[1], features[2:])
        return {
            "auc": auc(forget, evaluate),
            "retain_auc": auc(retain, evaluate),
            "called_members": float(np.mean(forget > 0)),
            "members": len(sides.members),
            "non_members": len(sides.calibrate),
        }


def halves(rows: Split) -> tuple[Split, Split]:
    """Return the first half of the rows, and the others."""
    order, middle = torch.arange(len(rows)), len(rows) // 2
    return rows.take(order[:middle]), rows.take(order[middle:])


def _scores(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return minus the absolute residual of each row, (n,): higher is more member-like."""
    return -predictions_on(model, rows, task).residuals


def _features(model: nn.Module, rows: Split, task: Task) -> Floats:
    """Return |residual| and its logarithm, (n, 2)."""
    size = predictions_on(model, rows, task).residuals
    return np.stack([size, np.log(np.maximum(size, 1e-12))], axis=1)
