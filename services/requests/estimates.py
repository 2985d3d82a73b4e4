"""How long a request will take on one model, before anything runs: from past runs, or else from what its method costs beside the last training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.orm import Session

from services.catalogue import service as catalogue
from services.requests import repository
from services.requests.planning import MethodPlan
from services.requests.subjects import Located, Tainted
from services.tenants.policies import PolicyBody

OVERHEAD_S = 10.0
"""Loading, moving and checking files, and a runner's start, where nothing better is known."""
UNKNOWN_S = 60.0
TRAINING_STEP = 3.0
"""A training step costs as much as three forward passes."""
REFERENCES: Mapping[str, int] = {"retrained": 2, "shadow-band": 4, "none": 0}
"""Whole trainings that each mode of reference takes where none of its models is kept: two retrained models, or eight on half of the records."""

Basis = Literal["past runs", "cost model", "default"]


@dataclass(frozen=True, slots=True)
class Training:
    """The last training run of a model: its seconds, and how many records it passed how many times."""

    seconds: float
    epochs: int
    records: int

    @property
    def forward_s(self) -> float:
        """Seconds of one forward pass of one record, as the training implies it."""
        return self.seconds / (TRAINING_STEP * self.epochs * self.records)


def estimate(session: Session, one: Tainted, plan: MethodPlan | None, located: Located, policy: PolicyBody) -> tuple[float, Basis]:
    """Return the seconds of the first rung with its verdict, and what the number rests on.

    Three past runs of the method on the model are worth more than any model of its cost: then it is the 95th percentile of their time.
    """
    if plan is None:
        return 0.0, "cost model"
    references = 0 if located.zero_shot else trainings(policy.verification.reference, located.granularity)
    counts = {"classes": len(located.labels), "forget": len(located.hits), "references": references}
    return seconds_of(session, one.model_id, plan.method, **counts, share=plan.share)


def trainings(reference: str, granularity: str) -> int:
    """Return how many whole trainings the references of a request take; models on halves say nothing of a class or an entity: it has retrained ones."""
    return REFERENCES["retrained" if reference == "shadow-band" and granularity != "records" else reference]


def seconds_of(
    session: Session, model_id: UUID, method: str, *, classes: int, forget: int, references: int, share: float | None = None
) -> tuple[float, Basis]:
    """Return the seconds of a method on a model with its verdict, for which `references` models are trained, and what the number rests on.

    `share` is that of a whole training that the method takes, where the model version tells it.
    """
    past = repository.past_seconds(session, model_id, method)
    if past is not None:
        return past, "past runs"
    found = repository.last_training(session, model_id)
    if found is None:
        return UNKNOWN_S, "default"
    training = Training(*found)
    entry = catalogue.methods(session).get(method)
    told = dict(entry.facts.get("cost", {}) if entry is not None else {})
    if share is not None:
        told["of_recipe"] = share
    cost = forwards(told, training, classes=classes, forget=forget)
    return OVERHEAD_S + cost * training.forward_s + references * training.seconds, "cost model"


def forwards(cost: Mapping[str, Any], training: Training, *, classes: int, forget: int) -> float:
    """Return a method's cost in forward passes of one record; one that does not say what it costs is taken to cost the training again."""
    part = {name: float(cost.get(name, 0.0)) for name in ("fixed", "per_class", "per_forget", "per_retain", "of_recipe", "least")}
    whole = TRAINING_STEP * training.epochs * training.records
    if not cost:
        return whole
    kept = max(0, training.records - forget)
    found = part["fixed"] + part["per_class"] * classes + part["per_forget"] * forget + part["per_retain"] * kept + part["of_recipe"] * whole
    return max(found, part["least"])
