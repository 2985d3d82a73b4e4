"""Metrics: numbers about an unlearned model, beside the original and the retrained one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.registry import Registry
from services.verification.reading import Reading, Unmeasured

Direction = Literal["band", "min", "max", "info"]


@dataclass(frozen=True, slots=True)
class Models:
    """The models a reading is about. `unlearned` is the subject; `judged_as` puts another in its place, for the columns before and reference."""

    original: nn.Module
    unlearned: nn.Module
    retrained: nn.Module | None = None
    retrained_twin: nn.Module | None = None

    def judged_as(self, subject: nn.Module) -> "Models":
        """Return the same models with `subject` as the judged one."""
        return replace(self, unlearned=subject)


class MetricParameters(BaseModel):
    """Parameters of a metric or an attack."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(ABC):
    """One metric. `splits` are the names (`Splits.named`) it can be taken on, the first by default; `compares_to` names the models it needs."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    tasks: ClassVar[frozenset[str]]
    unit: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    compares_to: ClassVar[frozenset[str]] = frozenset()
    direction: ClassVar[Direction] = "info"
    splits: ClassVar[tuple[str, ...]]

    class Parameters(MetricParameters):
        """Parameters of this metric."""

    def __init__(self, parameters: Any) -> None:  # each subclass has its own Parameters class
        self.parameters = parameters

    @abstractmethod
    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the reading of `models.unlearned` on `split`, or why there is none."""


METRICS: Registry[Metric] = Registry("metric")
