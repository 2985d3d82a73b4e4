"""Gated knowledge transfer: a student learns from a teacher on pseudo-images, of which a gate drops those the teacher sees as forgotten.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", IEEE TIFS 2023 (arXiv 2201.05629), after Micaelli and Storkey, "Zero-shot
Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019.
Differs: pseudo-images and the teacher's answers to them are computed once for all student steps that share them; a batch of which nothing
passes the gate is drawn again, within a budget.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import ReduceLROnPlateau

from services.errors import Diverged, InvalidInput
from services.learning.run import Run
from services.unlearning.mechanisms.attention import summed_difference, tapped
from services.unlearning.mechanisms.distillation import batch_statistics
from services.unlearning.mechanisms.generator import Generator
from services.unlearning.mechanisms.guard import snapshot
from services.unlearning.mechanisms.noise import frozen

STAGE = "distil"
SCHEDULE_EPSILON = 1e-8
PLATEAU_EVERY = 50
PLATEAU_PATIENCE = 2
EMPTY = "the gate kept no pseudo-image of {empties} batches in a row, and going back to the last good generator {reloads} times did not help"


def gate(logits: Tensor, classes: Sequence[int], epsilon: float) -> Tensor:
    """Return which rows of the teacher's `logits` (B, C) give every class of `classes` a probability of at most `epsilon`, (B,) bool."""
    return (functional.softmax(logits.float(), dim=1)[:, list(classes)] <= epsilon).all(dim=1)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher, student) of two logits (B, C) over B * C, a scalar with a gradient in both, without a factor for the temperature."""
    first, second = (functional.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return (second.exp() * (second - first)).mean()


def halvings(at: int, lr: float, *, every: int = 150) -> float:
    """Return the generator's rate after `at` pseudo-batches as the released code has it: halved each 150 until a halving would change under 1e-8."""
    for _ in range(at // every):
        if lr - lr / 2 <= SCHEDULE_EPSILON:
            break
        lr /= 2
    return lr


def fresh_student(teacher: nn.Module, run: Run) -> nn.Module:
    """Return a new network of the run's architecture, in eval mode. Raises InvalidInput where it has drawn weights of the teacher again."""
    student = run.fresh_model("student").eval()
    for (name, first), second in zip(student.named_parameters(), teacher.parameters(), strict=True):
        constant = bool((first == first.flatten()[0]).all())  # ones and zeros of a norm never trained tell nothing
        if torch.equal(first, second) and not constant:
            raise InvalidInput(detail=f"the student's {name} is the original's; run again with another seed")
    return student


@dataclass(frozen=True, slots=True)
class Settings:
    """How to transfer. `beta` weighs attention; `epsilon` is the gate's; `clip` bounds gradient norms; `student_statistics` lets batch norm train."""

    classes: tuple[int, ...]
    batch: int
    n_gen: int
    n_stu: int
    epsilon: float
    temperature: float
    beta: float
    clip: float
    student_statistics: bool
    max_empty: int
    max_reloads: int
    pseudo_batches: int

    @property
    def steps(self) -> int:
        """Optimiser steps of a run to its end."""
        return self.pseudo_batches * (self.n_gen + self.n_stu)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pseudo-images that the gate let through, x (B, ch, H, W), with the teacher's logits (B, C) and attention maps, computed once."""

    x: Tensor
    logits: Tensor
    maps: tuple[Tensor, ...]


class Transfer:
    """One student's lessons. The teacher is frozen and in eval mode; generator and student learn by Adam of their own."""

    def __init__(
        self, method: str, teacher: nn.Module, student: nn.Module, generator: Generator, taps: Sequence[str], given: Settings, run: Run
    ) -> None:
        self.method, self.teacher, self.student, self.generator, self.taps, self.given, self.run = (
            method,
            teacher,
            student,
            generator,
            taps,
            given,
            run,
        )
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), fused=True)
        self.student_optimizer = torch.optim.Adam(student.parameters(), fused=True)
        self.draws, self.probes = run.stream("pseudo-images"), run.stream("probe")
        self.loss = torch.zeros((), device=run.device)
        self.disagreement = torch.zeros((), device=run.device)
        self.step, self.drawn, self.kept, self.empties, self.reloads = 0, 0, 0, 0, 0
        self.good = snapshot(generator)

    def noise(self, draws: torch.Generator) -> Tensor:
        """Return z (B, z_dim)."""
        return torch.randn((self.given.batch, self.generator.z_dim), generator=draws).to(self.run.device)

    def pseudo_batch(self) -> None:
        """Take the generator's and the student's steps of one pseudo-batch. Raises Diverged where the gate lets nothing through, however often drawn."""
        lesson = self.next_lesson()
        if self.given.student_statistics:
            batch_statistics(self.student)
        for _ in range(self.given.n_stu):
            self.learn(lesson)
        self.student.eval()

    def next_lesson(self) -> Lesson:
        """Return a lesson after the generator's steps, drawing again while the gate keeps too little; within the budget."""
        start = self.step
        while True:
            self.step = start
            z = self.noise(self.draws)
            if all(self.explore(z) for _ in range(self.given.n_gen)):
                lesson = self.lesson(z)
                if self.enough(len(lesson.x)):
                    self.empties = 0
                    return lesson
            self.nothing_kept()

    def enough(self, rows: int) -> bool:
        """Return whether so many rows can be learned from: batch norm that trains has no variance of one."""
        return rows > (1 if self.given.student_statistics else 0)

    def nothing_kept(self) -> None:
        """Count a batch of which too little passed; go back to the last good generator after `max_empty` in a row. Raises Diverged at the end."""
        self.empties += 1
        self.run.report(max(1, self.step), self.given.steps, stage=STAGE, loss=self.loss)
        if self.empties < self.given.max_empty:
            return
        if self.reloads >= self.given.max_reloads:
            raise Diverged(method=self.method, stage=STAGE, detail=EMPTY.format(empties=self.empties, reloads=self.reloads))
        self.generator.load_state_dict(self.good)
        self.reloads, self.empties = self.reloads + 1, 0

    def explore(self, z: Tensor) -> bool:
        """Let the generator seek images on which student and teacher differ; false, and no step, where the gate keeps too little."""
        with self.run.autocast():
            x = self.generator(z)
            logits = self.teacher(x)
            keep = gate(logits.detach(), self.given.classes, self.given.epsilon)
            if not self.enough(int(keep.sum())):
                return False
            loss = -divergence(self.student(x[keep]), logits[keep], self.given.temperature)
        weights = self.generator_optimizer.param_groups[0]["params"]
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):  # none is computed for the student's own weights
            weight.grad = gradient
        nn.utils.clip_grad_norm_(weights, self.given.clip)
        self.generator_optimizer.step()
        self.disagreement = loss.detach()
        self.step += 1
        self.run.report(self.step, self.given.steps, stage=STAGE, loss=self.loss)
        return True

    def lesson(self, z: Tensor) -> Lesson:
        """Return what the gate keeps of G(z), with the teacher's answers."""
        with torch.no_grad(), self.run.autocast(), tapped(self.teacher, self.taps) as maps:
            x = self.generator(z)
            logits = self.teacher(x)
        keep = gate(logits, self.given.classes, self.given.epsilon)
        self.drawn, self.kept = self.drawn + len(x), self.kept + int(keep.sum())
        return Lesson(x[keep], logits[keep], tuple(each[keep] for each in maps))

    def probe(self) -> tuple[Tensor, Tensor]:
        """Return pseudo-images (B, ch, H, W) that nothing is trained on, and which of them the gate keeps, (B,) bool; the generator stays as it is."""
        with frozen(self.generator), torch.no_grad():
            x = self.generator(self.noise(self.probes))
            return x, gate(self.teacher(x), self.given.classes, self.given.epsilon)

    def learn(self, lesson: Lesson) -> Tensor:
        """Take one student step: KL to the teacher, plus `beta` times the differences of attention; return the loss before it."""
        with ExitStack() as stack:
            maps = stack.enter_context(tapped(self.student, self.taps))
            stack.enter_context(self.run.autocast())
            loss = divergence(self.student(lesson.x), lesson.logits, self.given.temperature)
            if self.taps:
                loss = loss + self.given.beta * summed_difference(maps, lesson.maps)
        self.student_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student_optimizer.param_groups[0]["params"], self.given.clip)
        self.student_optimizer.step()
        self.loss = loss.detach()
        self.step += 1
        self.run.report(self.step, self.given.steps, stage=STAGE, loss=self.loss)
        return self.loss

    def good_now(self) -> None:
        """Remember the generator as it is. Raises Diverged where the student's loss is not finite."""
        if not bool(torch.isfinite(self.loss)):
            raise Diverged(method=self.method, stage=STAGE, detail="the student's loss is not finite")
        self.good = snapshot(self.generator)


