"""Taking a request in: what it names is located, checked and written in one transaction."""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import rfc8785
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.catalogue import service as catalogue
from services.clock import Clock, uuid7
from services.datasets import repository as datasets
from services.db import outbox
from services.db.tables import DeletionRequest, Policy, Target
from services.errors import Conflict, DuplicateExternalId, LetheError
from services.model_versions import repository as models
from services.requests import clocks, estimates, footprint, holdings, names, planning, repository, subjects
from services.requests.forms import NewRequest
from services.requests.states import REQUEST, following
from services.requests.subjects import Located, Tainted
from services.requests.views import DryRun, PlannedModel, Problem
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing, tenant_key
from services.tenants.policies import body_of, current_policy


@dataclass(frozen=True, slots=True)
class Intake:
    """A request, checked and ready to be written. `seen` is the request that this external_id and body made before."""

    body: NewRequest
    body_digest: bytes
    located: Located
    policy: Policy
    parameters: dict[str, Any]
    plans: dict[UUID, planning.MethodPlan]
    received_at: datetime
    deadlines: clocks.Deadlines
    review: str | None
    seen: UUID | None = None
    key: bytes = field(default=b"", repr=False)
    """K_tenant, under which names of entities are sealed."""


def digest_of(body: NewRequest, key: bytes) -> bytes:
    """Return HMAC-SHA256 over the canonical JSON of a body: equal for equal bodies, and it tells nothing without the key."""
    plain = json.dumps(asdict(body), default=str)
    return hmac.digest(key, b"body\x00" + rfc8785.dumps(json.loads(plain)), hashlib.sha256)


def prepare(session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing) -> Intake:
    """Locate and check everything. Raises what `service.create` names."""
    key = tenant_key(session, caller.tenant_id, keys.kek)
    digest = digest_of(body, key)
    seen = _seen(session, body, digest, caller.tenant_id)
    policy = current_policy(session, caller.tenant_id, body.policy)
    tenant = repository.tenant(session, caller.tenant_id)
    received = body.received_at or clock.now()
    free = clocks.free_days(tenant.holiday_calendar)
    due = clocks.deadlines(body.regulation, received, zone=ZoneInfo(tenant.time_zone), free=free)
    parameters = planning.named(session, body.method, body.parameters)
    located = subjects.locate(session, body, key)
    plans = {} if seen is not None else _plans(session, body, policy, parameters, located)
    review = _review(session, policy, located)
    return Intake(body, digest, located, policy, parameters, plans, received, due, review, seen, key)


def _seen(session: Session, body: NewRequest, digest: bytes, tenant_id: UUID) -> UUID | None:
    if body.external_id is None:
        return None
    held = repository.by_external_id(session, tenant_id, body.external_id)
    if held is None:
        return None
    if not hmac.compare_digest(held.body_digest, digest):
        raise DuplicateExternalId(external_id=body.external_id)
    return held.id


def _plans(session: Session, body: NewRequest, policy: Policy, parameters: dict[str, Any], located: Located) -> dict[UUID, planning.MethodPlan]:
    plans: dict[UUID, planning.MethodPlan] = {}
    for tainted in located.tainted:
        if tainted.current_version_id not in tainted.versions:
            continue
        base = models.version_by_id(session, tainted.current_version_id) if tainted.current_version_id else None
        if located.zero_shot:
            held = holdings.without_data(session, base, tainted.architecture, located.labels)
        else:
            held = holdings.with_data(session, base, tainted.architecture, list(located.latest.values()))
        plans[tainted.model_id] = planning.plan(
            session, task=tainted.task, holdings=held, policy=policy, granularity=located.granularity, records=len(located.hits),
            class_records=_smallest_class(located), method=body.method, parameters=parameters,
        )  # fmt: skip
        footprint.admit(session, tainted, plans[tainted.model_id], base, located, body_of(policy))
    return plans


def _smallest_class(located: Located) -> int | None:
    counts = [sum(1 for hit in located.hits if hit.label == label) for label in located.labels]
    return min(counts) if counts else None


def _review(session: Session, policy: Policy, located: Located) -> str | None:
    """Return why a person must decide, or None."""
    body = body_of(policy)
    if body.flags.require_review:
        return "policy"
    for dataset_id, version in located.latest.items():
        present = [hit for hit in located.hits if hit.dataset_id == dataset_id and subjects.holds(hit, version.number)]
        cap = body.limits.records_share
        if cap is not None and version.records and len(present) > cap * version.records:
            return "records-share"
        cap = body.limits.class_share
        if cap is None or not present or datasets.has_numbers(session, dataset_id):
            continue
        whole = datasets.label_counts(session, dataset_id, version.number)
        named: dict[str, int] = {}
        for hit in present:
            if hit.label is not None:
                named[hit.label] = named.get(hit.label, 0) + 1
        if any(count > cap * whole[label] for label, count in named.items()):
            return "class-share"
    return None


