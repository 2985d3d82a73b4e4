"""Epochs over an index: how many steps a stage takes, which rows each step sees, and the descent itself.

The epoch counts of the papers assume tens of thousands of rows. A stage with fewer than 20,000 rows takes at least `min_steps` steps: the
batch is halved first, not below 32, then epochs are added, at most 10 in all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.data import Split
from services.learning.modes import batch_norms, global_draws, image_layout, mode_of
from services.learning.run import Run
from services.unlearning.mechanisms.guard import Guard

MANY_ROWS = 20_000
SMALLEST_BATCH = 32
MOST_EPOCHS = 10
FINITE_EVERY = 25


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

    def order(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row numbers of each step, (B,) int64; every row once an epoch."""
        for _ in range(self.epochs):
            shuffled = torch.randperm(self.rows, generator=generator)
            steps = self.steps // self.epochs
            for step in range(steps):
                yield shuffled[step * self.batch_size : None if step == steps - 1 else (step + 1) * self.batch_size]

    def described(self) -> dict[str, int]:
        """Return the effective values for the report."""
        return {"rows": self.rows, "batch_size": self.batch_size, "epochs": self.epochs, "steps": self.steps}


def plan_steps(rows: int, *, batch_size: int, epochs: int, min_steps: int) -> Plan:
    """Return the plan of a stage over `rows` rows, lengthened to `min_steps` where the rows are few; no epochs stay no epochs."""
    plan = Plan(rows, batch_size, epochs)
    if rows >= MANY_ROWS or rows == 0 or epochs == 0:
        return plan
    while plan.steps < min_steps and plan.batch_size // 2 >= SMALLEST_BATCH:
        plan = Plan(rows, plan.batch_size // 2, epochs)
    while plan.steps < min_steps and plan.epochs < MOST_EPOCHS:
        plan = Plan(rows, plan.batch_size, plan.epochs + 1)
    return plan


def per_class(split: Split, count: int, generator: torch.Generator) -> Split:
    """Return at most `count` random rows of each label of `split`, in the split's order."""
    labels = split.y.cpu()
    taken: list[Tensor] = []
    for label in sorted({int(label) for label in labels.tolist()}):
        rows = torch.nonzero(labels == label).flatten()
        taken.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return split.take(torch.cat(taken).sort().values)


def descend(
    model: nn.Module,
    plan: Plan,
    loss_of: Callable[[Tensor], Tensor],
    run: Run,
    guard: Guard,
    *,
    stage: str,
    lr: float,
    generator: torch.Generator,
    after_step: Callable[[int], None] | None = None,
    fixed_statistics: bool = False,
) -> None:
    """Minimise `loss_of(rows)` in train mode by a fresh Adam over `plan`; the model's modes are restored.

    With `fixed_statistics` batch norm stays in eval mode: it uses its running statistics and does not move them.

    `generator` drives order and dropout. `after_step` sees the number of each step done, the model in train mode.

    Raises:
        Diverged: the loss is not finite. Cancelled, DeadlineExceeded: at any step.
    """
    with global_draws(generator, run.device), mode_of(model, training=True), image_layout(model):
        if fixed_statistics:
            for norm in batch_norms(model):
                norm.eval()
        optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=lr, fused=True)
        for step, rows in enumerate(plan.order(generator), start=1):
            with run.autocast():
                loss = loss_of(rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % FINITE_EVERY == 0 or step == plan.steps:
                guard.check_finite(loss.detach(), stage)
            run.report(step, plan.steps, stage=stage, loss=loss.detach())
            if after_step is not None:
                after_step(step)
