"""Epochs over an index: how many steps a stage takes, which rows each step sees, and the descent itself.

The epoch counts of the papers assume tens of thousands of rows. A stage with fewer than 20,000 rows takes at least `min_steps` steps: the
batch is halved first, not below 32, then epochs are added, at most 10 in all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from services.learning.data import Batch, Split
from services.learning.modes import batch_norms, global_draws, image_layout, mode_of
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.unlearning.mechanisms.guard import Guard

MANY_ROWS = 20_000
SMALLEST_BATCH = 32
MOST_EPOCHS = 10
FINITE_EVERY = 25

LeastSteps = Annotated[int, Field(ge=0, le=10_000, description="Least steps when fewer than 20,000 records are used.")]
"""A method's parameter `min_steps`, 150 unless something speaks against it: what a plan is lengthened to."""
Mode = Literal["train", "eval", "frozen"]
OptimizerOf = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Rows(Protocol):
    """Numbered records that a stage is shown."""

    def batch(self, index: Tensor) -> Batch:
        """Return the rows of `index` (B,) prepared for the model."""
        ...


class Steps(Protocol):
    """Which rows each step of a stage sees."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        ...

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row numbers of each step, (B,) int64."""
        ...


S = TypeVar("S", bound=Steps)


@dataclass(frozen=True, slots=True)
class Plan:
    """`epochs` passes over `rows` rows in batches of `batch_size`."""

    rows: int
    batch_size: int
    epochs: int

    @property
    def steps(self) -> int:
        """Optimiser steps in all. A last batch of one row joins the one before it: batch norm has no variance of one row."""
        whole, rest = divmod(self.rows, self.batch_size)
        return self.epochs * (whole + (1 if rest > 1 or (rest == 1 and whole == 0) else 0))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return self.steps // self.epochs

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row numbers of each step, (B,) int64; every row once an epoch."""
        for _ in range(self.epochs):
            shuffled = torch.randperm(self.rows, generator=generator)
            steps = self.steps_per_epoch
            for step in range(steps):
                yield shuffled[step * self.batch_size : None if step == steps - 1 else (step + 1) * self.batch_size]

    def described(self) -> dict[str, int]:
        """Return the effective values for the report."""
        return {"rows": self.rows, "batch_size": self.batch_size, "epochs": self.epochs, "steps": self.steps}


def lengthened(make: Callable[[int, int], S], rows: int, *, batch_size: int, epochs: int, min_steps: int) -> S:
    """Return `make(batch_size, epochs)`, lengthened to `min_steps` where the rows are few; no epochs stay no epochs."""
    if rows >= MANY_ROWS or rows == 0 or epochs == 0:
        return make(batch_size, epochs)
    while make(batch_size, epochs).steps < min_steps and batch_size // 2 >= SMALLEST_BATCH:
        batch_size //= 2
    while make(batch_size, epochs).steps < min_steps and epochs < MOST_EPOCHS:
        epochs += 1
    return make(batch_size, epochs)


def plan_steps(rows: int, *, batch_size: int, epochs: int, min_steps: int) -> Plan:
    """Return the plan of a stage over `rows` rows, lengthened to `min_steps` where the rows are few."""
    return lengthened(lambda batch, passes: Plan(rows, batch, passes), rows, batch_size=batch_size, epochs=epochs, min_steps=min_steps)


def per_class(split: Split, count: int | Callable[[int], int], generator: torch.Generator) -> Split:
    """Return at most `count` random rows of each label of `split`, in the split's order; a function makes the count from the label's rows."""
    labels = split.y.cpu()
    taken: list[Tensor] = []
    for label in sorted({int(label) for label in labels.tolist()}):
        rows = torch.nonzero(labels == label).flatten()
        most = count if isinstance(count, int) else count(len(rows))
        taken.append(rows[torch.randperm(len(rows), generator=generator)[:most]])
    return split.take(torch.cat(taken).sort().values)


def loss_on(records: Rows, model: nn.Module, task: Task) -> Callable[[Tensor], Tensor]:
    """Return the function from row numbers (B,) to the model's training loss on those rows of `records`."""
    return lambda rows: task.loss(model, records.batch(rows))


def sgd_recipe(lr: float, **further: object) -> Recipe:
    """Return descent by SGD as the baselines that the papers compare with share it: momentum 0.9, weight decay 5e-4."""
    return Recipe.model_validate({"optimizer": "sgd", "learning_rate": lr, "momentum": 0.9, "weight_decay": 5e-4, **further})


def freeze_batch_norm(model: nn.Module) -> None:
    """Let batch norm use its running statistics and leave them as they are; everything else keeps its mode."""
    for norm in batch_norms(model):
        norm.eval()


def descend(
    model: nn.Module,
    plan: Steps,
    loss_of: Callable[[Tensor], Tensor],
    run: Run,
    guard: Guard,
    *,
    stage: str,
    lr: float,
    generator: torch.Generator,
    after_step: Callable[[int], bool | None] | None = None,
    optimizer_of: OptimizerOf | None = None,
    rate: Callable[[int, int], float] | None = None,
    mode: Mode = "train",
    still: Sequence[nn.Module] = (),
) -> int:
    """Minimise `loss_of(rows)` over `plan` by a fresh optimiser, Adam unless `optimizer_of` makes another; return the steps taken.

    `generator` drives order and dropout. `after_step` sees the number of each step done, the model in `mode`; true ends the descent.
    `rate(step, of)` is the factor on `lr` at each step, counted from 1; else it is 1. Mode `frozen` is train mode with the statistics of
    batch norm as they are; the modules of `still` are in eval mode meanwhile. The model's modes are restored.

    Raises:
        Diverged: the loss is not finite. Cancelled, DeadlineExceeded: at any step.
    """
    with global_draws(generator, run.device), mode_of(model, training=mode != "eval"), image_layout(model):
        if mode == "frozen":
            freeze_batch_norm(model)
        for module in still:
            module.eval()
        trainable = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=lr, fused=True) if optimizer_of is None else optimizer_of(trainable)
        for step, rows in enumerate(plan.order(generator), start=1):
            if rate is not None:
                for group in optimizer.param_groups:
                    group["lr"] = lr * rate(step, plan.steps)
            with run.autocast():
                loss = loss_of(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % FINITE_EVERY == 0 or step == plan.steps:
                guard.check_finite(loss.detach(), stage)
            run.report(step, plan.steps, stage=stage, loss=loss.detach())
            if after_step is not None and after_step(step):
                run.report(step, step, stage=stage, loss=loss.detach())
                return step
    return plan.steps