class Rates:
    """The learning rates of a transfer: the generator's as `schedule` says, the student's halved on a plateau of its mean loss over 50 pseudo-batches.

    The rates are those of the optimisers' only parameter groups; a plateau is three means in a row without a new least one.
    """

    def __init__(self, transfer: Transfer, schedule: Literal["legacy", "constant", "plateau_proxy"], lr_gen: float, lr_stu: float) -> None:
        self.transfer, self.schedule, self.lr_gen = transfer, schedule, lr_gen
        transfer.generator_optimizer.param_groups[0]["lr"] = lr_gen
        transfer.student_optimizer.param_groups[0]["lr"] = lr_stu
        self.student = ReduceLROnPlateau(transfer.student_optimizer, "min", factor=0.5, patience=PLATEAU_PATIENCE)
        self.generator = ReduceLROnPlateau(transfer.generator_optimizer, "min", factor=0.5, patience=PLATEAU_PATIENCE)
        self.sums = torch.zeros(2, dtype=torch.float64, device=transfer.run.device)

    def after(self, at: int) -> None:
        """Set the rates for what follows pseudo-batch `at`, from 1."""
        self.sums += torch.stack([self.transfer.disagreement, self.transfer.loss])
        if self.schedule == "legacy":
            self.transfer.generator_optimizer.param_groups[0]["lr"] = halvings(at, self.lr_gen)
        if at % PLATEAU_EVERY:
            return
        disagreement, loss = (self.sums / PLATEAU_EVERY).tolist()
        self.student.step(loss)
        if self.schedule == "plateau_proxy":
            self.generator.step(disagreement)
        self.sums.zero_()
