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
from services.verification.shadows import Shadows
from services.verification.statistics.unseen import Beside

NO_UNSEEN_FORM = Unmeasured("no_form_for_models_that_had_not_seen_it")

Direction = Literal["band", "min", "max", "info"]
LeakSide = Literal["above", "below", "unsigned"]


@dataclass(frozen=True, slots=True)
class Models:
    """The models a reading is about. `unlearned` is the subject; `judged_as` puts another in its place, for the columns before and reference.

    In the place of a retrained model may stand `unseen`: models on random halves of the records, of which some had not seen a record.
    """

    original: nn.Module
    unlearned: nn.Module
    retrained: nn.Module | None = None
    retrained_twin: nn.Module | None = None
    unseen: Shadows | None = None

    def judged_as(self, subject: nn.Module) -> "Models":
        """Return the same models with `subject` as the judged one."""
        return replace(self, unlearned=subject)


@dataclass(frozen=True, slots=True)
class BesideUnseen:
    """A reading beside models that had not seen the records: what these have, how far the judged model is from it, and how far two of them are."""

    reference: Reading
    paired: Reading
    floor: float

    @classmethod
    def of(cls, found: Beside, *, level: float, n: int, models: int) -> "BesideUnseen":
        """Return it with its numbers as readings; that of the models has no interval of its own, since nothing is held against it alone."""
        reference = Reading(found.reference, found.reference, found.reference, level, n)
        detail: dict[str, object] = {"models": models, "correction": found.correction}
        return cls(reference, Reading(found.value, found.interval.low, found.interval.high, level, n, detail), found.floor)


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

    def beside_unseen(
        self,
        models: Models,  # noqa: ARG002
        data: Splits,  # noqa: ARG002
        task: Task,  # noqa: ARG002
        run: Run,  # noqa: ARG002
        *,
        split: str,  # noqa: ARG002
        unseen: Shadows,  # noqa: ARG002
    ) -> BesideUnseen | Unmeasured:
        """Return `models.unlearned` beside models that had not seen the records, or that the metric has no such form: that is the default."""
        return NO_UNSEEN_FORM


METRICS: Registry[Metric] = Registry("metric")
