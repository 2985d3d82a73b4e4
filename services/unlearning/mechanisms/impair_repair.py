"""Impair and repair at given learning rates, measured on the analysis split, and the sweep that chooses among rates.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023 (arXiv 2111.08947), which leaves the rates to the reader.
Differs: where repair takes several passes, it ends with the one of them that forgot and lost least: at a constant rate the loss of a small set
jumps by a factor of ten from pass to pass, and a class may come back in the last.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, mean_probability
from services.unlearning.mechanisms.descent import Plan, descend
from services.unlearning.mechanisms.guard import Guard, mean_loss, snapshot
from services.unlearning.mechanisms.noise import VirtualList

FORGET_TARGET = 0.01
PROBABILITY_TARGET = 0.05  # the analysis split may hold so few rows of a class that accuracy alone passes by luck
SURE_ROWS = 100
RETAIN_FLOOR = 0.03


def probability_target(rows: int) -> float:
    """Return the mean probability that a class may still have on `rows` held-out records of it: 0.05, and less where there are under 100.

    The mean of fewer is less certain by the square root of their number, and so is held to that much less.
    """
    return PROBABILITY_TARGET * math.sqrt(min(1.0, rows / SURE_ROWS))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pair of learning rates led to after `step` steps of repair, on the analysis split; None where it has no row.

    `forget` is the accuracy on the class, `probability` what the class still gets, `retain` the accuracy on the others. `retain_loss` is the
    loss on retain records that were trained on: there are many, so that it tells one pass from another where few are held out.
    """

    lr_impair: float
    lr_repair: float
    step: int
    forget: float | None
    probability: float | None
    retain: float | None
    retain_loss: float
    target_met: bool
    floor_met: bool

    @property
    def met(self) -> bool:
        """Whether the class is forgotten and the others are kept."""
        return self.target_met and self.floor_met

    @property
    def order(self) -> tuple[bool, bool, float]:
        """What to maximise among the passes of one repair: both met, then the target, then the least loss on retain records."""
        return self.met, self.target_met, -self.retain_loss

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
            "repair_step": self.step,
            "analysis_forget_accuracy": self.forget,
            "analysis_forget_probability": self.probability,
            "analysis_retain_accuracy": self.retain,
            "target_met": self.target_met,
            "floor_met": self.floor_met,
        }


class ImpairRepair:
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
        """Edit the model, leave it as it was after the best pass of repair, and return what was measured there. Raises Diverged."""
        self.model.load_state_dict(self.original)
        run, guard = self.run, self.guard
        best: list[tuple[Outcome, dict[str, Tensor]]] = []

        def look(step: int) -> None:
            if step < repair.steps and step % repair.steps_per_epoch == 0:
                consider(step)

        def consider(step: int) -> None:
            outcome = self._measured(lr_impair, lr_repair, step)
            if not best or outcome.order > best[0][0].order:
                best[:] = [(outcome, snapshot(self.model))]

        descend(self.model, impair, self.impair_loss, run, guard, stage="impair", lr=lr_impair, generator=run.stream("impair"))
        guard.check_damage(self.model, "impair")
        descend(self.model, repair, self.repair_loss, run, guard, stage="repair", lr=lr_repair, generator=run.stream("repair"), after_step=look)
        consider(repair.steps)
        self.model.load_state_dict(best[0][1])
        guard.check(self.model, "repair")
        return best[0][0]

    def _measured(self, lr_impair: float, lr_repair: float, step: int) -> Outcome:
        loss = mean_loss(self.model, self.guard.probe, self.task)
        forget, retain = accuracy(self.model, self.forget), accuracy(self.model, self.retain)
        floor_met = retain is None or self.retain_before is None or retain >= self.retain_before - RETAIN_FLOOR
        probability = mean_probability(self.model, self.forget)
        target_met = (
            forget is not None and probability is not None and forget <= FORGET_TARGET and probability <= probability_target(len(self.forget))
        )
        return Outcome(lr_impair, lr_repair, step, forget, probability, retain, loss, target_met, floor_met)


def sweep(stages: ImpairRepair, impair: Plan, repair: Plan, pairs: list[tuple[float, float]]) -> Outcome:
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
            outcome = stages.attempt(impair, repair, lr_impair, lr_repair)
        except Diverged as diverged:
            failure = failure or diverged
            tried.append({"lr_impair": lr_impair, "lr_repair": lr_repair, "diverged": diverged.facts["detail"]})
            continue
        finally:
            stages.run.note("sweep", list(tried))
        tried.append(outcome.described())
        stages.run.note("sweep", list(tried))
        if best is None or outcome.met or outcome.merit >= best[0].merit:
            best = outcome, snapshot(stages.model)
        if outcome.met:
            break
    if best is None:
        raise failure or Diverged(method=stages.guard.method, stage="impair", detail="no learning rate to try")
    stages.model.load_state_dict(best[1])
    stages.run.note("ended_by", "target" if best[0].met else "steps")
    return best[0]
