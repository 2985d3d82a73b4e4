"""The loop that most methods for language models share: a batch to forget, a batch to keep beside it, and an end when enough is forgotten.

Loss = gamma * L_f + alpha * L_r. L_f is the method's; L_r is the retained answers' loss, or how far the model has gone from the original on them.
Every batch of forgotten records is paired with one of retained records of the same size. Dropout is off.

Source: the common form of the methods in the repository open-unlearning (Dorna et al., 2025).
Differs: ends early when the forgotten answers are no likelier than those of held-out records, and retained answers are near where they were. What is
asked of the original on forgotten records is asked once, before the first step, where there is room to keep it. On retained records, of which a run
meets few twice, a frozen copy of the original is asked at each step.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from services.learning.data import Batch, Split, Splits
from services.learning.run import Run
from services.learning.sequences import answer_logits
from services.learning.task import Task
from services.unlearning.mechanisms.adapter import Lora, adapted, lora_of
from services.unlearning.mechanisms.applicability import admit, refuse
from services.unlearning.mechanisms.descent import LeastSteps, Plan
from services.unlearning.mechanisms.guard import GuardFactor
from services.unlearning.mechanisms.guarded_edit import GuardedEdit
from services.unlearning.method import Cost, Memory, Needs, UnlearningMethod

LossOf = Callable[[Tensor], Tensor]
WATCHED_ROWS = 100
PROBE_ROWS = 4
FLOOR_BELOW = 0.02
FULL_LR, LORA_LR = 1e-5, 1e-4


class LanguageParameters(UnlearningMethod.Parameters):
    """Parameters that all methods for language models share."""

    lr: float | None = Field(None, ge=1e-8, le=1e-2, description="Step size of AdamW; null: 0.00001, with an adapter 0.0001.")
    batch_size: int = Field(32, ge=1, le=1024, description="Records to forget, and as many to keep, per step.")
    epochs: int = Field(10, ge=1, le=100, description="Passes over the records to forget.")
    max_steps: int | None = Field(None, ge=1, le=1_000_000, description="Most steps; null: as the epochs give.")
    min_steps: LeastSteps = Field(150, description="Least steps planned where the records are few: batches are halved, then epochs added.")
    lora: bool | Lora = Field(default=False, description="Train a low-rank adapter that is merged at the end; true: rank 8.")
    forget_target: float | None = Field(
        None, ge=0, le=1, description="End when the forgotten answers' mean probability is at most this; null: that of held-out records' answers."
    )
    retain_floor: float | None = Field(
        None, ge=0, le=1, description="Never end early while retained answers' mean probability is below; null: 0.02 below the original's."
    )
    check_every: int = Field(10, ge=1, le=10_000, description="Steps between two looks at target and floor.")
    guard_factor: GuardFactor = 10.0


class PairedParameters(LanguageParameters):
    """Parameters of methods that keep retained records in place meanwhile."""

    gamma: float = Field(1.0, ge=0, le=10_000, description="Weight of the forget loss.")
    alpha: float = Field(1.0, ge=0, le=10_000, description="Weight of the retain loss.")
    retain_loss: Literal["nll", "kl"] = Field("nll", description="Retained answers' own loss, or the divergence from the original on them.")


def answer_probability(model: nn.Module, split: Split, task: Task) -> float:
    """Return the mean over records of exp(-loss): the geometric mean of an answer's token probabilities, between 0 and 1."""
    logs = task.predict(model, split)[..., 0].double()
    counts = (split.y[:, 1:] != -100).sum(dim=1).clamp(min=1).cpu()
    return float((logs.sum(dim=1) / counts).exp().mean())


@dataclass(frozen=True, slots=True)
class Watch:
    """Says when enough is forgotten: at most `target` on `forget`, at least `floor` on `retain`; without a target never."""

    forget: Split
    retain: Split | None
    target: float | None
    floor: float

    @classmethod
    def of(cls, p: LanguageParameters, model: nn.Module, data: Splits, task: Task, run: Run) -> "Watch":
        """Measure the original and return the watch; the note `watched` tells where it stands."""
        stream = run.stream("watch")
        forget = data.forget.sample(WATCHED_ROWS, stream)
        retain = data.retain.sample(WATCHED_ROWS, stream) if len(data.retain) else None
        target = p.forget_target
        if target is None and len(data.analysis):
            target = answer_probability(model, data.analysis.sample(WATCHED_ROWS, stream), task)
        floor = p.retain_floor
        if floor is None:
            floor = 0.0 if retain is None else max(0.0, answer_probability(model, retain, task) - FLOOR_BELOW)
        run.note("watched", {"forget_target": target, "retain_floor": floor, "rows": len(forget)})
        return cls(forget, retain, target, floor)

    def met(self, model: nn.Module, task: Task) -> bool:
        """Return whether the model may stop."""
        if self.target is None or answer_probability(model, self.forget, task) > self.target:
            return False
        return self.retain is None or answer_probability(model, self.retain, task) >= self.floor


