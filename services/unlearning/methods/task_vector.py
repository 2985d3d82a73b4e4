"""Task vectors: a copy learns the forgotten records even better, and what that changed is taken away from the original.

Source: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023: new = original - lambda (taught - original).
Differs: lambda can be chosen: the largest of four that leaves retained answers near where they were.
"""

import copy
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.adapter import adapted, lora_of
from services.unlearning.mechanisms.applicability import admit
from services.unlearning.mechanisms.descent import loss_on, plan_steps
from services.unlearning.mechanisms.guard import snapshot
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.mechanisms.language_edit import FULL_LR, LORA_LR, PROBE_ROWS, LanguageParameters, Watch, answer_probability
from services.unlearning.method import METHODS, Cost, Needs, UnlearningMethod

CANDIDATES = (1.0, 0.75, 0.5, 0.25)


def subtracted(original: Mapping[str, Tensor], taught: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """Return original - weight (taught - original) of every floating tensor; others are the original's."""
    return {
        name: value - weight * (taught[name] - value) if value.is_floating_point() and weight != 0 else value.clone()
        for name, value in original.items()
    }


@METHODS.register("task_vector")
class TaskVector(UnlearningMethod):
    """Teach a copy the forgotten records and take the change away from the original."""

    tasks = frozenset({"language_model"})
    granularities = frozenset({"records", "concept"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=10 * 3.0, least=3 * 150 * 32)

    class Parameters(LanguageParameters):
        """Parameters of `task_vector`."""

        task_lambda: float | None = Field(0.5, ge=0, le=2, description="Share of the change that is taken away; null: chosen on retained answers.")

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, T) tokens, y (B, T) with -100 outside the answers."""
        admit(self, data, task, run)
        edit = GuardedEdit.of(self, model, data.retain, task, run, stage="teach")
        watch = Watch.of(self.parameters, model, data, task, run)
        original = snapshot(model)

        def attempt(scale: float) -> None:
            taught = self._taught(edit, data, scale)
            weight = self.parameters.task_lambda
            if weight is None:
                weight = self._chosen(model, original, taught, watch, task)
            model.load_state_dict(subtracted(original, taught, weight))
            run.note("task_lambda", weight)

        return edit.carry_out(attempt)

    def _taught(self, edit: GuardedEdit, data: Splits, scale: float) -> dict[str, Tensor]:
        """Return the weights of a copy that was trained on the forgotten records."""
        p, run = self.parameters, edit.run
        pupil, lora = copy.deepcopy(edit.model), lora_of(p.lora)
        lr = scale * (p.lr if p.lr is not None else (FULL_LR if lora is None else LORA_LR))
        plan = plan_steps(len(data.forget), batch_size=p.batch_size, epochs=p.epochs, min_steps=p.min_steps)
        most = min(plan.steps, p.max_steps or plan.steps)
        probe = data.forget.batch(torch.arange(min(PROBE_ROWS, len(data.forget)))).x
        with adapted(pupil, lora, probe, run):
            steps = edit.descend(
                plan,
                loss_on(data.forget, pupil, edit.task),
                lr=lr,
                trained=pupil,
                after_step=lambda step: step >= most,
                optimizer_of=lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=0.0),
                mode="eval",
            )
        edit.planned({**plan.described(), "lr": lr}, steps)
        return snapshot(pupil)

    def _chosen(self, model: nn.Module, original: dict[str, Tensor], taught: dict[str, Tensor], watch: Watch, task: Task) -> float:
        """Return the largest candidate that leaves retained answers above the floor, else the smallest."""
        for weight in CANDIDATES:
            model.load_state_dict(subtracted(original, taught, weight))
            if watch.retain is None or answer_probability(model, watch.retain, task) >= watch.floor:
                return weight
        return CANDIDATES[-1]
