"""Which method a model gets: the router's choice from the policy's ladder, or the one that the caller named, and the rungs behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from services.catalogue import router
from services.catalogue import service as catalogue
from services.db.tables import ModelVersion, Policy
from services.errors import InvalidInput, MethodNotApplicable, ParameterOutOfRange
from services.model_versions import architecture
from services.tenants.policies import Rung, readings_for


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """The first method with its parameters and version, the choice as the job stores it, and the queue of the workers that offer it."""

    method: str
    version: str
    parameters: dict[str, Any]
    choice: dict[str, Any]
    rungs: tuple[str, ...]
    reason: str
    guarantee: str | None
    queue: str


def named(session: Session, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a named method's parameters with defaults.

    Raises UnknownComponent; ParameterOutOfRange, also for a parameter that would name a person; InvalidInput for parameters without a method.
    """
    if method == "auto":
        if parameters:
            raise InvalidInput(detail="parameters belong to a named method; with method auto the policy's ladder has them.")
        return {}
    entry = catalogue.require(session, "method", method)
    personal = sorted(name for name, part in entry.schema.get("properties", {}).items() if part.get("x-personal") and parameters.get(name))
    if personal:
        raise ParameterOutOfRange(name=personal[0], detail="it is kept and shown as every parameter is; names go into a scope of kind entity")
    return catalogue.validate_parameters(entry, parameters)


def plan(
    session: Session,
    *,
    task: str,
    base: ModelVersion | None,
    policy: Policy,
    granularity: router.Granularity,
    records: int,
    class_records: int | None,
    method: str,
    parameters: Mapping[str, Any],
    zero_shot: bool = False,
) -> MethodPlan:
    """Return what a model gets; `zero_shot` says that nothing of its training data is held.

    Raises MethodNotApplicable where the named method, or every rung of the ladder, cannot serve the request.
    """
    offers = catalogue.offers(session)
    held = set[str]() if zero_shot else {"forget", "retain"}
    if base is not None and base.recipe is not None and not zero_shot:
        held.add("recipe")
    lacks = router.lacking(architecture.parameters_of(base, {}))
    asked: dict[str, Any] = {"task": task, "granularity": granularity, "held": held, "lacks": lacks}
    could = sorted(name for name, offer in offers.items() if router.obstacle(offer, **asked) is None)
    ladder = router.rungs_for([Rung.model_validate(rung) for rung in policy.ladder], task=task, zero_shot=zero_shot)
    if method != "auto":
        offer = offers.get(method)
        why = router.obstacle(offer, **asked) if offer else "no worker can load it"
        if why is not None:
            raise MethodNotApplicable(method=method, detail=why, could=", ".join(could) or "none")
        ladder = [rung for rung in ladder if rung.method != method]
    choice = router.choose(
        **asked,
        ladder=ladder,
        records=records,
        class_records=class_records,
        available=offers,
        yardstick=router.yardstick_of({**policy.verification, granularity: readings_for(policy.verification, task, granularity)[0]}, granularity),
    )
    if choice is None and method == "auto":
        raise MethodNotApplicable(
            method="auto", detail=f"no rung of policy {policy.key} serves {granularity} requests on task {task}", could=", ".join(could) or "none"
        )
    return _plan(session, ladder, choice, method, parameters)


def _plan(session: Session, ladder: list[Rung], choice: router.Choice | None, method: str, parameters: Mapping[str, Any]) -> MethodPlan:
    behind = {rung.method: rung.parameters for rung in ladder}
    rungs: list[dict[str, Any]] = [{"method": name, "parameters": dict(behind[name])} for name in (choice.rungs if choice else ())]
    if method != "auto":
        later = [] if method == "retrain" else rungs
        rungs = [{"method": method, "parameters": dict(parameters)}, *later]
        stored: dict[str, Any] = {"by": "caller", "reason": "the request names it"}
    else:
        stored = choice.as_json() if choice else {}
    first = rungs[0]
    name = str(first["method"])
    entry = catalogue.methods(session).get(name) or catalogue.require(session, "method", name)
    return MethodPlan(
        method=entry.name,
        version=entry.version,
        parameters=catalogue.validate_parameters(entry, dict(first["parameters"])),
        choice={**stored, "rungs": rungs},
        rungs=tuple(str(rung["method"]) for rung in rungs),
        reason=str(stored["reason"]),
        guarantee=entry.guarantee,
        queue=entry.queue,
    )