class LanguageEdit(UnlearningMethod):
    """A method that forgets by descending one loss over the forgotten records; `forgetting` makes it."""

    tasks = frozenset({"language_model"})
    granularities = frozenset({"records", "concept"})
    guarantee = "approximate"
    needs = Needs(forget_set=True, retain_set=True)
    cost = Cost(per_forget=10 * 6.0, least=6 * 150 * 32)
    memory = Memory(batches=2.0, adapter="lora", more={"retain_loss=kl": 1.0})
    sharded = True
    stage: ClassVar[str] = "forget"

    @abstractmethod
    def forgetting(self, model: nn.Module, data: Splits, task: Task, run: Run) -> LossOf:
        """Return the forget loss of row numbers (B,) of the forget set. `model` is the original now: what the loss needs of it is taken now."""

    def keeping(self, model: nn.Module, data: Splits, task: Task, run: Run) -> Callable[[Batch], Tensor]:  # noqa: ARG002
        """Return the retain loss of a batch."""
        if self.parameters.retain_loss == "nll":
            return lambda batch: task.loss(model, batch)
        original = frozen_copy(model)
        return lambda batch: divergence(original, model, batch)

    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Change `model` in place and return it in eval mode. x (B, T) tokens, y (B, T) with -100 outside the answers."""
        admit(self, data, task, run)
        p = self.parameters
        edit = GuardedEdit.of(self, model, guarded_by(self, data), task, run, stage=self.stage)
        watch = Watch.of(p, model, data, task, run)
        forget_loss = self.forgetting(model, data, task, run)
        weighted = (getattr(p, "gamma", 1.0), getattr(p, "alpha", 0.0))
        retain_loss = self.keeping(model, data, task, run) if weighted[1] and len(data.retain) else None
        plan = edit.plan(len(data.forget))
        lora = lora_of(p.lora)
        lr = p.lr if p.lr is not None else (FULL_LR if lora is None else LORA_LR)
        probe = data.forget.batch(torch.arange(min(PROBE_ROWS, len(data.forget)))).x

        def attempt(scale: float) -> None:
            kept = data.retain.forever(plan.batch_size, run.stream("retain")) if retain_loss is not None else None

            def loss_of(rows: Tensor) -> Tensor:
                loss = weighted[0] * forget_loss(rows)
                return loss if kept is None or retain_loss is None else loss + weighted[1] * retain_loss(next(kept))

            with adapted(model, lora, probe, run):
                self.descended(edit, plan, loss_of, watch, lr=lr * scale)

        return edit.carry_out(attempt, ended_by=None)

    def descended(self, edit: GuardedEdit, plan: Plan, loss_of: LossOf, watch: Watch, *, lr: float) -> None:
        """Descend `loss_of` over the plan until the watch is satisfied; the notes tell steps, step size and what ended it."""
        p, run, model, task = self.parameters, edit.run, edit.model, edit.task
        most = min(plan.steps, p.max_steps or plan.steps)

        def look(step: int) -> bool:
            met = step % p.check_every == 0 and watch.met(model, task)
            if met or step >= most:
                run.note("ended_by", "target" if met else "steps")
            return met or step >= most

        steps = edit.descend(
            plan,
            loss_of,
            lr=lr,
            after_step=look,
            optimizer_of=lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=0.0),
            mode="eval",
        )
        run.note("steps", {edit.stage: steps})
        run.note("lr", lr)


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model that is never trained, in eval mode, to be asked at each step for what is not kept."""
    return copy.deepcopy(model).requires_grad_(requires_grad=False).eval()


def divergence(original: nn.Module, model: nn.Module, batch: Batch) -> Tensor:
    """Return KL(original || model) at the answers' tokens, summed over the vocabulary and averaged over tokens."""
    with torch.no_grad():
        before = log_softmax(answer_logits(original, batch)[0], dim=-1)
    after = log_softmax(answer_logits(model, batch)[0], dim=-1)
    return kl_div(after, before, log_target=True, reduction="batchmean")


def guarded_by(method: UnlearningMethod, data: Splits) -> Split:
    """Return the records whose loss the guard watches: retained ones, else held-out ones. Raises MethodNotApplicable where there are neither."""
    if len(data.retain):
        return data.retain
    if len(data.analysis) == 0:
        raise refuse(method, data, "there is neither a retained nor a held-out record to watch its damage by")
    return data.analysis
