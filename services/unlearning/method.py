"""Unlearning methods: what each needs, what it promises, and its one function."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict
from torch import nn

from services.learning.data import Splits
from services.learning.run import Run
from services.learning.task import Task
from services.registry import Registry

Granularity = Literal["class", "records", "concept"]
Guarantee = Literal["exact", "certified", "approximate", "suppression"]
REAL_NUMBERS = frozenset({"image", "series", "tabular"})
MODALITIES = REAL_NUMBERS | {"text"}
"""The kinds of record; those of real numbers can be moved along a gradient, tokens cannot."""
PERSONAL: JsonDict = {"x-personal": True}
"""Marks a parameter that would name a person: parameters are stored and shown, so that no request may set it; a scope names entities instead."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method must be given. A set it does not need is withheld from it, so that it cannot be read by mistake.

    `unseen_set`: records of the forgotten classes that no training saw, which the analysis split holds. `parts` are those of a network that it trains
    and that one may be without: by the architecture parameters that say whether they are there, or by what the architecture `lacks`. `instead` names
    what will do in place of a set: `{"retain_set": "retain_part"}` where any part of the records to keep is enough. `limits` are the most `classes`
    and the longest `side` of an image.
    """

    forget_set: bool = True
    retain_set: bool = True
    unseen_set: bool = False
    recipe: bool = False
    parts: frozenset[str] = frozenset()
    instead: dict[str, str] = field(default_factory=dict[str, str])
    limits: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run with default parameters costs, in forward passes of one record; a step of training counts as three. An estimate, not a bound.

    fixed: whatever is forgotten. per_class: for each forgotten class. per_forget, per_retain: for each record to forget, for each that is kept.
    of_recipe: share of a training by the model's recipe on what is kept. least: floor, from the least steps that few records are given.
    """

    fixed: float = 0.0
    per_class: float = 0.0
    per_forget: float = 0.0
    per_retain: float = 0.0
    of_recipe: float = 0.0
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """How often the weights stand in memory at the worst moment of a run with default parameters. An estimate, not a bound.

    copies: the model and whatever else is as large: the original kept for a second attempt, a teacher. trained: share of the weights that has a
    gradient; states: tensors that the optimiser keeps for each of these. batches: batches of `batch_size` whose forward passes stand at once.
    adapter: the parameter that trains an adapter in place of the weights. more: further copies, by `parameter=value`.
    """

    copies: float = 2.0
    trained: float = 1.0
    states: float = 2.0
    batches: float = 1.0
    adapter: str | None = None
    more: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Gentler:
    """A method at reduced strength: the parameter whose number is multiplied by `factor`, within its bounds. Published in the catalogue."""

    parameter: str
    factor: float


class MethodParameters(BaseModel):
    """Parameters of a method, with bounds; the schema is published in the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UnlearningMethod(ABC):
    """One method of one paper.

    `version` is raised when its results change; `fresh_start` says that no weight of the original is used, or only states that never saw the records.
    `modalities` are the kinds of record that it takes, of those that its tasks know; requests about others are refused.
    `cost` is what the router estimates by; where a method does not say, it is taken to cost a retraining.
    `guarantee` is what a run claims unless its note `guarantee` says otherwise; `guarantees` are all that a run may claim, where its parameters decide.
    `gentler` says how a second attempt is made after one that cost too much of what is kept; where it is None there is none.
    `retries` is how often a diverged attempt is made again at a tenth of the rate before. `private_notes` are notes of a run that tell what a record says:
    they are for whoever runs the method, and no report has them.
    `memory` is what a job is admitted by; `sharded` says that the method asks a model for its outputs alone, and copies it only whole, so that it may
    be handed one whose weights are dealt to several devices.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    tasks: ClassVar[frozenset[str]]
    granularities: ClassVar[frozenset[Granularity]]
    guarantee: ClassVar[Guarantee]
    guarantees: ClassVar[frozenset[Guarantee]] = frozenset()
    needs: ClassVar[Needs]
    modalities: ClassVar[frozenset[str]] = MODALITIES
    cost: ClassVar[Cost] = Cost(of_recipe=1.0)
    memory: ClassVar[Memory] = Memory()
    sharded: ClassVar[bool] = False
    fresh_start: ClassVar[bool] = False
    gentler: ClassVar[Gentler | None] = None
    stall_s: ClassVar[int] = 300
    retries: ClassVar[int] = 1
    private_notes: ClassVar[frozenset[str]] = frozenset()

    class Parameters(MethodParameters):
        """Parameters of this method."""

    def __init__(self, parameters: Any) -> None:  # each subclass has its own Parameters class
        self.parameters = parameters

    def inspect(self, whole: Splits) -> None:  # noqa: B027  most methods have nothing to refuse here
        """Refuse data that only the whole of it shows to be unfit, before what the method does not need is withheld. Raises MethodNotApplicable."""

    @abstractmethod
    def unlearn(self, model: nn.Module, data: Splits, task: Task, run: Run) -> nn.Module:
        """Return the unlearned model. `model` is the runner's own copy of the original and may be changed in place.

        Raises:
            Diverged: the guard of methods' shared rule 3 fired and the retry failed as well.
            Cancelled, DeadlineExceeded: through `run.report`.
        """


METHODS: Registry[UnlearningMethod] = Registry("method")
