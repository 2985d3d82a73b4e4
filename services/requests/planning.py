"""Which method a model gets: the router's choice from the policy's ladder, or the one that the caller named, and the rungs behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from services.catalogue import router
from services.catalogue import service as catalogue
from services.catalogue.applicability import Granularity, obstacle
from services.db.tables import Policy
from services.errors import InvalidInput, MethodNotApplicable, ParameterOutOfRange
from services.requests.holdings import Holdings
from services.tenants.policies import Rung, readings_for


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """The first method with its parameters and version, the choice as the job stores it, and the queue of the workers that offer it.

    `share` is what share of a whole training the method is expected to take, where the model version tells.
    """

    method: str
    version: str
    parameters: dict[str, Any]
    choice: dict[str, Any]
    rungs: tuple[str, ...]
    reason: str
    guarantee: str | None
    queue: str
    share: float | None = None


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
    holdings: Holdings,
    policy: Policy,
    granularity: Granularity,
    records: int,
    class_records: int | None,
    method: str,
    parameters: Mapping[str, Any],
) -> MethodPlan:
    """Return what a model gets.

    Raises MethodNotApplicable where the named method, or every rung of the ladder, cannot serve the request.
    """
    offers = catalogue.offers(session)
    asked: dict[str, Any] = {"task": task, "granularity": granularity, "held": holdings.held, "traits": holdings.traits}
    could = ", ".join(sorted(name for name, offer in offers.items() if obstacle(offer, **asked) is None)) or "none"
    ladder = router.rungs_for(
        [Rung.model_validate(rung) for rung in policy.ladder],
        task=task, granularity=granularity, held=holdings.held, parameters=holdings.parameters,
    )  # fmt: skip
    if method != "auto":
        offer = offers.get(method)
        why = obstacle(offer, **asked) if offer else "no worker can load it"
        if why is not None:
            raise MethodNotApplicable(method=method, detail=why, could=could)
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
        why = "; ".join(f"{name}: {reason}" for name, reason in router.obstacles(ladder, **asked, available=offers).items())
        detail = f"no rung of policy {policy.key} serves {granularity} requests on task {task}" + (f" ({why})" if why else "")
        raise MethodNotApplicable(method="auto", detail=detail, could=could)
    found = _plan(session, ladder, choice, method, parameters)
    told = {**found.choice, "held": sorted(holdings.held)}
    return replace(found, choice=told, share=holdings.share_of_training(found.method, records))


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
