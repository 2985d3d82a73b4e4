"""Accuracy inside a method: of the records to be forgotten, and of held-out records weighted to resemble them.

Methods see the analysis split for this, never the verification or the attack split.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.learning.data import Split
from services.learning.modes import evaluating


def predicted(model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
    """Return the most likely class of every row in order, (n,) int64 on the CPU, in eval mode; the model's modes and layout stay."""
    parts = [torch.zeros(0, dtype=torch.int64)]
    with evaluating(model), torch.no_grad():
        parts += [model(batch.x).argmax(dim=1).cpu() for batch in split.batches(batch_size)]
    return torch.cat(parts)


def accuracy(model: nn.Module, split: Split) -> float | None:
    """Return the share of rows that `model` gets right, or None where there is no row."""
    if len(split) == 0:
        return None
    return float((predicted(model, split) == split.y.cpu()).double().mean())


def mean_probability(model: nn.Module, split: Split, *, batch_size: int = 1024) -> float | None:
    """Return the mean probability of the true class in eval mode, in [0, 1], or None where there is no row. On few rows it tells more than accuracy."""
    if len(split) == 0:
        return None
    total = torch.zeros((), dtype=torch.float64, device=split.y.device)
    with evaluating(model), torch.no_grad():
        for batch in split.batches(batch_size):
            total += functional.softmax(model(batch.x).double(), dim=1).gather(1, batch.y[:, None]).sum()
    return float(total) / len(split)


@dataclass(frozen=True, slots=True)
class Matched:
    """Accuracy on held-out rows as it would be if their classes were as frequent as in the forget set."""

    labels: Tensor
    weights: Tensor

    @classmethod
    def to(cls, forget: Split, held_out: Split) -> "Matched | None":
        """Return the weights of the rows of `held_out`, summing to 1; None when it holds no row of any class of `forget`."""
        wanted, present = forget.y.cpu(), held_out.y.cpu()
        classes = int(max(wanted.max(), present.max())) + 1 if len(present) else 0
        if classes == 0:
            return None
        per_row = torch.bincount(wanted, minlength=classes).double() / torch.bincount(present, minlength=classes).clamp(min=1)
        weights = per_row[present]
        if float(weights.sum()) == 0.0:
            return None
        return cls(present, weights / weights.sum())

    def accuracy(self, predicted: Tensor) -> float:
        """Return the weighted share of `predicted` (n,) labels that are right."""
        return float(((predicted == self.labels).double() * self.weights).sum())
