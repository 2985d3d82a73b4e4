"""Metrics: numbers about an unlearned model, beside the original and the retrained one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.registry import Registry
from services.verification.reading import Reading, Unmeasured

Direction = Literal["band", "min", "max", "info"]
LeakSide = Literal["above", "below", "unsigned"]


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

    level: float = Field(0.90, gt=0.5, lt=1, description="Confidence level of the interval.")


class Metric(ABC):
    """One metric. `splits` are the names (`Splits.named`) it can be taken on, the first by default; `compares_to` names the models it needs.

    `leak_side` says what lying outside the reference's band means: on that side the forgotten records are still known, on the other they are
    over-forgotten; `unsigned` metrics (distances) cannot tell.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    tasks: ClassVar[frozenset[str]]
    unit: ClassVar[str]
    bounds: ClassVar[tuple[float, float]]
    compares_to: ClassVar[frozenset[str]] = frozenset()
    direction: ClassVar[Direction] = "info"
    leak_side: ClassVar[LeakSide] = "above"
    splits: ClassVar[tuple[str, ...]]

    class Parameters(MetricParameters):
        """Parameters of this metric."""

    def __init__(self, parameters: Any) -> None:  # each subclass has its own Parameters class
        self.parameters = parameters

    @abstractmethod
    def measure(self, models: Models, data: Splits, task: Task, run: Run, *, split: str) -> Reading | Unmeasured:
        """Return the reading of `models.unlearned` on `split`, or why there is none."""

    def difference(
        self,
        models: Models,  # noqa: ARG002
        data: Splits,  # noqa: ARG002
        task: Task,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        *,
        split: str,  # noqa: ARG002
        versus: nn.Module,  # noqa: ARG002
    ) -> Reading | Unmeasured | None:
        """Return `models.unlearned` minus `versus` on the same rows with a paired interval; None where the metric has no paired form."""
        return None


METRICS: Registry[Metric] = Registry("metric")
