"""Tasks: what a model is for, hence its loss, its outputs and the loss of knowing nothing."""

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from services.learning.data import Batch, Split
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.targets import Targets
from services.registry import Registry


class Stepper(Protocol):
    """Takes the steps of a training that descends more than one loss."""

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Move every part of the model once at the learning rate `rate`; return the loss to report, a scalar without gradient."""
        ...


class Task(ABC):
    """A task with `outputs` classes or values. Loss unit: nats for classification, that of the chosen loss for regression and forecasting.

    `targets` says how real-valued targets are scaled and scored; tasks with labels have none.
    """

    name: ClassVar[str]
    modalities: ClassVar[frozenset[str]]
    loss_unit: ClassVar[str]

    def __init__(self, outputs: int, *, label_smoothing: float = 0.0, targets: Targets | None = None) -> None:
        self.outputs = outputs
        self.label_smoothing = label_smoothing
        self.targets = targets

    @classmethod
    def of(cls, outputs: int, recipe: Recipe | None) -> Self:
        """Return the task as a model with this recipe was trained for it; without a recipe, with the task's own loss."""
        if recipe is None:
            return cls(outputs)
        return cls(outputs, label_smoothing=recipe.label_smoothing, targets=recipe.targets)

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each record, (B,), without label smoothing."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss of the batch, a scalar: the mean over records."""

    def scores(self, model: nn.Module) -> bool:  # noqa: ARG002
        """Say whether `losses` can be taken of `model`: a checkpoint may be without the part that scores records."""
        return True

    @abstractmethod
    def predict(self, model: nn.Module, split: Split, *, batch_size: int = 1024) -> Tensor:
        """Return the model's outputs on every record in order, (n, outputs) float32 on the CPU, in eval mode and inference mode.

        The model's mode is restored. For classification these are logits.
        """

    @abstractmethod
    def trivial_loss(self, split: Split) -> float:
        """Return the loss of a predictor that knows nothing: ln C for classification, that of the mean for regression."""

    @abstractmethod
    def check(self, split: Split) -> None:
        """Raise InvalidInput when the labels of `split` do not fit the task."""

    def stepper(self, model: nn.Module, recipe: Recipe, run: Run, generator: torch.Generator) -> Stepper | None:  # noqa: ARG002
        """Return what takes the steps of a training of `model`, or None where one optimiser descends `loss`. `generator` drives what it draws."""
        return None


TASKS: Registry[Task] = Registry("task")
