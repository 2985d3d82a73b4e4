"""Teachers as tables of probabilities, and the loss of a student that imitates them.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.learning.cache import model_digest, records_digest
from services.learning.data import Split
from services.learning.modes import batch_norms, evaluating
from services.learning.run import Run

TEACHER_BATCH = 1024


def distillation_loss(logits: Tensor, probabilities: Tensor, *, temperature: float) -> Tensor:
    """Return KL(teacher, student) averaged over rows and classes (B * C), without a factor for the temperature; 0 log 0 is 0.

    `logits` (B, C) are the student's, `probabilities` (B, C) those of each row's teacher, at the same temperature.
    """
    log_student = functional.log_softmax(logits.float() / temperature, dim=1)
    log_teacher_weighted: Tensor = torch.special.xlogy(probabilities, probabilities)
    return (log_teacher_weighted - probabilities * log_student).mean()


def batch_statistics(teacher: nn.Module) -> None:
    """Let batch norm use the statistics of each batch; everything else stays as it is."""
    for norm in batch_norms(teacher):
        norm.train()


def teacher_probabilities(teacher: nn.Module, split: Split, *, temperature: float, train_bn: bool = False, batch_size: int = TEACHER_BATCH) -> Tensor:
    """Return the teacher's probabilities on every row of `split` in order, (n, C) float32 on the device, in eval mode.

    `train_bn` lets batch norm normalise by batches of `batch_size`; the last batch takes in a row that would be alone.
    """
    ends = [*range(batch_size, len(split) - 1, batch_size), len(split)]
    starts = [0, *ends[:-1]]
    parts: list[Tensor] = []
    with evaluating(teacher), torch.no_grad():
        if train_bn:
            batch_statistics(teacher)
        for start, end in zip(starts, ends, strict=True):
            logits: Tensor = teacher(split.batch(torch.arange(start, end)).x)
            parts.append(functional.softmax(logits.float() / temperature, dim=1))
    return torch.cat(parts)


def remembered_probabilities(teacher: nn.Module, split: Split, run: Run, *, temperature: float) -> Tensor:
    """Return `teacher_probabilities` in eval mode, kept row by row in the cache of the run.

    The key names the records with their order: batch mates may move the last bit of a probability, and a cache must not.
    """

    def key() -> dict[str, object]:
        return {"checkpoint": model_digest(teacher), "records": records_digest(split), "temperature": temperature, "batch": TEACHER_BATCH}

    def compute() -> dict[str, Tensor]:
        return {"probabilities": teacher_probabilities(teacher, split, temperature=temperature)}

    return run.cache.remember("teacher_probabilities", key, compute, records=split.ids, by_row=True)["probabilities"]


def uniform_probabilities(rows: int, outputs: int, excluded: tuple[int, ...], device: torch.device) -> Tensor:
    """Return equal probabilities for every class but `excluded`, which get none; (rows, outputs) float32."""
    one = torch.ones(outputs, device=device)
    one[list(excluded)] = 0.0
    return (one / one.sum()).expand(rows, outputs)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Forget rows (numbers 0 to n_f - 1) and retain rows (the next), each with its teacher's probabilities."""

    forget: Split
    retain: Split
    forget_targets: Tensor
    retain_targets: Tensor

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, *record) and the teachers' probabilities (B, C) of the rows of `index` (B,), forget rows first."""
        edge = len(self.forget)
        first, second = index[index < edge], index[index >= edge] - edge
        x = torch.cat([self.forget.batch(first).x, self.retain.batch(second).x])
        device = self.retain_targets.device
        return x, torch.cat([self.forget_targets[first.to(device)], self.retain_targets[second.to(device)]])
