"""SCRUB: a student moves away from the original on the forget set and stays with it on the retain set, in turns; then it is rewound.

Source: Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023. KL is taken at temperature T, times T squared (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015), and averaged over rows.
Differs: the original's probabilities are computed once; class requests are not rewound unless asked to, because a model that still knows the
class is as wrong on the forget set as on held-out records of it; where forget records are few, the steps that move away are made more.
"""

from functools import partial

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from services.learning.data import Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import optimizer_for
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.course import Course, Leg
from services.unlearning.mechanisms.descent import Plan, plan_steps
from services.unlearning.mechanisms.distillation import Lesson, distillation_loss, teacher_probabilities
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.rewind import Rewind, rewound
from services.unlearning.method import METHODS, Cost, Gentler, Needs, UnlearningMethod

DECAY_EPOCHS = (5, 8, 9)
DECAY = 0.1
KL_WEIGHT = 0.5


def scrub_loss(logits: Tensor, probabilities: Tensor, y: Tensor | None, *, temperature: float) -> Tensor:
    """Return -KL_T(teacher, student) where `y` is None (a max step), else 0.5 * KL_T + CE (a min step).

    `logits` and `probabilities` (B, C), the latter the teacher's at `temperature`; y (B,) int64.
    """
    divergence = distillation_loss(logits, probabilities, temperature=temperature) * logits.shape[1] * temperature**2
    if y is None:
        return -divergence
    return KL_WEIGHT * divergence + functional.cross_entropy(logits.float(), y)


def decayed(epoch: int) -> float:
    """Return the factor on the step size in `epoch`, counted from 0: a tenth from each of epochs 5, 8 and 9 on."""
    return DECAY ** sum(epoch >= each for each in DECAY_EPOCHS)


@METHODS.register("scrub")
class Scrub(UnlearningMethod):
    """Leave the original on the forget set, obey it on the retain set."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class", "records"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=3 * 4.0, per_retain=10 * 4.0)
    gentler = Gentler("lr", 0.5)

    class Parameters(UnlearningMethod.Parameters):
        """Parameters of `scrub`."""

        lr: float = Field(5e-4, ge=1e-7, le=0.1, description="Step size of Adam; a tenth from each of epochs 5, 8 and 9 on.")
        weight_decay: float = Field(0.1, ge=0, le=1, description="Weight decay.")
        temperature: float = Field(2.0, ge=0.1, le=20, description="Softmax temperature of original and student.")
        epochs: int = Field(10, ge=1, le=100, description="Passes over the retain set.")
        max_epochs: int = Field(3, ge=0, le=100, description="How many of them begin with a pass over the forget set that moves away.")
        batch_retain: int = Field(32, ge=1, le=4096, description="Retain records per step.")
        batch_forget: int = Field(64, ge=1, le=4096, description="Forget records per step.")
        min_max_steps: int = Field(20, ge=0, le=10_000, description="Least steps that move away when the forget set has fewer than 20,000 records.")
        rewind: bool | None = Field(None, description="Return to the epoch that forgot just enough; null: for record requests only.")
        guard_factor: GuardFactor = 10.0

    def course(self, forget_rows: int, retain_rows: int) -> Course:
        """Return the epochs: forget set then retain set for the first few, retain set alone after them; more of them where forget rows are few."""
        p = self.parameters
        most = min(p.max_epochs, p.epochs)
        turns = plan_steps(forget_rows, batch_size=p.batch_forget, epochs=most, min_steps=p.min_max_steps)
        away, back = Leg(0, Plan(forget_rows, turns.batch_size, 1)), Leg(forget_rows, Plan(retain_rows, p.batch_retain, 1))
        return Course(tuple((away, back) if epoch < turns.epochs else (back,) for epoch in range(p.epochs)))

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, *record), y (B,) int64."""
        admit(self, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="scrub")
        targets = [teacher_probabilities(model, part, temperature=p.temperature) for part in (data.forget, data.retain)]
        lesson = Lesson(data.forget, data.retain, *targets)
        course = self.course(len(data.forget), len(data.retain))
        edit.planned(course.described(), course.steps)
        return edit.carry_out(lambda scale: self._scrub(edit, data, lesson, course, p.lr * scale), ended_by=None)

    def _scrub(self, edit: GuardedEdit, data: Splits, lesson: Lesson, course: Course, lr: float) -> None:
        p, model, run = self.parameters, edit.model, edit.run
        rewind = Rewind.wanted(model, data, run, asked=p.rewind)
        recipe = Recipe.model_validate({"optimizer": "adam", "learning_rate": lr, "weight_decay": p.weight_decay})
        edge, ends = len(data.forget), frozenset(course.epoch_ends)

        def loss_of(rows: Tensor) -> Tensor:
            x, probabilities = lesson.batch(rows)
            y = None if int(rows[0]) < edge else data.retain.y[(rows - edge).to(data.retain.y.device)]
            return scrub_loss(model(x), probabilities, y, temperature=p.temperature)

        def look(step: int) -> None:
            if rewind is not None and step in ends:
                rewind.look(step)

        edit.descend(
            course,
            loss_of,
            lr=lr,
            after_step=look,
            optimizer_of=partial(optimizer_for, recipe),
            rate=lambda step, _: decayed(course.epoch_of(step - 1)),
        )
        rewound(rewind, model, run)
