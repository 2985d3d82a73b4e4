"""Destroying a version: who may ask for it, what stands in the way, and the ledger's side of each step. The bytes are `control.purge`'s.

A version is destroyed once its time in quarantine is over, or when a caller asks. Blobs that anything else needs stay, and the certificate says so.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import rfc8785
import structlog
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.clock import Clock, uuid7
from services.db import destruction, holds, objects, outbox
from services.db.tables import ModelVersion
from services.errors import CertificateNotReady, CheckpointDestroyed, NotFound, VersionInUse, VersionNotReady
from services.model_versions import repository
from services.tenants.caller import Caller

log = structlog.get_logger()

CERTIFICATE_TYPE = "https://lethe.dev/destruction-certificate/v1"
UNREACHABLE = (
    "The files listed as destroyed are unreachable through the S3 API: the store lists no version of them and answers 404. "
    "Reclaiming the storage media is the operator's, and so are copies outside this store, such as backups."
)
WEIGHTS = ".safetensors"
MAX_CRASHES = 100


@dataclass(frozen=True, slots=True)
class Blob:
    """One file of a version: to be destroyed, or kept because `needed_by` is not empty."""

    path: str
    digest: str
    size_bytes: int
    needed_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a version cannot be destroyed yet: `legal-hold` or `version-in-use`."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class CertificateView:
    """A certificate with what proves that the log knows it: the event's leaf, commitment (hex), and the opening of the commitment."""

    document: Mapping[str, Any]
    digest: str
    created_at: datetime
    event: int
    commitment: str
    leaf_seq: int | None
    opening: Mapping[str, Any] | None


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
    current, has an alias, is under a legal hold, or an open job starts from it.
    """
    found = repository.find(session, model, lock=True)
    version = None if found is None else repository.version(session, found.id, number, lock=True)
    if version is None:
        raise NotFound
    if version.status == "destroyed":
        raise CheckpointDestroyed(version=number)
    if version.status not in {"ready", "quarantined"}:
        raise VersionNotReady(version=number, status=version.status)
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
    return destruction.open_purge(
        session, {**values, "params": params, "run_after": due, "due_at": due, "max_crashes": MAX_CRASHES, "created_by": by}
    )


def obstacle(session: Session, version_id: UUID) -> Obstacle | None:
    """Return what stands in the way of destroying a version, a legal hold first."""
    held = holds.over_version(session, version_id)
    if held:
        return Obstacle("legal-hold", f"it is under legal hold {', '.join(f'hold_{one.hex}' for one in held)}")
    uses = destruction.uses(session, version_id)
    return Obstacle("version-in-use", "; ".join(uses)) if uses else None


# --- doing -----------------------------------------------------------------------------------------------------------------------------


def plan(session: Session, version_id: UUID) -> list[Blob] | Obstacle:
    """Decide which blobs of a quarantined version go and mark them; from here on nothing may refer to them.

    Locks the version, then the blobs. Raises NotFound, VersionNotReady where the version is not quarantined.
    """
    version = repository.version_by_id(session, version_id, lock=True)
    if version is None:
        raise NotFound
    if version.status != "quarantined":
        raise VersionNotReady(version=version.number, status=version.status)
    stands = obstacle(session, version_id)
    if stands is not None:
        return stands
    files = repository.files(session, [version_id])[version_id]
    digests = sorted({file.sha256 for file in files})
    objects.lock(session, digests)
    needed: dict[str, list[str]] = {}
    for need in objects.needs(session, digests, tenant_id=version.tenant_id, version_id=version_id):
        needed.setdefault(need.digest, []).append(need.by)
    going = [digest for digest in digests if digest not in needed]
    if objects.pinned(session, going):
        return Obstacle("version-in-use", "a running job has put the same bytes")
    objects.set_deleting(session, going)
    return [Blob(file.path, file.sha256, file.size_bytes, tuple(dict.fromkeys(needed.get(file.sha256, ())))) for file in files]


def bury(session: Session, version_id: UUID, blobs: Sequence[Blob], *, reason: str) -> datetime:
    """Record that the bytes are gone: tombstones for the weights, no reference any more, the version `destroyed`; return when."""
    version = repository.version_by_id(session, version_id, lock=True)
    if version is None:
        raise NotFound
    gone = [blob for blob in blobs if not blob.needed_by]
    objects.lock(session, sorted({blob.digest for blob in blobs}))
    objects.drop_references(session, version_id)
    weights = [blob.digest for blob in gone if blob.path.endswith(WEIGHTS)]
    objects.bury(session, [blob.digest for blob in gone], weights=weights, reason=reason)
    at = destruction.set_destroyed(session, version_id)
    facts = {"model": str(version.model_id), "version": str(version_id), "number": version.number, "reason": reason, "at": at.isoformat(),
             "destroyed": sorted({blob.digest for blob in gone}), "kept": sorted({blob.digest for blob in blobs if blob.needed_by})}  # fmt: skip
    audit.record(session, tenant_id=version.tenant_id, object_id=version_id, type="model_version.destroyed", body=facts)
    log.info("version.destroyed", version_id=str(version_id), count=len(gone))
    return at


def certify(session: Session, version_id: UUID, document: Mapping[str, Any], *, certificate_id: UUID) -> str:
    """Store the certificate with its event in the log, and let every report that tells of the version be built again; return the digest."""
    version = repository.version_by_id(session, version_id)
    if version is None:
        raise NotFound
    digest = digest_of(document)
    facts = {"certificate": digest, "model": str(version.model_id), "version": str(version_id), "number": version.number}
    event = audit.record(session, tenant_id=version.tenant_id, object_id=version_id, type="model_version.destruction_certified", body=facts)
    values = {"id": certificate_id, "tenant_id": version.tenant_id, "version_id": version_id, "digest": digest, "document": dict(document)}
    destruction.insert_certificate(session, {**values, "event_id": event})
    for request_id, _ in destruction.concerned(session, version_id):
        outbox.ring(session, tenant_id=version.tenant_id, topic="report.build", ref=request_id)
    return digest


def document(
    session: Session, version_id: UUID, blobs: Sequence[Blob], *, certificate_id: UUID, tenant_ref: str, params: Mapping[str, Any],
    proof: Mapping[str, Any], workers: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the certificate of a destroyed version.

    Args:
        session: in the transaction that stores it.
        version_id: what was destroyed.
        blobs: its files, as they were planned.
        certificate_id: a new id.
        tenant_ref: a keyed digest of the tenant, as in reports.
        params: of the purge job: `reason` and `by`.
        proof: what was asked of the store after the deletion, and when.
        workers: live workers, each of which has looked for copies since.
    """
    version = repository.version_by_id(session, version_id)
    if version is None or version.destroyed_at is None:
        raise NotFound
    model = repository.find(session, version.model_id)
    files = [
        {"path": blob.path, "sha256": blob.digest, "size_bytes": blob.size_bytes, "disposition": "kept" if blob.needed_by else "destroyed",
         "needed_by": list(blob.needed_by)}
        for blob in blobs
    ]  # fmt: skip
    return {
        "type": CERTIFICATE_TYPE,
        "certificate": f"dcr_{certificate_id.hex}",
        "tenant_ref": tenant_ref,
        "model": model.name if model is not None else None,
        "version": version.number,
        "version_id": f"mv_{version_id.hex}",
        "manifest_digest": version.manifest_digest,
        "reason": params.get("reason"),
        "requested_by": params.get("by"),
        "requests": [f"dr_{request_id.hex}" for request_id, named in destruction.concerned(session, version_id) if named],
        "files": files,
        "proof": {**proof, "workers_asked": len(workers)},
        "destroyed_at": version.destroyed_at.isoformat(),
        "statement": UNREACHABLE,
    }


def digest_of(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a certificate's canonical JSON (RFC 8785)."""
    return hashlib.sha256(rfc8785.dumps(dict(body))).hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------------------------


def certificate(session: Session, model: str | UUID, number: int) -> CertificateView:
    """Return the certificate of a version. Raises NotFound, CertificateNotReady."""
    found = repository.find(session, model)
    version = None if found is None else repository.version(session, found.id, number)
    if version is None:
        raise NotFound
    row = destruction.certificate(session, version.id)
    if row is None:
        raise CertificateNotReady
    event, payload = destruction.opening(session, row.event_id)
    opening = None if payload is None else {"type": event.type, "body": payload.body, "salt": payload.salt.hex()}
    return CertificateView(row.document, row.digest, row.created_at, event.id, event.commitment.hex(), event.seq, opening)
