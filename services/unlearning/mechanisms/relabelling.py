"""Records shown under another label: which label, beside which others, and when the class counts as gone.

Source: arXiv 2405.15662, whose released code draws random labels over all classes, the forgotten one included; here it never is. Labels drawn
once: the amnesiac baseline of Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023; Golatkar et al., CVPR 2020 (random labels).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.learning.data import Batch, Split, Splits
from services.learning.modes import evaluating
from services.learning.run import Run, derived_seed
from services.learning.task import Task
from services.unlearning.mechanisms.accuracy import accuracy
from services.unlearning.mechanisms.applicability import refuse
from services.unlearning.mechanisms.course import Course, forget_then_retain
from services.unlearning.mechanisms.descent import Plan, lengthened, per_class, plan_steps
from services.unlearning.method import UnlearningMethod

Order = Literal["mixed", "forget_first"]


def share_of(split: Split, share: float, generator: torch.Generator) -> Split:
    """Return a random `share` of the rows of each label, at least one, in the split's order; all of them at 1."""
    if share >= 1:
        return split
    return per_class(split, lambda rows: max(1, round(share * rows)), generator)


def kept_labels(retain: Split, classes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the labels that retain rows carry, without `classes`, in order: what a relabelled row may be called."""
    return tuple(int(label) for label in retain.y.unique().tolist() if int(label) not in classes)


def targeted_labels(labels: Tensor, donors: Mapping[int, int]) -> Tensor:
    """Return `labels` (n,) with each forgotten class replaced by its donor."""
    changed = labels.clone()
    for label, donor in donors.items():
        changed[labels == label] = donor
    return changed


def random_labels(labels: Tensor, allowed: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return one of `allowed`, equally likely, for each of `labels` (n,) int64."""
    drawn = torch.randint(len(allowed), labels.shape, generator=generator)
    return torch.tensor(allowed, dtype=labels.dtype)[drawn].to(labels.device)


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


def rows_by_label(labels: Tensor) -> dict[str, int]:
    """Return how many of `labels` (n,) int64 each label has that occurs, for the report."""
    return {str(label): int(count) for label, count in enumerate(torch.bincount(labels.cpu()).tolist()) if count}


def most_confused(model: nn.Module, split: Split, allowed: tuple[int, ...], *, batch_size: int = 1024) -> int:
    """Return the class of `allowed` with the largest mean softmax on the rows of `split`, in eval mode."""
    total: Tensor | None = None
    with evaluating(model), torch.no_grad():
        for batch in split.batches(batch_size):
            shares = functional.softmax(model(batch.x).double(), dim=1).sum(dim=0)
            total = shares if total is None else total + shares
    if total is None:
        return allowed[0]
    return allowed[int(total[list(allowed)].argmax())]


@dataclass(frozen=True, slots=True)
class Joined:
    """The rows of two splits as one numbering, of which nothing is copied: those of `first`, then those of `second`."""

    first: Split
    second: Split

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def batch(self, index: Tensor) -> Batch:
        """Return the rows of `index` (B,) on the CPU, prepared for the model, those of `first` first."""
        edge = len(self.first)
        one, two = self.first.batch(index[index < edge]), self.second.batch(index[index >= edge] - edge)
        return Batch(torch.cat([one.x, two.x]), torch.cat([one.y, two.y]))

    def plan(self, order: Order, *, batch_size: int, epochs: int, min_steps: int) -> Plan | Course:
        """Return epochs over both parts shuffled together (`mixed`), or over the first and then the second (`forget_first`)."""
        if order == "mixed":
            return plan_steps(len(self), batch_size=batch_size, epochs=epochs, min_steps=min_steps)

        def make(batch: int, passes: int) -> Course:
            return forget_then_retain(len(self.first), len(self.second), batch_size=batch, epochs=passes)

        return lengthened(make, len(self), batch_size=batch_size, epochs=epochs, min_steps=min_steps)


def relabelled(method: UnlearningMethod, data: Splits, task: Task, run: Run) -> Joined:
    """Return the forget set under wrong labels, drawn once, and the retain set; forgotten classes are excluded. The note `label_seed` tells the draw.

    Raises:
        MethodNotApplicable: no class is left to take a row.
    """
    try:
        labels = wrong_labels(data.forget.y, task.outputs, data.classes, run.stream("labels"))
    except ValueError as error:
        raise refuse(method, data, "there is no class left that a record could be relabelled to") from error
    run.note("label_seed", derived_seed(run.seed, "labels"))
    run.note("relabelled_to", rows_by_label(labels))
    return Joined(replace(data.forget, y=labels), data.retain)


@dataclass(frozen=True, slots=True)
class Watch:
    """Says when a class is gone: rows that were shown and held-out rows of it under their true label, and held-out rows of the others.

    `target` is the most accuracy the class may keep, `floor` the least that the others must; a part without rows does not object.
    """

    shown: Split
    held_out: Split
    others: Split
    target: float
    floor: float

    def met(self, model: nn.Module) -> bool:
        """Return whether `model` meets target and floor."""
        return all((found := accuracy(model, part)) is None or found <= self.target for part in (self.shown, self.held_out)) and (
            (kept := accuracy(model, self.others)) is None or kept >= self.floor
        )


@dataclass(frozen=True, slots=True)
class Lesson:
    """Records to keep, relabelled ones beside them, and the watch that ends training."""

    retain: Split
    shown: Split
    watch: Watch

    @property
    def rows(self) -> Joined:
        """What is trained on."""
        return Joined(self.retain, self.shown)

    def through(self, read: Callable[[Split, str], Split]) -> "Lesson":
        """Return the same lesson over what `read(split, stage)` makes of its records."""
        watched = self.watch
        watch = replace(
            watched,
            shown=read(watched.shown, "features/forget"),
            held_out=read(watched.held_out, "features/analysis"),
            others=read(watched.others, "features/others"),
        )
        return Lesson(read(self.retain, "features/retain"), read(self.shown, "features/shown"), watch)
