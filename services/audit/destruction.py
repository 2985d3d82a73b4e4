"""What every destruction has in common: which blobs go and which stay, what is recorded when they are gone, and the form of a certificate.

What is destroyed is a version of a model, a version of a dataset, or a candidate: what a job put and did not publish. The bytes are `control.purge`'s.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import rfc8785
from sqlalchemy.orm import Session

from services.audit import log as audit
from services.db import destruction, objects, outbox
from services.db.objects import Owner
from services.db.tables import Job
from services.errors import CertificateNotReady

CERTIFICATE_TYPE = "https://lethe.dev/destruction-certificate/v1"
UNREACHABLE = (
    "The files listed as destroyed are unreachable through the S3 API: the store lists no version of them and answers 404. "
    "Reclaiming the storage media is the operator's, and so are copies outside this store, such as backups."
)
MAX_CRASHES = 100


@dataclass(frozen=True, slots=True)
class Blob:
    """One file: to be destroyed, or kept because `needed_by` is not empty."""

    path: str
    digest: str
    size_bytes: int
    needed_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why something cannot be destroyed yet: `legal-hold` or `version-in-use`."""

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


@dataclass(frozen=True, slots=True)
class Proven:
    """What a certificate tells beside the thing itself: who asked and why, what was asked of the store, which workers looked for copies."""

    certificate_id: UUID
    tenant_ref: str
    params: Mapping[str, Any]
    proof: Mapping[str, Any]
    workers: Sequence[str]
    at: str
    """When the bytes were gone, as the step that recorded it wrote it."""


class Destroyer(Protocol):
    """The ledger's side of one kind of destruction. `thing` is the id of what is destroyed; each function runs in the caller's transaction."""

    def plan(self, session: Session, thing: UUID) -> list[Blob] | Obstacle:
        """Decide which blobs go and mark them; from here on nothing may refer to them."""
        ...

    def bury(self, session: Session, thing: UUID, blobs: Sequence[Blob], *, reason: str) -> datetime:
        """Record that the bytes are gone and return when."""
        ...

    def certify(self, session: Session, thing: UUID, blobs: Sequence[Blob], proven: Proven) -> str:
        """Store the certificate with its event in the log and return its digest."""
        ...


def choose(session: Session, files: Sequence[Blob], owner: Owner) -> list[Blob] | Obstacle:
    """Decide which of the files go, and mark their blobs; those that anybody else needs stay. Locks the blobs."""
    digests = sorted({file.digest for file in files})
    objects.lock(session, digests)
    needed: dict[str, list[str]] = {}
    for need in objects.needs(session, digests, owner=owner):
        needed.setdefault(need.digest, []).append(need.by)
    going = [digest for digest in digests if digest not in needed]
    if objects.pinned(session, going):
        return Obstacle("version-in-use", "a running job has put the same bytes")
    objects.set_deleting(session, going)
    return [Blob(file.path, file.digest, file.size_bytes, tuple(dict.fromkeys(needed.get(file.digest, ())))) for file in files]


def under_hold(holds: Sequence[UUID]) -> Obstacle | None:
    """Return the obstacle of standing legal holds, if there are any."""
    return Obstacle("legal-hold", f"it is under legal hold {', '.join(f'hold_{one.hex}' for one in holds)}") if holds else None


def in_use(uses: Sequence[str]) -> Obstacle | None:
    """Return the obstacle of uses, if there are any."""
    return Obstacle("version-in-use", "; ".join(uses)) if uses else None


def release(session: Session, blobs: Sequence[Blob], owner: Owner, *, tombstones: Callable[[Blob], bool], reason: str) -> dict[str, list[str]]:
    """Record that the bytes are gone: no reference any more, tombstones where asked; return the digests that were `destroyed`, and those `kept`."""
    gone = [blob for blob in blobs if not blob.needed_by]
    objects.lock(session, sorted({blob.digest for blob in blobs}))
    objects.drop_references(session, owner)
    objects.bury(session, [blob.digest for blob in gone], weights=[blob.digest for blob in gone if tombstones(blob)], reason=reason)
    return {"destroyed": sorted({blob.digest for blob in gone}), "kept": sorted({blob.digest for blob in blobs if blob.needed_by})}


