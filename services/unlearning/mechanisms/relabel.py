"""Wrong labels for the forget set, drawn once, and the training that shows them beside the retain set.

Source: the amnesiac baseline of Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023; Golatkar et al., CVPR 2020 (random labels).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from services.learning.data import Batch, Split, Splits
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.mechanisms.applicability import refuse
from services.unlearning.mechanisms.course import Course, forget_then_retain
from services.unlearning.mechanisms.descent import Plan, lengthened, plan_steps
from services.unlearning.method import UnlearningMethod

Order = Literal["mixed", "forget_first"]


def wrong_labels(y: Tensor, outputs: int, excluded: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a label for each of `y` (n,) int64, uniform over the classes 0 to outputs - 1 without its own and without `excluded`.

    Raises:
        ValueError: a row has no other class to go to.
    """
    candidates = torch.tensor([label for label in range(outputs) if label not in excluded], dtype=torch.int64)
    place = torch.full((outputs,), outputs, dtype=torch.int64)
    place[candidates] = torch.arange(len(candidates))
    own = place[y.cpu()]
    choices = len(candidates) - (own < outputs).long()
    if bool((choices < 1).any()):
        raise ValueError("there is no other class")
    drawn = (torch.rand(len(y), generator=generator, dtype=torch.float64) * choices).long()
    return candidates[drawn + (drawn >= own).long()].to(y.device)


@dataclass(frozen=True, slots=True)
class Relabelled:
    """Forget rows under wrong labels (numbers 0 to n_f - 1), and retain rows under their own (the next)."""

    forget: Split
    retain: Split

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def batch(self, index: Tensor) -> Batch:
        """Return the rows of `index` (B,) on the CPU, forget rows first."""
        edge = len(self.forget)
        if bool((index < edge).all()):
            return self.forget.batch(index)
        first, second = self.forget.batch(index[index < edge]), self.retain.batch(index[index >= edge] - edge)
        return Batch(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))

    def plan(self, order: Order, *, batch_size: int, epochs: int, min_steps: int) -> Plan | Course:
        """Return epochs over both parts shuffled together (`mixed`), or over the forget rows and then the retain rows (`forget_first`)."""
        if order == "mixed":
            return plan_steps(len(self), batch_size=batch_size, epochs=epochs, min_steps=min_steps)

        def make(batch: int, passes: int) -> Course:
            return forget_then_retain(len(self.forget), len(self.retain), batch_size=batch, epochs=passes)

        return lengthened(make, len(self), batch_size=batch_size, epochs=epochs, min_steps=min_steps)


def relabelled(method: UnlearningMethod, data: Splits, task: Task, run: Run) -> Relabelled:
    """Draw the wrong labels of a request, once; all forgotten classes of a class request are excluded. The note `label_seed` tells the draw.

    Raises:
        MethodNotApplicable: no class is left to take a row.
    """
    try:
        labels = wrong_labels(data.forget.y, task.outputs, data.classes, run.stream("labels"))
    except ValueError as error:
        raise refuse(method, data, "there is no class left that a record could be relabelled to") from error
    run.note("label_seed", derived_seed(run.seed, "labels"))
    counts = torch.bincount(labels.cpu(), minlength=task.outputs)
    run.note("relabelled_to", {str(label): int(count) for label, count in enumerate(counts.tolist()) if count})
    return Relabelled(replace(data.forget, y=labels), data.retain)
