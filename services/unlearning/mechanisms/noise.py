"""Noise that a network finds maximally unlike a class, and the list that shows it as that class beside the retain set.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.data import Batch, Split
from services.learning.modes import global_draws, mode_of
from services.learning.run import Run
from services.learning.task import Task


@dataclass(frozen=True, slots=True)
class Noise:
    """Learned noise: `rows` (k * B_n, *record) float32 in the model's own scale, `labels` (k * B_n,) the class each row was learned for.

    `losses` (k, steps) holds the loss of each class before each step.
    """

    rows: Tensor
    labels: Tensor
    losses: Tensor


@contextmanager
def frozen(model: nn.Module) -> Generator[None]:
    """Hold the weights without gradient, so that none is computed for them, and put every buffer back as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)


def class_losses(model: nn.Module, rows: Tensor, labels: Tensor, task: Task, *, classes: int, l2: float) -> Tensor:
    """Return L(N) = -CE(f(N), c) + l2 * mean of the squared norm of a row, one value per class, (classes,).

    `rows` holds the classes one after another, equally many rows each.
    """
    cross_entropy = task.losses(model, Batch(rows, labels)).view(classes, -1).mean(dim=1)
    energy = rows.flatten(1).square().sum(dim=1).view(classes, -1).mean(dim=1)
    return l2 * energy - cross_entropy


def optimise(model: nn.Module, start: Tensor, labels: Tensor, task: Task, run: Run, *, classes: int, steps: int, lr: float, l2: float) -> Noise:
    """Descend L from `start` by Adam, over the noise alone; the losses of the classes are summed, so that none sees another."""
    rows = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([rows], lr=lr)
    history: list[Tensor] = []
    for step in range(1, steps + 1):
        losses = class_losses(model, rows, labels, task, classes=classes, l2=l2)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimizer.step()
        history.append(losses.detach())
        run.report(step, steps, stage="noise", loss=losses.detach().mean())
    return Noise(rows.detach(), labels, torch.stack(history, dim=1))


def learn_noise(
    model: nn.Module,
    classes: tuple[int, ...],
    record: torch.Size,
    task: Task,
    run: Run,
    *,
    batch: int,
    steps: int,
    lr: float,
    l2: float,
    train_mode: bool,
    vectorised: bool | None = None,
) -> Noise:
    """Learn `batch` rows of noise of shape `record` for every class; weights, buffers and modes of `model` are left as they were.

    In eval mode all classes share each step; in train mode batch norm would mix them, so they are learned one by one (`vectorised` overrides).
    """
    start = torch.randn((len(classes) * batch, *record), generator=run.stream("noise")).to(run.device)
    labels = torch.tensor(classes, dtype=torch.int64, device=run.device).repeat_interleave(batch)
    together = not train_mode if vectorised is None else vectorised
    groups = [slice(0, len(labels))] if together else [slice(at, at + batch) for at in range(0, len(labels), batch)]
    with global_draws(run.stream("noise/dropout"), run.device), frozen(model), mode_of(model, training=train_mode):
        parts = [
            optimise(model, start[group], labels[group], task, run, classes=len(classes) // len(groups), steps=steps, lr=lr, l2=l2)
            for group in groups
        ]
    return Noise(torch.cat([part.rows for part in parts]), torch.cat([part.labels for part in parts]), torch.cat([part.losses for part in parts]))


@dataclass(frozen=True, slots=True)
class VirtualList:
    """`copies` times the noise followed by the retain rows, of which nothing is copied: an entry is a number, looked up when drawn."""

    noise: Noise
    copies: int
    retain: Split

    def __len__(self) -> int:
        return self.copies * len(self.noise.labels) + len(self.retain)

    def batch(self, index: Tensor) -> Batch:
        """Return the entries of `index` (B,) on the CPU: noise rows under the label they were learned for, then retain rows."""
        shown = self.copies * len(self.noise.labels)
        drawn = (index[index < shown] % len(self.noise.labels)).to(self.noise.rows.device)
        kept = self.retain.batch(index[index >= shown] - shown)
        return Batch(torch.cat([self.noise.rows[drawn], kept.x]), torch.cat([self.noise.labels[drawn], kept.y]))
