"""Bad teaching: a student imitates the original on retain records and an incompetent teacher on the forget set.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an Incompetent Teacher", AAAI 2023
(arXiv 2205.08096).
Differs: each teacher answers only for its own records, once, before training; `uniform_retained` (equal shares for every class that stays) is
the teacher of class requests, because near-uniform targets leave some of the class standing; record requests rewind to the checkpoint whose
forget accuracy is nearest that of held-out records with the same classes (Kurmanji et al., "Towards Unbounded Machine Unlearning",
NeurIPS 2023), because the teacher would push below it.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from services.errors import ParameterOutOfRange
from services.learning.data import Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.descent import LeastSteps, Plan
from services.unlearning.mechanisms.distillation import (
    Lesson,
    distillation_loss,
    remembered_probabilities,
    teacher_probabilities,
    uniform_probabilities,
)
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.rewind import Rewind, rewound
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod

Incompetent = Literal["random_init", "uniform", "random_init_train_bn", "uniform_retained"]
PARITY_LR = 1e-4
UNIFORM_RETAINED_LR = 1e-3


@METHODS.register("bad_teacher")
class BadTeacher(UnlearningMethod):
    """Distil forgetting from a teacher that never learned, and the rest from the original."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=5.0, per_retain=0.3 * 5, least=5 * 150 * 128)
    gentler = Gentler("retain_fraction", 2.0)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `bad_teacher`."""

        retain_fraction: float = Field(0.3, ge=0.01, le=1, description="Share of the retain set that the student sees.")
        epochs: int = Field(1, ge=1, le=20, description="Passes over forget set and retain share.")
        lr: float | None = Field(None, ge=1e-7, le=1e-2, description="Step size of Adam; null: 0.001 with uniform_retained, else 0.0001.")
        min_steps: LeastSteps = 150
        batch_size: int = Field(256, ge=8, le=4096, description="Records per step.")
        temperature: float = Field(1.0, ge=0.1, le=20, description="Softmax temperature of teachers and student.")
        incompetent: Incompetent | None = Field(
            None, description="The teacher of the forget set; null: uniform_retained for class requests, else random_init."
        )
        rewind: bool | None = Field(None, description="Return to the checkpoint that forgot just enough; null: for record requests only.")
        rewind_every_steps: int = Field(10, ge=1, le=1000, description="Steps between checkpoints to rewind to.")
        teacher_seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Seed of a random teacher; null: derived from the job's seed.")
        guard_factor: GuardFactor = 10.0

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64; y serves the rewind alone."""
        admit(self, data, task, run)
        lesson = self._lesson(model, data, task, run)
        edit = GuardedEdit.of(self, model, lesson.retain, task, run, stage="distil")
        lr = self._lr(data)
        plan = edit.plan(len(lesson), incompetent=self._incompetent(data), lr=lr)
        return edit.carry_out(lambda scale: self._distil(edit, data, lesson, plan, lr * scale), ended_by=None)

    def _distil(self, edit: GuardedEdit, data: Splits, lesson: Lesson, plan: Plan, lr: float) -> None:
        p, model, run = self.parameters, edit.model, edit.run
        rewind = Rewind.wanted(model, data, run, asked=p.rewind)

        def loss_of(rows: Tensor) -> Tensor:
            x, probabilities = lesson.batch(rows)
            return distillation_loss(model(x), probabilities, temperature=p.temperature)

        def look(step: int) -> None:
            if rewind is not None and (step % p.rewind_every_steps == 0 or step == plan.steps):
                rewind.look(step)

        edit.descend(plan, loss_of, lr=lr, after_step=look)
        rewound(rewind, model, run)

    def _incompetent(self, data: Splits) -> Incompetent:
        chosen: Incompetent | None = self.parameters.incompetent
        return chosen or ("uniform_retained" if data.kind == "class" else "random_init")

    def _lr(self, data: Splits) -> float:
        if self.parameters.lr is not None:
            return self.parameters.lr
        return UNIFORM_RETAINED_LR if self._incompetent(data) == "uniform_retained" else PARITY_LR

    def _lesson(self, model: nn.Module, data: Splits, task: Task, run: Run) -> Lesson:
        p = self.parameters
        count = max(1, round(p.retain_fraction * len(data.retain)))
        retain = data.retain.sample(count, run.stream("retain"))
        competent = remembered_probabilities(model, retain, run, temperature=p.temperature)
        return Lesson(data.forget, retain, self._incompetent_probabilities(data, task, run), competent)

    def _incompetent_probabilities(self, data: Splits, task: Task, run: Run) -> Tensor:
        p, kind = self.parameters, self._incompetent(data)
        if kind == "uniform":
            return uniform_probabilities(len(data.forget), task.outputs, (), run.device)
        if kind == "uniform_retained":
            if not data.classes:
                raise ParameterOutOfRange(name="incompetent", detail="'uniform_retained' needs the classes of a class request")
            return uniform_probabilities(len(data.forget), task.outputs, data.classes, run.device)
        if run.architecture is None:
            raise refuse(self, data, "the model version names no architecture to build a random teacher from")
        train_bn = kind == "random_init_train_bn"
        if train_bn and len(data.forget) == 1:
            raise ParameterOutOfRange(name="incompetent", detail="one record has no batch statistics; use 'random_init'")
        seed = p.teacher_seed if p.teacher_seed is not None else derived_seed(run.seed, "teacher")
        run.note("teacher_seed", seed)
        teacher = run.architecture.fresh(seed).to(run.device)
        return teacher_probabilities(teacher, data.forget, temperature=p.temperature, train_bn=train_bn)
