"""Destroying a version: who may ask for it, what stands in the way, and the ledger's side of each step. The bytes are `control.purge`'s.

A version is destroyed once its time in quarantine is over, or when a caller asks. Blobs that anything else needs stay, and the certificate says so.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from services.audit import destruction as common
from services.audit import log as audit
from services.audit.destruction import Blob, CertificateView, Obstacle, Proven
from services.clock import Clock, uuid7
from services.db import destruction, holds, objects
from services.db.objects import Owner
from services.db.tables import ModelVersion
from services.errors import CheckpointDestroyed, FourEyesRequired, NotFound, VersionInUse, VersionNotReady
from services.model_versions import repository
from services.tenants.caller import Caller

log = structlog.get_logger()

WEIGHTS = ".safetensors"


# --- asking ----------------------------------------------------------------------------------------------------------------------------


def schedule(session: Session, versions: Sequence[UUID], *, clock: Clock) -> list[UUID]:
    """Open the purge job of each quarantined version that has a date, due on that date; return the jobs' ids."""
    opened: list[UUID] = []
    for version_id in versions:
        version = repository.version_by_id(session, version_id)
        if version is not None and version.status == "quarantined" and version.destroy_by is not None:
            opened.append(_open(session, version, version.destroy_by, {"reason": "superseded", "by": "policy"}, "control", clock))
    return opened


def request_destruction(session: Session, model: str | UUID, number: int, *, caller: Caller, clock: Clock) -> UUID:
    """Quarantine a version at once, have it destroyed, and return the purge job's id.

    Raises: NotFound; CheckpointDestroyed; VersionNotReady for an upload that is not checked, or was refused; VersionInUse while the version is
    current, has an alias, is under a legal hold, or an open job starts from it; FourEyesRequired for the creator of a request that the version was
    put away for, where its policy asks for four eyes.
    """
    found = repository.find(session, model, lock=True)
    version = None if found is None else repository.version(session, found.id, number, lock=True)
    if version is None:
        raise NotFound
    if version.status == "destroyed":
        raise CheckpointDestroyed(version=number)
    if version.status not in {"ready", "quarantined"}:
        raise VersionNotReady(version=number, status=version.status)
    if caller.principal in destruction.creators_under_four_eyes(session, version.id):
        raise FourEyesRequired
    stands = obstacle(session, version.id)
    if stands is not None:
        raise VersionInUse(version=number, detail=stands.detail)
    now = objects.now(session)
    repository.set_version(session, version.id, status="quarantined", destroy_by=now, quarantined_for=version.quarantined_for or "requested")
    facts = {"by": caller.principal, "model": str(version.model_id), "version": str(version.id), "number": number, "from": version.status}
    audit.record(session, tenant_id=version.tenant_id, object_id=version.id, type="model_version.destruction_requested", body=facts)
    job_id = _open(session, version, now, {"reason": "requested", "by": caller.principal}, caller.principal, clock)
    log.info("version.destruction_requested", version_id=str(version.id), job_id=str(job_id))
    return job_id


def _open(session: Session, version: ModelVersion, due: datetime, params: dict[str, str], by: str, clock: Clock) -> UUID:
    values: dict[str, Any] = {"id": uuid7(clock), "tenant_id": version.tenant_id, "model_id": version.model_id, "base_version_id": version.id}
    return common.open_job(session, values, due=due, params=params, by=by)


def obstacle(session: Session, version_id: UUID) -> Obstacle | None:
    """Return what stands in the way of destroying a version, a legal hold first."""
    return common.under_hold(holds.over_version(session, version_id)) or common.in_use(destruction.uses(session, version_id))


# --- doing -----------------------------------------------------------------------------------------------------------------------------


def plan(session: Session, thing: UUID) -> list[Blob] | Obstacle:
    """Decide which blobs of a quarantined version go and mark them; from here on nothing may refer to them.

    Locks the version, then the blobs. Raises NotFound, VersionNotReady where the version is not quarantined.
    """
    version = _locked(session, thing)
    if version.status != "quarantined":
        raise VersionNotReady(version=version.number, status=version.status)
    stands = obstacle(session, thing)
    if stands is not None:
        return stands
    files = [Blob(file.path, file.sha256, file.size_bytes) for file in repository.files(session, [thing])[thing]]
    return common.choose(session, files, _owner(version))


def bury(session: Session, thing: UUID, blobs: Sequence[Blob], *, reason: str) -> datetime:
    """Record that the bytes are gone: tombstones for the weights, no reference any more, the version `destroyed`; return when."""
    version = _locked(session, thing)
    fate = common.release(session, blobs, _owner(version), tombstones=lambda blob: blob.path.endswith(WEIGHTS), reason=reason)
    at = destruction.set_destroyed(session, thing)
    facts = {**_named(version), "reason": reason, "at": at.isoformat(), **fate}
    audit.record(session, tenant_id=version.tenant_id, object_id=thing, type="model_version.destroyed", body=facts)
    log.info("version.destroyed", version_id=str(thing), count=len(fate["destroyed"]))
    return at


def certify(session: Session, thing: UUID, blobs: Sequence[Blob], proven: Proven) -> str:
    """Store the certificate with its event in the log, and let every report that tells of the version be built again; return the digest."""
    version = repository.version_by_id(session, thing)
    if version is None:
        raise NotFound
    model, concerned = repository.find(session, version.model_id), destruction.concerned(session, thing)
    named = {"model": model.name if model is not None else None, "version": version.number, "version_id": f"mv_{thing.hex}"}
    document = common.body(
        {**named, "manifest_digest": version.manifest_digest}, blobs, proven, [request_id for request_id, learned in concerned if learned]
    )
    return common.store(
        session, document, key={"version_id": thing}, certificate_id=proven.certificate_id, tenant_id=version.tenant_id,
        event="model_version.destruction_certified", facts=_named(version), concerned=[request_id for request_id, _ in concerned],
    )  # fmt: skip


def _locked(session: Session, version_id: UUID) -> ModelVersion:
    version = repository.version_by_id(session, version_id, lock=True)
    if version is None:
        raise NotFound
    return version


def _owner(version: ModelVersion) -> Owner:
    return Owner("model_version", version.id, version.tenant_id)


def _named(version: ModelVersion) -> dict[str, Any]:
    return {"model": str(version.model_id), "version": str(version.id), "number": version.number}


# --- reading ---------------------------------------------------------------------------------------------------------------------------


def certificate(session: Session, model: str | UUID, number: int) -> CertificateView:
    """Return the certificate of a version. Raises NotFound, CertificateNotReady."""
    found = repository.find(session, model)
    version = None if found is None else repository.version(session, found.id, number)
    if version is None:
        raise NotFound
    return common.view(session, version_id=version.id)
