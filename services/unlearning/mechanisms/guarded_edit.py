"""An edit of a model in place under the divergence guard: planned and noted, held to the guard at its end, tried once more at a tenth of the rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from services.learning.data import Split
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import FitResult, fit
from services.unlearning.mechanisms.descent import Mode, OptimizerOf, Plan, Steps, descend, plan_steps
from services.unlearning.mechanisms.guard import Guard, diverging, with_retry
from services.unlearning.method import UnlearningMethod


@dataclass(frozen=True, slots=True)
class GuardedEdit:
    """One run of `method`, which edits `model` in place in the one stage `stage`; `guard` knows the model before the edit."""

    method: UnlearningMethod
    model: nn.Module
    task: Task
    run: Run
    guard: Guard
    stage: str

    @classmethod
    def of(cls, method: UnlearningMethod, model: nn.Module, probe: Split, task: Task, run: Run, *, stage: str) -> "GuardedEdit":
        """Measure `model` before the edit, on records of `probe`. Raises Diverged when its loss is not finite."""
        guard = Guard.around(method.name, model, probe, task, run, factor=method.parameters.guard_factor)
        return cls(method, model, task, run, guard, stage)

    def plan(self, rows: int, **effective: object) -> Plan:
        """Return the method's batches and epochs over `rows` rows, lengthened to its least steps where they are few; note them after `effective`."""
        p = self.method.parameters
        plan = plan_steps(rows, batch_size=p.batch_size, epochs=p.epochs, min_steps=p.min_steps)
        self.planned({**effective, **plan.described()}, plan.steps)
        return plan

    def planned(self, effective: Mapping[str, object], steps: int) -> None:
        """Note the effective values of the stage and its steps."""
        self.run.note("effective", dict(effective))
        self.run.note("steps", {self.stage: steps})

    def fit(self, split: Split, recipe: Recipe) -> FitResult:
        """Train the model on `split` by the common loop. Raises Diverged: a loss is not finite. Cancelled, DeadlineExceeded: at any step."""
        with diverging(self.method.name, self.stage):
            return fit(self.model, split, self.task, recipe, self.run, stage=self.stage, generator=self.run.stream(self.stage))

    def descend(
        self, plan: Steps, loss_of: Callable[[Tensor], Tensor], *, lr: float, trained: nn.Module | None = None, stream: str | None = None,
        after_step: Callable[[int], bool | None] | None = None, optimizer_of: OptimizerOf | None = None,
        rate: Callable[[int, int], float] | None = None, mode: Mode = "train", still: Sequence[nn.Module] = (),
    ) -> int:  # fmt: skip
        """Minimise `loss_of` over `plan` as `mechanisms.descent.descend` does, under this edit's guard and stage; return the steps taken.

        `trained` is the edit's model unless another, such as its head alone, is given; rows are ordered by the stream of the stage or `stream`.
        """
        return descend(
            self.model if trained is None else trained, plan, loss_of, self.run, self.guard, stage=self.stage, lr=lr,
            generator=self.run.stream(stream or self.stage), after_step=after_step, optimizer_of=optimizer_of, rate=rate, mode=mode, still=still,
        )  # fmt: skip

    def carry_out(self, attempt: Callable[[float], None], *, ended_by: str | None = "steps", watched: str = "retain_loss") -> nn.Module:
        """Run `attempt(scale)`, hold the result to the guard, and once more at a tenth of the rate where it diverged; return the model in eval mode.

        The note `ended_by` is written after an attempt unless it is None and the attempt tells itself; `watched` names the guard's loss.

        Raises:
            Diverged: of the last attempt; the model holds its original weights.
        """

        def held(scale: float) -> None:
            attempt(scale)
            if ended_by is not None:
                self.run.note("ended_by", ended_by)
            self.run.note(watched, {"before": self.guard.before, "after": self.guard.check(self.model, self.stage)})

        with_retry(self.method.name, self.model, self.run, held, retries=self.method.retries)
        return self.model
