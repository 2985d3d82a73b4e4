"""An erasure that a restored database does not know, done again: versions are put away, and requests come back to be carried out anew."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db import outbox
from services.db.tables import Dataset, DeletionRequest, Policy, Target
from services.errors import InvalidInput
from services.model_versions import repository as models
from services.requests import repository, subjects
from services.tenants.policies import current_policy

FALLBACK_POLICY = "gdpr-default"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of an entry: versions that were put away, requests that came back, and what could not be done, each with its reason."""

    quarantined: tuple[UUID, ...] = ()
    requests: tuple[UUID, ...] = ()
    skipped: tuple[str, ...] = ()


def replay(session: Session, entry: Mapping[str, Any], clock: Clock) -> Replayed:
    """Do an erasure again where this database lacks it. Safe to call again: what is done is left alone.

    Args:
        session: in a transaction of the entry's tenant.
        entry: as `services.audit.journal.opened` returns it.
        clock: for the ids of new rows.
    """
    tenant, model_id = UUID(entry["tenant"]), UUID(entry["model"])
    job = models.job(session, UUID(entry["job"])) if entry.get("job") else None
    if job is not None and job.state == "succeeded":
        return Replayed()
    model = models.find(session, model_id, lock=True)
    if model is None:
        return Replayed(skipped=(f"model {model_id} is not in this database: none of its versions is served",))
    superseded = [UUID(one) for one in entry["superseded"]]
    known = [version.id for version in (models.version_by_id(session, one) for one in superseded) if version is not None]
    gone = models.quarantine(session, known, None)
    back: list[UUID] = []
    skipped: list[str] = []
    for number, facts in entry["requests"].items():
        reason = _bring_back(session, tenant, UUID(number), model.id, model.current_version_id, known, facts, clock)
        if reason is None:
            back.append(UUID(number))
        elif reason:
            skipped.append(f"request dr_{UUID(number).hex}: {reason}")
    if not gone and not back:
        return Replayed(skipped=tuple(skipped))
    body = {"leaf": entry["leaf"], "model": str(model_id), "quarantined": [str(one) for one in gone]}
    for object_id in (model_id, *back):
        audit.record(session, tenant_id=tenant, object_id=object_id, type="restore.replayed", body=body)
    return Replayed(tuple(gone), tuple(back), tuple(skipped))


def _bring_back(
    session: Session,
    tenant: UUID,
    request_id: UUID,
    model_id: UUID,
    current: UUID | None,
    tainted: list[UUID],
    facts: Mapping[str, Any],
    clock: Clock,
) -> str | None:
    """Write a request that is not there any more as approved; return why not, and an empty reason where it is there."""
    if repository.request(session, request_id) is not None:
        return ""
    digests = {UUID(dataset): [bytes.fromhex(one) for one in held] for dataset, held in facts["records"].items()}
    if not digests:
        return "the journal holds no record of it; ask again"
    if facts.get("due_at") is None or facts.get("received_at") is None:
        return "its payload was erased before the journal was written; ask again"
    commitment = subjects.commitment(digests)
    repository.add(session, DeletionRequest, **_request(session, tenant, request_id, model_id, current, tainted, facts, digests, commitment))
    target_id = uuid7(clock)
    repository.add(
        session, Target, id=target_id, tenant_id=tenant, request_id=request_id, state="located", model_id=model_id, base_version_id=current,
        records=sum(len(held) for held in digests.values()), records_commitment=commitment, due_at=datetime.fromisoformat(facts["due_at"]),
    )  # fmt: skip
    repository.add_target_records(session, tenant, target_id, digests)
    outbox.ring(session, tenant_id=tenant, topic="request.advance", ref=request_id)
    return None


def _request(
    session: Session, tenant: UUID, request_id: UUID, model_id: UUID, current: UUID | None, tainted: list[UUID], facts: Mapping[str, Any],
    digests: Mapping[UUID, list[bytes]], commitment: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the columns of the request. It is one for records, whatever its kind was: the digests say which."""
    due = datetime.fromisoformat(facts["due_at"])
    suspects = sorted({*(str(one) for one in tainted), *([str(current)] if current else [])})
    scope = {"kind": "records", "records": sum(len(held) for held in digests.values()), "records_commitment": commitment, "labels": [],
             "datasets": [{"dataset": _name(session, dataset), "dataset_id": str(dataset), "versions": []} for dataset in digests]}  # fmt: skip
    return {
        "id": request_id, "tenant_id": tenant, "regulation": facts["regulation"], "state": "approved", "policy_id": _policy(session, tenant, facts).id,
        "params": {}, "scope": scope, "body_digest": b"", "identity": {"mode": "asserted_by_controller", "evidence_ref": None},
        "details": {"metadata": {}, "note": "brought back from the journal of erasures", "tainted": {str(model_id): suspects}, "ends": {},
                    "zero_shot": False},
        "received_at": datetime.fromisoformat(facts["received_at"]), "due_at": due, "original_due_at": due, "created_by": "restore",
    }  # fmt: skip


def _name(session: Session, dataset_id: UUID) -> str:
    found = session.get(Dataset, dataset_id)
    return str(dataset_id) if found is None else found.name


def _policy(session: Session, tenant: UUID, facts: Mapping[str, Any]) -> Policy:
    try:
        return current_policy(session, tenant, str(facts.get("policy") or FALLBACK_POLICY))
    except InvalidInput:
        return current_policy(session, tenant, FALLBACK_POLICY)
