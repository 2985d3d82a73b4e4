"""Noise that a network finds maximally unlike a class, or like it, and the list that shows it as that class beside the retain set.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning", IEEE TNNLS 2023; for noise like a class, Chundawat et al., "Zero-Shot Machine
Unlearning", IEEE TIFS 2023.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.cache import model_digest
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


@dataclass(frozen=True, slots=True)
class Aim:
    """What the noise of each of k classes is to be: `sign` -1 for unlike the class (its error is maximised), +1 for like it; `l2` weighs its energy."""

    sign: Tensor
    l2: Tensor

    def of(self, part: slice) -> "Aim":
        """Return the aim of some of the classes."""
        return Aim(self.sign[part], self.l2[part])


def class_losses(
    model: nn.Module, rows: Tensor, labels: Tensor, task: Task, *, classes: int, l2: float | Tensor, sign: float | Tensor = -1.0
) -> Tensor:
    """Return L(N) = sign * CE(f(N), c) + l2 * mean of the squared norm of a row, one value per class, (classes,).

    `rows` holds the classes one after another, equally many rows each; `sign` and `l2` are one number, or (classes,).
    """
    cross_entropy = task.losses(model, Batch(rows, labels)).view(classes, -1).mean(dim=1)
    energy = rows.flatten(1).square().sum(dim=1).view(classes, -1).mean(dim=1)
    return l2 * energy + sign * cross_entropy


def optimise(
    model: nn.Module, start: Tensor, labels: Tensor, task: Task, run: Run, *, classes: int, steps: int, lr: float, aim: Aim, halve_every: int | None
) -> Noise:
    """Descend L from `start` by Adam, over the noise alone; the losses of the classes are summed, so that none sees another."""
    rows = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([rows], lr=lr)
    history: list[Tensor] = []
    for step in range(1, steps + 1):
        losses = class_losses(model, rows, labels, task, classes=classes, l2=aim.l2, sign=aim.sign)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimizer.step()
        if halve_every is not None and step % halve_every == 0:
            optimizer.param_groups[0]["lr"] /= 2
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
    l2: float | tuple[float, ...],
    train_mode: bool,
    vectorised: bool | None = None,
    signs: tuple[float, ...] | None = None,
    halve_every: int | None = None,
) -> Noise:
    """Learn `batch` rows of noise of shape `record` for every class; weights, buffers and modes of `model` are left as they were.

    In eval mode all classes share each step; in train mode batch norm would mix them, so they are learned one by one (`vectorised` overrides).
    `signs` and `l2` may differ by class (default: unlike every class); `lr` is halved each `halve_every` steps. What is learned is kept in the
    cache of the run, as derived from everything that the model has learned.
    """
    weights = l2 if isinstance(l2, tuple) else (l2,) * len(classes)
    aims = signs or (-1.0,) * len(classes)

    def key() -> dict[str, object]:
        told = {"checkpoint": model_digest(model), "task": task.name, "classes": list(classes), "record": list(record), "seed": run.seed}
        chosen = {"batch": batch, "steps": steps, "lr": lr, "l2": list(weights), "signs": list(aims), "halve_every": halve_every}
        return {**told, **chosen, "train_mode": train_mode, "vectorised": vectorised}

    def compute() -> dict[str, Tensor]:
        start = torch.randn((len(classes) * batch, *record), generator=run.stream("noise")).to(run.device)
        labels = torch.tensor(classes, dtype=torch.int64, device=run.device).repeat_interleave(batch)
        aim = Aim(torch.tensor(aims, device=run.device), torch.tensor(weights, device=run.device))
        together = not train_mode if vectorised is None else vectorised
        size = len(classes) if together else 1
        with global_draws(run.stream("noise/dropout"), run.device), frozen(model), mode_of(model, training=train_mode):
            parts = [
                optimise(model, rows, named, task, run, classes=size, steps=steps, lr=lr, aim=aim.of(slice(at, at + size)), halve_every=halve_every)
                for at, rows, named in zip(range(0, len(classes), size), start.split(size * batch), labels.split(size * batch), strict=True)
            ]
        return {name: torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "labels", "losses")}

    return Noise(**run.cache.remember("noise", key, compute, records=None))


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
