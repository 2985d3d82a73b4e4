"""The one training loop: data resident as tensors, seeded order, no read-back from the device inside a step.

Retraining, fine-tuning and the training of a first version all pass through `fit`, so that two models compared with each other differ in
their data and seeds, never in their loop.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from services.errors import InvalidInput, NonFinite
from services.learning.data import Batch, Split, batch_sizes
from services.learning.modes import global_draws, image_layout, mode_of
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.task import Task

SHIFT = 4
RISING, FIRST_RATE, LAST_RATE = 0.3, 1 / 25, 1 / 25e4


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a training took. `seconds` is the loop alone; `final_loss` is the mean training loss over the records of the last epoch."""

    steps: int
    seconds: float
    final_loss: float


def optimizer_for(recipe: Recipe, parameters: Iterable[Tensor], learning_rate: float | None = None) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over `parameters`; `learning_rate` overrides the recipe's."""
    rate = recipe.learning_rate if learning_rate is None else learning_rate
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(trainable, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True)
    family = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return family(trainable, lr=rate, weight_decay=recipe.weight_decay, fused=True)


def rate_at(recipe: Recipe, step: int, of: int) -> float:
    """Return the learning rate of `step` (0 to of - 1): constant, a half cosine that would reach zero at `of`, or one cycle."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if recipe.schedule == "onecycle":
        return recipe.learning_rate * one_cycle(step, of)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / of))


def one_cycle(step: int, of: int) -> float:
    """Return the factor on the learning rate at `step` (0 to of - 1): up from a 25th by a half cosine over 30 % of the steps, then down to next to none.

    Source: Smith and Topin, "Super-Convergence", 2018 (arXiv 1708.07120), as torch's `OneCycleLR` has it. Differs: momentum stays as it is.
    """
    top = max(1.0, RISING * of - 1)
    start, end, share = (FIRST_RATE, 1.0, step / top) if step <= top else (1.0, LAST_RATE, (step - top) / (of - 1 - top))
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def flip_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, ch, H, W) of any dtype, each flipped at random and cropped at a random shift of up to 4 pixels after zero padding."""
    count, _, height, width = x.shape
    corner = torch.randint(2 * SHIFT + 1, (2, count), generator=generator).to(x.device, non_blocking=True)
    flipped = (torch.rand(count, generator=generator) < 0.5).to(x.device, non_blocking=True)
    padded = pad(x, (SHIFT, SHIFT, SHIFT, SHIFT))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view (B, ch, 9, 9, H, W): no copy until the next line
    cropped = windows[torch.arange(count, device=x.device), :, corner[0], corner[1]]
    return torch.where(flipped[:, None, None, None], cropped.flip(3), cropped)


def epoch_of(split: Split, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
    """Yield every record once in a fresh order, augmented as the recipe says; a last batch of one record joins the batch before it."""
    order = torch.randperm(len(split), generator=generator).to(split.x.device)
    sizes = batch_sizes(len(split), recipe.batch_size)
    for rows in order.split(sizes):
        if recipe.augmentation == "flip_crop":
            yield Batch(split.prepare(flip_crop(split.x[rows], generator)), split.y[rows])
        else:
            yield split.batch(rows)


def autocast_of(recipe: Recipe, run: Run) -> AbstractContextManager[object]:
    """Return the context of forward passes: the recipe's precision, else the run's."""
    precision = torch.bfloat16 if recipe.precision == "bfloat16" else run.precision
    return nullcontext() if precision is None else torch.autocast(run.device.type, dtype=precision)


class Descent:
    """One optimiser over all parameters of `model`, down the task's loss."""

    def __init__(self, model: nn.Module, task: Task, recipe: Recipe, run: Run) -> None:
        self.model, self.task, self.recipe, self.run = model, task, recipe, run
        self.optimizer = optimizer_for(recipe, model.parameters())

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Take one step at the learning rate `rate` and return the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with autocast_of(self.recipe, self.run):
            loss = self.task.loss(self.model, batch)
        loss.backward()
        if self.recipe.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        return loss.detach()


def fit(
    model: nn.Module,
    split: Split,
    task: Task,
    recipe: Recipe,
    run: Run,
    *,
    stage: str = "train",
    generator: torch.Generator | None = None,
) -> FitResult:
    """Train `model` in place on `split`, both on the run's device, and return what it took. The model's mode is restored.

    `generator` drives order, augmentation and dropout; by default it is the run's stream of the stage's name. Label smoothing is the task's.

    Raises:
        InvalidInput: there is no record, the labels do not fit the task, or images are asked for where there are none.
        NonFinite: the mean loss of an epoch is not a finite number.
        Cancelled, DeadlineExceeded: through `run.report`, after any step.
    """
    check(split, task, recipe)
    generator = run.stream(stage) if generator is None else generator
    per_epoch = len(batch_sizes(len(split), recipe.batch_size))
    steps, step, mean_loss = per_epoch * recipe.epochs, 0, math.nan
    with global_draws(generator, run.device), mode_of(model, training=True), image_layout(model):
        stepper = task.stepper(model, recipe, run, generator) or Descent(model, task, recipe, run)
        started = time.perf_counter()
        for _ in range(recipe.epochs):
            total = torch.zeros((), device=run.device)
            for batch in epoch_of(split, recipe, generator):
                loss = stepper.step(batch, rate_at(recipe, step, steps))
                step += 1
                total += loss * len(batch.y)
                run.report(step, steps, stage=stage, loss=loss)
            mean_loss = total.item() / len(split)  # read back once an epoch: a run that has diverged ends here
            if not math.isfinite(mean_loss):
                raise NonFinite(what=f"the training loss of stage {stage!r}")
        seconds = time.perf_counter() - started
    return FitResult(steps, seconds, mean_loss)


def check(split: Split, task: Task, recipe: Recipe) -> None:
    """Raise InvalidInput when `split` cannot be trained on with this task and recipe."""
    if len(split) == 0:
        raise InvalidInput(detail="there is no record to train on")
    if recipe.augmentation == "flip_crop" and split.x.ndim != 4:
        raise InvalidInput(detail="augmentation 'flip_crop' is for images; these records are not")
    if recipe.label_smoothing not in {0.0, task.label_smoothing}:
        raise ValueError("the task was built with another label smoothing than the recipe's")
    if recipe.targets is not None and recipe.targets != task.targets:
        raise ValueError("the task was built with another loss or scale of its targets than the recipe's")
    task.check(split)
