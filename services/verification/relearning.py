"""Relearning: how many optimiser steps bring the forgotten records back to where the original model had them.

Source: Tarun et al., "Fast Yet Effective Machine Unlearning" (arXiv 2111.08947); Chundawat et al., "Zero-Shot Machine Unlearning" (arXiv 2201.05629).
Differs: the released code trains the compared models in place, so that a reference used by several calls comes nearer to the bar with each of
them, returns the cap without a flag where the bar is never reached, and in one release judges all classes instead of the forgotten records.
Here every run starts from a deep copy, is judged on records of the forgotten kind alone, and says when it was cut off. The step size is 3e-3, not
1e-3, for a third of the steps (digits: 40 instead of 143). The seeds show what the order of batches does, not what another retrained model would:
on digits two retrained networks took 40 and 70 steps.
"""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from services.errors import NonFinite
from services.learning.data import Batch, Split, Splits
from services.learning.modes import evaluating, global_draws, image_layout, mode_of
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task
from services.learning.training import autocast_of, epoch_of, optimizer_for
from services.verification.metric import Direction, LeakSide, Metric, Models
from services.verification.outputs import by_id, generator_of, joined, rows_of
from services.verification.reading import Reading, Unmeasured
from services.verification.statistics.ratios import median_ratio

LEAST_JUDGED = 10
COARSE_STEPS = 3
BATCH = 1024
AT_THE_BAR = Unmeasured("reference_at_the_bar_from_the_start")
BOTH_AT_THE_BAR = Unmeasured("both_at_the_bar_from_the_start")
BOTH_CENSORED = Unmeasured("both_censored")
NOT_FINITE = Unmeasured("not_finite")


_REMEMBERED: WeakKeyDictionary[Run, dict[tuple[str, ...], "list[Relearned] | Unmeasured"]] = WeakKeyDictionary()


