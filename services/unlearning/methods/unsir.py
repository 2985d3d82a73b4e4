"""UNSIR: impair with noise that maximises a class's error, then repair on a subset of the retain set. The forget set is never touched.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023 (arXiv 2111.08947).
Differs: each class's noise keeps its own label (the released notebook labels all of it 0); weights are frozen and buffers kept while noise is
learned; the retain subset is random; learning rates are found by a short sweep against the analysis split unless given.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import Diverged
from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy, mean_probability
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.descent import Plan, descend, per_class, plan_steps
from services.unlearning.mechanisms.guard import Guard, snapshot, with_retry
from services.unlearning.mechanisms.noise import VirtualList, learn_noise
from services.unlearning.method import METHODS, Needs, UnlearningMethod

SWEEP = ((1e-3, 1e-3), (5e-3, 2e-3), (0.02, 0.01))
FORGET_TARGET = 0.01
PROBABILITY_TARGET = 0.05  # the analysis split may hold so few rows of a class that accuracy alone passes by luck
RETAIN_FLOOR = 0.03
CPU_NOISE_BATCH = 64
NOISE_BATCH = 256


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


@METHODS.register("unsir")
class Unsir(UnlearningMethod):
    """Unlearn whole classes without their records, from a small subset of the others."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=True)
    retries = 1

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `unsir`."""

        noise_batch: int | None = Field(None, ge=8, le=1024, description="Rows of noise per class; null: 256, or 64 on a CPU.")
        noise_steps: int = Field(40, ge=1, le=1000, description="Steps of Adam on the noise.")
        noise_lr: float = Field(0.1, ge=1e-4, le=1, description="Step size on the noise.")
        noise_l2: float = Field(0.1, ge=0, le=10, description="Weight of the mean squared norm of a noise row.")
        noise_bn_mode: Literal["train", "eval"] = Field("train", description="Mode of the network while noise is learned.")
        copies: int = Field(20, ge=1, le=200, description="How often the noise is shown while impairing.")
        retain_per_class: int = Field(1000, ge=1, le=100_000, description="Retain records per class.")
        lr_impair: float | None = Field(None, ge=1e-6, le=0.1, description="Step size of impair; null: found by a sweep.")
        lr_repair: float | None = Field(None, ge=1e-6, le=0.1, description="Step size of repair; null: found by a sweep.")
        min_steps: int = Field(150, ge=0, le=10_000, description="Least steps of repair when fewer than 20,000 retain records are used.")
        epochs_impair: int = Field(1, ge=1, le=10, description="Passes over noise and retain subset.")
        epochs_repair: int = Field(1, ge=0, le=10, description="Passes over the retain subset.")
        batch_size: int = Field(256, ge=8, le=4096, description="Rows per step of impair and repair.")
        guard_factor: float = Field(10.0, ge=1.5, le=100, description="Stop when the retain loss exceeds this many times its first value.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record) real-valued, y (B,) int64."""
        admit(self, data, task, run)
        shown = self._shown(model, data, task, run)
        p = self.parameters
        guard = Guard.around(self.name, model, shown.retain, task, run, factor=p.guard_factor)
        impair = Plan(len(shown), p.batch_size, p.epochs_impair)
        repair = plan_steps(len(shown.retain), batch_size=p.batch_size, epochs=p.epochs_repair, min_steps=p.min_steps)
        run.note("effective", {"noise_batch": self._noise_batch(run), "impair": impair.described(), "repair": repair.described()})
        run.note("steps", {"noise": p.noise_steps, "impair": impair.steps, "repair": repair.steps})
        edit = Edit(model, shown, data, task, run, guard)

        def attempt(scale: float) -> None:
            pairs = [(first * scale, second * scale) for first, second in self._pairs()]
            chosen = sweep(edit, impair, repair, pairs)
            run.note("outcome", chosen.described())
            run.note("retain_loss", {"before": guard.before, "after": chosen.retain_loss})

        return with_retry(self.name, model, run, attempt, retries=self.retries)

    def _shown(self, model: nn.Module, data: Splits, task: Task, run: Run) -> VirtualList:
        if not data.classes:
            raise refuse(self, data, "there is no class to learn noise for")
        p = self.parameters
        retain = per_class(data.retain, p.retain_per_class, run.stream("retain"))
        example = retain.batch(torch.zeros(1, dtype=torch.int64)).x
        if not example.is_floating_point():
            raise refuse(self, data, "noise needs records of real numbers, and these are tokens")
        noise = learn_noise(
            model,
            data.classes,
            example.shape[1:],
            task,
            run,
            batch=self._noise_batch(run),
            steps=p.noise_steps,
            lr=p.noise_lr,
            l2=p.noise_l2,
            train_mode=p.noise_bn_mode == "train",
        )
        return VirtualList(noise, p.copies, retain)

    def _noise_batch(self, run: Run) -> int:
        if self.parameters.noise_batch is not None:
            return self.parameters.noise_batch
        return CPU_NOISE_BATCH if run.device.type == "cpu" else NOISE_BATCH

    def _pairs(self) -> list[tuple[float, float]]:
        p = self.parameters
        pairs = [(p.lr_impair or first, p.lr_repair or second) for first, second in SWEEP]
        return list(dict.fromkeys(pairs))


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