# --- writing ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """A request as it was written. `replayed`: another transaction had written it already (same external_id and body).

    `row`, `lines` and `receipt` are what was written, with the database's own values; `row` is None where the request must be read back.
    """

    request_id: UUID
    replayed: bool = False
    row: DeletionRequest | None = None
    lines: tuple[repository.TargetLine, ...] = ()
    receipt: tuple[int, bytes] | None = None


def insert(session: Session, intake: Intake, *, caller: Caller, clock: Clock) -> Written:
    """Write the request. The common case costs one statement a table: an open request with this scope is looked for only when the insert finds one."""
    request_id = uuid7(clock)
    values = _values(intake, request_id, caller, clock, leading=None)
    created_at = repository.add_request(session, **values)
    leading = None
    if created_at is None:
        raced = _seen(session, intake.body, intake.body_digest, caller.tenant_id)
        if raced is not None:
            return Written(raced, replayed=True)
        leading = repository.open_with_scope(session, caller.tenant_id, intake.located.scope_hmac)
        if leading is None:  # it was closed between the two statements
            created_at = repository.add_request(session, **values)
    if created_at is None:
        if leading is None:
            raise Conflict(detail="other requests with this scope open and close at the same time; send it again")
        repository.add(session, DeletionRequest, **_values(intake, request_id, caller, clock, leading=leading))
        repository.hasten(session, leading.id, intake.deadlines.due_at)
    receipt = _record(session, intake, request_id, caller, leading)
    if leading is not None:
        return Written(request_id)  # it shows the outcome of the other one
    lines = _targets(session, intake, request_id, caller, clock)
    if intake.review is None:
        outbox.ring(session, tenant_id=caller.tenant_id, topic="request.advance", ref=request_id)
    if lines is None:
        return Written(request_id)
    return Written(request_id, row=DeletionRequest(**values, created_at=created_at, version=1), lines=tuple(lines), receipt=receipt)


def _state(intake: Intake) -> str:
    """Return the state a fresh request stands in when its transaction ends."""
    state = following(REQUEST, "received", "identity_asserted", thing="request")
    return state if intake.review is not None else following(REQUEST, state, "approve", thing="request")


def _values(intake: Intake, request_id: UUID, caller: Caller, clock: Clock, *, leading: DeletionRequest | None) -> dict[str, Any]:
    """Return the columns of the request's row."""
    body, located, now = intake.body, intake.located, clock.now()
    state = _state(intake) if leading is None else following(REQUEST, "received", "duplicate_found", thing="request")
    scope = {
        "kind": located.kind,
        "records": len(located.hits),
        "records_commitment": located.commitment,
        "datasets": [{"dataset": one.dataset, "dataset_id": str(one.dataset_id), "versions": list(one.versions)} for one in located.datasets],
        "labels": list(located.labels),
        **located.bounds,
    }
    details = {
        "metadata": dict(body.metadata),
        "note": body.note,
        "tainted": {str(one.model_id): [str(version) for version in one.versions] for one in located.tainted},
        "ends": _ends(located),
        "zero_shot": located.zero_shot,
    }
    attention = {"code": "review-needed", "detail": intake.review} if leading is None and intake.review is not None else None
    return {
        "id": request_id, "tenant_id": caller.tenant_id, "external_id": body.external_id, "regulation": body.regulation, "manner": body.manner,
        "ground": body.ground, "state": state, "policy_id": intake.policy.id, "method": body.method, "params": intake.parameters,
        "duplicate_of": leading.id if leading is not None else None, "scope": scope,
        "scope_hmac": located.scope_hmac if leading is None else None, "body_digest": intake.body_digest,
        "identity": {"mode": body.identity.mode, "evidence_ref": body.identity.evidence_ref}, "details": details,
        "received_at": intake.received_at, "acknowledged_at": now if intake.deadlines.ack_due_at is None else None, "due_at": intake.deadlines.due_at,
        "original_due_at": intake.deadlines.due_at, "ack_due_at": intake.deadlines.ack_due_at, "created_by": caller.principal,
        "attention": attention, "closed_at": now if leading is not None else None,
        "names_sealed": names.sealed(located.names, intake.key, caller.tenant_id, request_id) if leading is None else None,
    }  # fmt: skip


def _ends(located: Located) -> dict[str, int]:
    """Return, per dataset, the first version number at which one of the records was already gone."""
    ends: dict[str, int] = {}
    for hit in located.hits:
        if hit.end is not None:
            ends[str(hit.dataset_id)] = min(hit.end, ends.get(str(hit.dataset_id), hit.end))
    return ends


def _record(session: Session, intake: Intake, request_id: UUID, caller: Caller, leading: DeletionRequest | None) -> tuple[int, bytes]:
    """Write the events of the receipt; return the first one's id and commitment."""
    facts = {
        "regulation": intake.body.regulation,
        "kind": intake.located.kind,
        "records": len(intake.located.hits),
        "records_commitment": intake.located.commitment,
        "received_at": intake.received_at.isoformat(),
        "due_at": intake.deadlines.due_at.isoformat(),
        "by": caller.principal,
    }
    events: list[tuple[str, dict[str, Any]]] = [("request.received", facts)]
    if leading is not None:
        events.append(("request.duplicate", {"duplicate_of": leading.id.hex}))
    elif intake.review is not None:
        events.append(("request.pending_review", {"reason": intake.review}))
    else:
        events.append(("request.approved", {"by": "policy", "policy": intake.policy.key, "version": intake.policy.version}))
    return audit.record_all(session, tenant_id=caller.tenant_id, object_id=request_id, events=events)[0]


