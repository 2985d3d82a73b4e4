"""Impair and repair at given learning rates, measured on the analysis split, and the sweep that chooses among rates.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023 (arXiv 2111.08947), which leaves the rates to the reader.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, mean_probability
from services.unlearning.mechanisms.descent import Plan, descend
from services.unlearning.mechanisms.guard import Guard, snapshot
from services.unlearning.mechanisms.noise import VirtualList

FORGET_TARGET = 0.01
PROBABILITY_TARGET = 0.05  # the analysis split may hold so few rows of a class that accuracy alone passes by luck
RETAIN_FLOOR = 0.03


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pair of learning rates led to, on the analysis split; None where it has no row.

    `forget` is the accuracy on the class, `probability` what the class still gets, `retain` the accuracy on the others.
    """

    lr_impair: float
    lr_repair: float
    forget: float | None
    probability: float | None
    retain: float | None
    retain_loss: float
    target_met: bool
    floor_met: bool

    @property
    def merit(self) -> tuple[bool, float]:
        """What to maximise when no pair meets both: the floor first, then retain minus forget accuracy, then the stronger pair.

        Where the analysis split has no row of the class, the strongest pair that keeps the floor is taken.
        """
        if self.forget is None and self.floor_met:
            return True, 0.0
        return self.floor_met, (self.retain or 0.0) - (self.forget or 0.0)

    def described(self) -> dict[str, object]:
        """Return the outcome for the report."""
        return {
            "lr_impair": self.lr_impair,
            "lr_repair": self.lr_repair,
            "analysis_forget_accuracy": self.forget,
            "analysis_forget_probability": self.probability,
            "analysis_retain_accuracy": self.retain,
            "target_met": self.target_met,
            "floor_met": self.floor_met,
        }


class Edit:
    """One run's impair and repair, from one noise, at any learning rates. Every call starts from the weights that `model` held at first."""

    def __init__(self, model: nn.Module, shown: VirtualList, data: Splits, task: Task, run: Run, guard: Guard) -> None:
        self.model, self.shown, self.task, self.run, self.guard = model, shown, task, run, guard
        self.original = snapshot(model)
        self.forget = data.analysis.with_labels(data.classes, keep=True)
        self.retain = data.analysis.with_labels(data.classes, keep=False)
        self.retain_before = accuracy(model, self.retain)

    def impair_loss(self, rows: Tensor) -> Tensor:
        """Return the cross-entropy of noise under its own class, and of retain rows."""
        return self.task.losses(self.model, self.shown.batch(rows)).mean()

    def repair_loss(self, rows: Tensor) -> Tensor:
        """Return the cross-entropy of retain rows."""
        return self.task.losses(self.model, self.shown.retain.batch(rows)).mean()

    def attempt(self, impair: Plan, repair: Plan, lr_impair: float, lr_repair: float) -> Outcome:
        """Edit the model and measure it on the analysis split. Raises Diverged."""
        self.model.load_state_dict(self.original)
        run, guard = self.run, self.guard
        descend(self.model, impair, self.impair_loss, run, guard, stage="impair", lr=lr_impair, generator=run.stream("impair"))
        guard.check_damage(self.model, "impair")
        descend(self.model, repair, self.repair_loss, run, guard, stage="repair", lr=lr_repair, generator=run.stream("repair"))
        after = guard.check(self.model, "repair")
        forget, retain = accuracy(self.model, self.forget), accuracy(self.model, self.retain)
        floor_met = retain is None or self.retain_before is None or retain >= self.retain_before - RETAIN_FLOOR
        probability = mean_probability(self.model, self.forget)
        target_met = forget is not None and probability is not None and forget <= FORGET_TARGET and probability <= PROBABILITY_TARGET
        return Outcome(lr_impair, lr_repair, forget, probability, retain, after, target_met, floor_met)


def sweep(edit: Edit, impair: Plan, repair: Plan, pairs: list[tuple[float, float]]) -> Outcome:
    """Try `pairs` of learning rates in order and keep the first that meets target and floor, else the one of most merit.

    The note `sweep` lists every pair tried, `ended_by` says `target` or `steps` (all pairs used up).

    Raises:
        Diverged: every pair diverged; the first one's error.
    """
    tried: list[dict[str, object]] = []
    best: tuple[Outcome, dict[str, Tensor]] | None = None
    failure: Diverged | None = None
    for lr_impair, lr_repair in pairs:
        try:
            outcome = edit.attempt(impair, repair, lr_impair, lr_repair)
        except Diverged as diverged:
            failure = failure or diverged
            tried.append({"lr_impair": lr_impair, "lr_repair": lr_repair, "diverged": diverged.facts["detail"]})
            continue
        finally:
            edit.run.note("sweep", list(tried))
        tried.append(outcome.described())
        edit.run.note("sweep", list(tried))
        met = outcome.target_met and outcome.floor_met
        if best is None or met or outcome.merit >= best[0].merit:
            best = outcome, snapshot(edit.model)
        if met:
            break
    if best is None:
        raise failure or Diverged(method=edit.guard.method, stage="impair", detail="no learning rate to try")
    edit.model.load_state_dict(best[1])
    edit.run.note("ended_by", "target" if best[0].target_met and best[0].floor_met else "steps")
    return best[0]