class RelearningParameters(Metric.Parameters):
    """Parameters of every metric that relearns; two models are compared under the same ones."""

    margin: float = Field(0.05, gt=0, lt=1, description="The bar: this share below the original's accuracy, or above its loss (regression).")
    seeds: int = Field(5, ge=3, le=50, description="Runs, each with its own order of batches.")
    steps: int = Field(400, ge=1, le=100_000, description="Steps after which a run that has not reached the bar is cut off (censored).")
    train_data: Literal["all", "forget"] = Field("all", description="Relearn on all training records, or on the forgotten ones alone.")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="Optimiser, without weight decay.")
    learning_rate: float = Field(3e-3, ge=1e-7, le=1, description="Step size; take less where the steps are few (coarse).")
    batch_size: int = Field(256, ge=2, le=65536, description="Records per step.")
    judged_on: Literal["auto", "forget_test", "forget_train"] = Field(
        "auto", description="Records of the bar; auto: the forgotten classes' held-out records where there are 10, else the forgotten records."
    )
    judged_rows: int = Field(1000, ge=1, le=100_000, description="At most this many records are judged after each step.")


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is relearned (`taught`), what it is judged on (`held`: `records` of the split `judged_on`), and the bar; higher is better."""

    taught: Split
    held: tuple[Batch, ...]
    records: int
    judged_on: str
    bar: float
    key: str = ""


@dataclass(frozen=True, slots=True)
class Relearned:
    """One run: `steps` taken, `censored` where the bar was not reached by then, and the course (steps + 1,) from before the first step on."""

    steps: int
    censored: bool
    course: tuple[float, ...]

    def area(self, steps: int) -> float:
        """Return the mean of the course over `steps` steps, its last value held to the end (trapezoids)."""
        held = np.full(steps + 1, self.course[-1])
        held[: len(self.course)] = self.course[: steps + 1]
        return float(np.mean((held[1:] + held[:-1]) / 2))


def score(model: nn.Module, held: Sequence[Batch], task: Task) -> float:
    """Return the accuracy on `held`, or minus the mean loss where the task has no accuracy; eval mode, the model's modes are restored.

    It asks the model itself, never `task.predict`, whose answers may be remembered from before the last step.
    """
    total, count = 0.0, 0
    with evaluating(model), torch.inference_mode():
        for batch in held:
            rows: Tensor = model(batch.x).argmax(dim=1) == batch.y if task.name == "classification" else -task.losses(model, batch)
            total += float(rows.double().sum())
            count += len(batch.y)
    return total / count


def lesson_of(p: RelearningParameters, models: Models, data: Splits, task: Task, run: Run, split: str) -> Lesson | Unmeasured:
    """Return the lesson of a request: which records, in what order of rows, depends on the run's seed and the record ids alone.

    A class is judged on its held-out records, for the original learned the others by heart and no relearning from its like would reach the bar;
    single records can only be judged on themselves.
    """
    rows = rows_of(data, split)
    if isinstance(rows, Unmeasured):
        return rows
    judged_on, judged = _judged(p, data, rows, split)
    if isinstance(judged, Unmeasured):
        return judged
    judged = by_id(judged, at_most=p.judged_rows, generator=run.stream("relearning/judged"))
    taught = by_id(joined(rows, data.retain) if p.train_data == "all" and len(data.retain) else rows)
    held = tuple(judged.batches(BATCH))
    reached = score(models.original, held, task)
    if not np.isfinite(reached):
        return NOT_FINITE
    bar = (1 - p.margin) * reached if task.name == "classification" else (1 + p.margin) * reached
    key = hashlib.sha256(repr((taught.ids, judged.ids, bar)).encode()).hexdigest()
    return Lesson(taught, held, len(judged), judged_on, bar, key)


def _judged(p: RelearningParameters, data: Splits, rows: Split, split: str) -> tuple[str, Split | Unmeasured]:
    """Return the name of the split that is judged, and its records."""
    if p.judged_on == "forget_train":
        return split, rows
    held_out = rows_of(data, "forget_test")
    enough = isinstance(held_out, Split) and len(held_out) >= LEAST_JUDGED
    return ("forget_test", held_out) if p.judged_on == "forget_test" or enough else (split, rows)


def relearn(model: nn.Module, lesson: Lesson, p: RelearningParameters, task: Task, run: Run, *, seed: int) -> Relearned:
    """Train a deep copy of `model` on the lesson until it is at the bar, judged after every step; a model already there takes 0 steps.

    Raises:
        NonFinite: the loss is not a finite number. Cancelled, DeadlineExceeded: through `run.report`, after any step.
    """
    course = [score(model, lesson.held, task)]
    if course[0] >= lesson.bar:
        return Relearned(0, censored=False, course=tuple(course))
    recipe = Recipe.model_validate({"optimizer": p.optimizer, "learning_rate": p.learning_rate, "batch_size": p.batch_size})
    generator = run.stream(f"relearning/{seed}")
    with torch.inference_mode(mode=False):
        pupil = copy.deepcopy(model).requires_grad_(requires_grad=True)
    with global_draws(generator, run.device), mode_of(pupil, training=True), image_layout(pupil):
        optimizer = optimizer_for(recipe, pupil.parameters())
        for step, batch in enumerate(_forever(lesson.taught, recipe, generator), start=1):
            optimizer.zero_grad(set_to_none=True)
            with autocast_of(recipe, run):
                loss = task.loss(pupil, batch)
            loss.backward()
            optimizer.step()
            run.report(step, p.steps, stage="relearn", loss=loss.detach())
            if not torch.isfinite(loss):
                raise NonFinite(what="the loss of relearning")
            course.append(score(pupil, lesson.held, task))
            if course[-1] >= lesson.bar or step == p.steps:
                break
    return Relearned(len(course) - 1, censored=course[-1] < lesson.bar, course=tuple(course))


def relearned_over_seeds(model: nn.Module, lesson: Lesson, p: RelearningParameters, task: Task, run: Run) -> list[Relearned] | Unmeasured:
    """Return the runs of all seeds; two models see the same batches in the same order under the same seed.

    What one run of an evaluation has relearned it does not relearn for its next reading: the key is the content of the weights and the lesson.
    """
    known = _REMEMBERED.setdefault(run, {})
    key = (_digest(model), lesson.key, p.model_dump_json(exclude={"level"}))
    if key not in known:
        try:
            known[key] = [relearn(model, lesson, p, task, run, seed=seed) for seed in range(p.seeds)]
        except NonFinite:
            known[key] = NOT_FINITE
    return known[key]


def _digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}/".encode() + content.numpy().tobytes())
    return digest.hexdigest()


def anamnesis(mine: Sequence[Relearned], theirs: Sequence[Relearned], *, level: float, n: int, rng: np.random.Generator) -> Reading | Unmeasured:
    """Return the median over seeds of steps(mine) / steps(theirs), with the bootstrap interval of the log-ratio and how far it can be trusted.

    `detail.bound`: `lower` where a numerator was cut off (the truth is at least that), `upper` where a denominator was, null where neither.
    """
    above, below = [run.steps for run in mine], [run.steps for run in theirs]
    if 0 in below:
        return BOTH_AT_THE_BAR if 0 in above else AT_THE_BAR
    cut_above, cut_below = any(run.censored for run in mine), any(run.censored for run in theirs)
    if cut_above and cut_below:
        return BOTH_CENSORED
    ratio = median_ratio(above, below, level=level, rng=rng)
    detail: dict[str, object] = {
        "steps": {"subject": above, "reference": below},
        "censored": {"subject": [run.censored for run in mine], "reference": [run.censored for run in theirs]},
        "bound": "lower" if cut_above else "upper" if cut_below else None,
        "per_seed": ratio.per_pair.tolist(),
        "range": [float(ratio.per_pair.min()), float(ratio.per_pair.max())],
        "log_interval": None if ratio.log_interval is None else list(ratio.log_interval),
        "coarse": min(*above, *below) <= COARSE_STEPS,
    }
    return Reading(ratio.value, *ratio.interval, level, n, detail)


class Anamnesis(Metric):
    """The ratio of the relearn steps of the judged model and of a reference, as the median over seeds."""

    tasks = frozenset({"classification", "regression", "forecasting"})
    unit = "ratio"
    bounds = (0.0, float("inf"))
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "below"
    splits = ("forget_train",)

    class Parameters(RelearningParameters):
        """Parameters of the anamnesis index."""

    @abstractmethod
    def reference(self, models: Models, run: Run) -> nn.Module | Unmeasured:
        """Return the model whose relearn steps are the denominator."""

    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the index; no model is changed.

        Raises:
            Cancelled, DeadlineExceeded: through `run.report`.
        """
        p = self.parameters
        lesson = lesson_of(p, models, data, task, run, split)
        if isinstance(lesson, Unmeasured):
            return lesson
        reference = self.reference(models, run)
        if isinstance(reference, Unmeasured):
            return reference
        if score(reference, lesson.held, task) >= lesson.bar:
            return BOTH_AT_THE_BAR if score(models.unlearned, lesson.held, task) >= lesson.bar else AT_THE_BAR
        detail = {"train_data": p.train_data, "judged_on": lesson.judged_on, "bar": lesson.bar}
        if score(models.unlearned, lesson.held, task) >= lesson.bar:
            steps = {"subject": [0] * p.seeds, "reference": None}
            return Reading(0.0, 0.0, 0.0, p.level, lesson.records, {**detail, "steps": steps, "bound": None, "log_interval": None})
        mine = relearned_over_seeds(models.unlearned, lesson, p, task, run)
        if isinstance(mine, Unmeasured):
            return mine
        theirs = mine if models.unlearned is reference else relearned_over_seeds(reference, lesson, p, task, run)
        if isinstance(theirs, Unmeasured):
            return theirs
        found = anamnesis(mine, theirs, level=p.level, n=lesson.records, rng=generator_of(run, self.name))
        return replace(found, detail={**found.detail, **detail}) if isinstance(found, Reading) else found


def _forever(split: Split, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
    """Yield batches without end, each epoch in a fresh order."""
    while True:
        yield from epoch_of(split, recipe, generator)
