"""Which checkpoint of a run to keep when going on brings back what was forgotten.

The released code of gated knowledge transfer has no such rule: its authors look at validation curves. Here a run ends after so many checks
in a row above the threshold, and keeps the checkpoint that retains most among those below it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.learning.data import Splits
from services.learning.modes import evaluating
from services.unlearning.mechanisms.accuracy import accuracy

PATIENCE = 10
IDLE = 10


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One look at the student after `at` pseudo-batches: what is left of the forgotten classes, what is kept; None where it cannot be told."""

    at: int
    forget: float | None
    retain: float | None

    def described(self) -> dict[str, float | int | None]:
        """Return the checkpoint for the report."""
        return {"pseudo_batch": self.at, "forget": self.forget, "retain": self.retain}


class StoppingRule:
    """Keeps the last checkpoint with `forget` at most `threshold` and the greatest `retain`.

    `patience` checks in a row above the threshold end the run (`relearned`); so do a checkpoint below it that retains `target`, for nothing is
    left to gain, and `idle` checks in a row below it of which none retains more than the best before them (`no_gain`).
    """

    def __init__(self, threshold: float, *, patience: int = PATIENCE, target: float | None = None, idle: int = IDLE) -> None:
        self.threshold, self.patience, self.target = threshold, patience, target
        self.trajectory: list[Checkpoint] = []
        self.best: Checkpoint | None = None
        self.weights: dict[str, Tensor] = {}
        self.idle_limit = idle
        self.above, self.idle = 0, 0
        self.ended_by = "steps"

    def consider(self, look: Checkpoint, weights: Callable[[], dict[str, Tensor]]) -> bool:
        """Take note of `look`, keep `weights()` where it is the best so far, and return whether the run should end."""
        self.trajectory.append(look)
        if look.forget is None or look.retain is None:
            return False
        if look.forget > self.threshold:
            self.above += 1
            self.ended_by = "relearned" if self.above >= self.patience else self.ended_by
            return self.above >= self.patience
        self.above = 0
        gain = self.best is None or look.retain > (self.best.retain or 0.0)
        self.idle = 0 if gain else self.idle + 1
        if gain or look.retain == (self.best.retain if self.best else None):
            self.best, self.weights = look, weights()
        if self.target is not None and look.retain >= self.target:
            self.ended_by = "target"
            return True
        if self.idle >= self.idle_limit:
            self.ended_by = "no_gain"
            return True
        return False


class OperatorEval:
    """Accuracies of the student on the operator's own evaluation records: of the forgotten classes, and of the others."""

    def __init__(self, data: Splits) -> None:
        self.forget = data.analysis.with_labels(data.classes, keep=True)
        self.retain = data.analysis.with_labels(data.classes, keep=False)

    @property
    def possible(self) -> bool:
        """Whether there are records of both kinds."""
        return len(self.forget) > 0 and len(self.retain) > 0

    def look(self, at: int, student: nn.Module) -> Checkpoint:
        """Measure `student`."""
        return Checkpoint(at, accuracy(student, self.forget), accuracy(student, self.retain))


class DataFree:
    """Proxies on pseudo-images that the student was not trained on: no record of anyone is seen.

    The leak is the student's mean probability of the forgotten class on images that the teacher sees as that class, or, before there are
    any, on all that the gate rejected; what is kept is the agreement with the teacher on images that the gate let through.
    """

    def __init__(self, teacher: nn.Module, classes: tuple[int, ...], *, rows: int) -> None:
        self.teacher, self.classes, self.rows = teacher, classes, rows
        self.rejected: Tensor | None = None
        self.accepted: Tensor | None = None

    def show(self, x: Tensor, keep: Tensor) -> None:
        """Take pseudo-images `x` (B, ch, H, W) to measure on: those of `keep` (B,) bool in place of earlier ones, the others added to earlier ones."""
        self.accepted = x[keep] if bool(keep.any()) else self.accepted
        self.rejected = torch.cat([x[~keep], self.rejected if self.rejected is not None else x[:0]])[: self.rows]

    def look(self, at: int, student: nn.Module) -> Checkpoint:
        """Measure `student`."""
        with evaluating(student), evaluating(self.teacher), torch.no_grad():
            return Checkpoint(at, self._leak(student), self._agreement(student))

    def _leak(self, student: nn.Module) -> float | None:
        if self.rejected is None or len(self.rejected) == 0:
            return None
        logits, classes = self.teacher(self.rejected), list(self.classes)
        seen = torch.isin(logits.argmax(dim=1), torch.tensor(classes, device=logits.device))
        rows = seen if bool(seen.any()) else torch.ones_like(seen)
        taught = logits[rows][:, classes].argmax(dim=1)
        forgotten = student(self.rejected[rows]).float().softmax(dim=1)[:, classes]
        return float(forgotten.gather(1, taught[:, None]).mean())

    def _agreement(self, student: nn.Module) -> float | None:
        if self.accepted is None:
            return None
        return float((student(self.accepted).argmax(1) == self.teacher(self.accepted).argmax(1)).double().mean())