def body(thing: Mapping[str, Any], blobs: Sequence[Blob], proven: Proven, requests: Sequence[UUID]) -> dict[str, Any]:
    """Return a certificate: `thing` says what was destroyed, `requests` which deletion requests named it."""
    files = [
        {"path": blob.path, "sha256": blob.digest, "size_bytes": blob.size_bytes, "disposition": "kept" if blob.needed_by else "destroyed",
         "needed_by": list(blob.needed_by)}
        for blob in blobs
    ]  # fmt: skip
    return {
        "type": CERTIFICATE_TYPE,
        "certificate": f"dcr_{proven.certificate_id.hex}",
        "tenant_ref": proven.tenant_ref,
        **thing,
        "reason": proven.params.get("reason"),
        "requested_by": proven.params.get("by"),
        "requests": [f"dr_{request_id.hex}" for request_id in requests],
        "files": files,
        "proof": {**proven.proof, "workers_asked": len(proven.workers)},
        "destroyed_at": proven.at,
        "statement": UNREACHABLE,
    }


def store(
    session: Session, document: Mapping[str, Any], *, key: Mapping[str, UUID], certificate_id: UUID, tenant_id: UUID, event: str,
    facts: Mapping[str, Any], concerned: Sequence[UUID],
) -> str:  # fmt: skip
    """Store a certificate with its event in the log, and let the reports of the concerned requests be built again; return the digest.

    Args:
        session: in the transaction that ends the purge.
        document: the certificate.
        key: the one column of the table that names what was destroyed, with its id, which the event is about.
        certificate_id: as in the document.
        tenant_id: the transaction's tenant.
        event: the type of the event.
        facts: what the event says beside the certificate's digest.
        concerned: requests whose report tells of what was destroyed.
    """
    digest = digest_of(document)
    (object_id,) = key.values()
    number = audit.record(session, tenant_id=tenant_id, object_id=object_id, type=event, body={"certificate": digest, **facts})
    values = {"id": certificate_id, "tenant_id": tenant_id, **key, "digest": digest, "document": dict(document)}
    destruction.insert_certificate(session, {**values, "event_id": number})
    for request_id in concerned:
        outbox.ring(session, tenant_id=tenant_id, topic="report.build", ref=request_id)
    return digest


def digest_of(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of a certificate's canonical JSON (RFC 8785)."""
    return hashlib.sha256(rfc8785.dumps(dict(document))).hexdigest()


def view(session: Session, **key: UUID) -> CertificateView:
    """Return the certificate of what `key` names. Raises CertificateNotReady."""
    row = destruction.certificate(session, **key)
    if row is None:
        raise CertificateNotReady
    event, payload = destruction.opening(session, row.event_id)
    opening = None if payload is None else {"type": event.type, "body": payload.body, "salt": payload.salt.hex()}
    return CertificateView(row.document, row.digest, row.created_at, event.id, event.commitment.hex(), event.seq, opening)


def open_job(session: Session, job: Mapping[str, Any], *, due: datetime, params: Mapping[str, str], by: str) -> UUID:
    """Open a purge job that is due at a moment, or bring the open one forward; return its id. `job` has its ids, and names what is destroyed."""
    values = {**job, "params": dict(params), "run_after": due, "due_at": due, "max_crashes": MAX_CRASHES, "created_by": by}
    return destruction.open_purge(session, values)


def thing_of(job: Job) -> tuple[str, UUID | None]:
    """Return what a purge job destroys: `model`, `dataset` or `candidate`, and its id."""
    named = {"candidate": job.candidate_job_id, "dataset": job.dataset_version_id, "model": job.base_version_id}
    return next(((kind, thing) for kind, thing in named.items() if thing is not None), ("model", None))
