"""UNSIR: impair with noise that maximises a class's error, then repair on a subset of the retain set. The forget set is never touched.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023 (arXiv 2111.08947).
Differs: each class's noise keeps its own label (the released notebook labels all of it 0); weights are frozen and buffers kept while noise is
learned; the retain subset is random; learning rates are found by a short sweep against the analysis split unless given; of several passes of
repair the best is kept.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, real_record, refuse
from services.unlearning.mechanisms.descent import LeastSteps, Plan, per_class, plan_steps
from services.unlearning.mechanisms.device_batch import device_batch
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.impair_repair import ImpairRepair, sweep
from services.unlearning.mechanisms.noise import VirtualList, learn_noise
from services.unlearning.method import METHODS, REAL_NUMBERS, Cost, Gentler, Needs, UnlearningMethod

SWEEP = ((1e-3, 1e-3), (5e-3, 2e-3), (0.02, 0.01))


@METHODS.register("unsir")
class Unsir(UnlearningMethod):
    """Unlearn whole classes without their records, from a small subset of the others."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "approximate"
    needs = Needs(forget_set=False, retain_set=True, instead={"retain_set": "retain_part"})
    modalities = REAL_NUMBERS
    cost = Cost(fixed=2 * 3 * 8000, per_class=40 * 256 * 2, least=2 * 3 * 150 * 128)
    gentler = Gentler("copies", 0.5)

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
        min_steps: LeastSteps = Field(150, description="Least steps of repair when fewer than 20,000 retain records are used.")
        epochs_impair: int = Field(1, ge=1, le=10, description="Passes over noise and retain subset.")
        epochs_repair: int = Field(1, ge=0, le=10, description="Passes over the retain subset.")
        batch_size: int = Field(256, ge=8, le=4096, description="Rows per step of impair and repair.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record) real-valued, y (B,) int64."""
        admit(self, data, task, run)
        shown = self._shown(model, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, shown.retain, task, run, stage="repair")
        impair = Plan(len(shown), p.batch_size, p.epochs_impair)
        repair = plan_steps(len(shown.retain), batch_size=p.batch_size, epochs=p.epochs_repair, min_steps=p.min_steps)
        run.note("effective", {"noise_batch": device_batch(p.noise_batch, run), "impair": impair.described(), "repair": repair.described()})
        run.note("steps", {"noise": p.noise_steps, "impair": impair.steps, "repair": repair.steps})
        stages = ImpairRepair(model, shown, data, task, run, edit.guard)

        def attempt(scale: float) -> None:
            pairs = [(first * scale, second * scale) for first, second in self._pairs()]
            run.note("outcome", sweep(stages, impair, repair, pairs).described())

        return edit.carry_out(attempt, ended_by=None)

    def _shown(self, model: nn.Module, data: Splits, task: Task, run: Run) -> VirtualList:
        if not data.classes:
            raise refuse(self, data, "there is no class to learn noise for")
        p = self.parameters
        retain = per_class(data.retain, p.retain_per_class, run.stream("retain"))
        record = real_record(self, data, retain, "noise needs")
        noise = learn_noise(
            model,
            data.classes,
            record,
            task,
            run,
            batch=device_batch(p.noise_batch, run),
            steps=p.noise_steps,
            lr=p.noise_lr,
            l2=p.noise_l2,
            train_mode=p.noise_bn_mode == "train",
        )
        return VirtualList(noise, p.copies, retain)

    def _pairs(self) -> list[tuple[float, float]]:
        p = self.parameters
        pairs = [(p.lr_impair or first, p.lr_repair or second) for first, second in SWEEP]
        return list(dict.fromkeys(pairs))