def _targets(session: Session, intake: Intake, request_id: UUID, caller: Caller, clock: Clock) -> list[repository.TargetLine] | None:
    """Write one target for each model, or one without a model where there is nothing to unlearn.

    Return them as they are shown; None where the number of a current version that has not learned from the records must be read.
    """
    located = intake.located
    shared: dict[str, Any] = {"tenant_id": caller.tenant_id, "request_id": request_id, "due_at": intake.deadlines.due_at}
    if not located.tainted:
        outcome = "no_model_learned" if located.hits else "not_identifiable"
        found: dict[str, Any] = {"records": len(located.hits), "records_commitment": located.commitment}
        values = {"id": uuid7(clock), "state": "not_found", "outcome": outcome, **found, **shared}
        repository.add(session, Target, **values)
        return [repository.TargetLine(Target(**values, rung=1), None, None, None, None)]
    lines: list[repository.TargetLine] = []
    known = True
    for one in located.tainted:
        held = _digests_of(session, located, one)
        target_id = uuid7(clock)
        values = {
            "id": target_id, "state": "located", "model_id": one.model_id, "base_version_id": one.current_version_id,
            "records": sum(len(digests) for digests in held.values()),
            "records_commitment": located.commitment if located.zero_shot else subjects.commitment(held), **shared,
        }  # fmt: skip
        repository.add(session, Target, **values)
        repository.add_target_records(session, caller.tenant_id, target_id, held)
        base = None if one.current_version_id is None else dict(zip(one.versions, one.numbers, strict=True)).get(one.current_version_id)
        known = known and (one.current_version_id is None or base is not None)
        lines.append(repository.TargetLine(Target(**values, rung=1), one.model, base, None, None))
    return lines if known else None


def _digests_of(session: Session, located: Located, one: Tainted) -> dict[UUID, list[bytes]]:
    """Return the digests of the records in the datasets that this model's tainted versions, or what they were made from, learned from."""
    if len(located.digests) == 1:
        return located.digests
    learned = models.datasets_behind(session, one.versions)
    return {dataset_id: digests for dataset_id, digests in located.digests.items() if dataset_id in learned}


# --- dry run ---------------------------------------------------------------------------------------------------------------------------


def rehearse(
    session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing, check: Callable[[NewRequest, Clock], None]
) -> DryRun:
    """Return what taking the request in would come to; nothing is written."""
    try:
        check(body, clock)
        intake = prepare(session, body, caller=caller, clock=clock, keys=keys)
    except LetheError as error:
        pointer = error.facts.get("pointer")
        problem = Problem(error.code, str(error), str(pointer) if pointer else None)
        return DryRun(would_accept=False, problems=(problem,), records=0, datasets=(), models=(), due_at=None)
    leading = repository.open_with_scope(session, caller.tenant_id, intake.located.scope_hmac)
    return DryRun(
        would_accept=True,
        problems=(),
        records=len(intake.located.hits),
        datasets=intake.located.datasets,
        models=tuple(_planned(session, intake, one) for one in intake.located.tainted),
        due_at=intake.deadlines.due_at,
        duplicate_of=leading.id if leading is not None else None,
        needs_review=intake.review is not None,
    )


def _planned(session: Session, intake: Intake, one: Tainted) -> PlannedModel:
    plan = intake.plans.get(one.model_id)
    numbers = dict(zip(one.versions, one.numbers, strict=True))
    base = numbers.get(one.current_version_id) if one.current_version_id is not None else None
    seconds, basis = estimates.estimate(session, one, plan, intake.located, body_of(intake.policy))
    need = _need(session, intake, one, plan)
    return PlannedModel(
        model=one.model,
        base_version=base,
        method=plan.method if plan else "none",
        reason=plan.reason if plan else "the current version has not learned from the records; older versions are quarantined",
        guarantee=plan.guarantee if plan else None,
        rungs=plan.rungs if plan else (),
        queue_position=repository.queued_before(session, one.model_id),
        estimate_s=round(seconds, 1),
        estimate_basis=basis,
        memory_bytes=need,
        gpu_memory_bytes=need if any(found.kind == "cuda" for found in catalogue.capacities(session)) else None,
        would_purge=one.numbers,
    )


def _need(session: Session, intake: Intake, one: Tainted, plan: planning.MethodPlan | None) -> int | None:
    """Return the bytes that the plan's method takes on the model; None where there is nothing to do, or the version does not say its size."""
    if plan is None or one.current_version_id is None:
        return None
    base = models.version_by_id(session, one.current_version_id)
    entry = catalogue.methods(session).get(plan.method)
    need = footprint.needed(entry, plan.parameters, one, base, intake.located, body_of(intake.policy))
    return None if need is None else need.total_bytes
