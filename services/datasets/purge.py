"""Destroying superseded dataset versions: when, what stands in the way, and the ledger's side of each step. The bytes are `control.purge`'s.

A version is superseded when records were erased from its dataset that it holds. It is `retired` then, and `purged` once its files are gone. Files that
another version needs stay, and the certificate says so.
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
from services.datasets import repository
from services.db import destruction, holds
from services.db.objects import Owner
from services.db.tables import DatasetVersion, Job
from services.errors import NotFound, VersionNotReady
from services.tenants.policies import body_of

log = structlog.get_logger()
DAY_S = 86_400.0


def retire(session: Session, dataset_id: UUID, number: int, job: Job, *, clock: Clock) -> list[UUID]:
    """Retire the versions of a dataset that hold records which version `number` has ended, by the policy of the job that made it; return their ids.

    A version that is to be destroyed gets its purge job, due on its date.
    """
    policy = repository.policy(session, job.policy_id) if job.policy_id is not None else None
    days = body_of(policy).flags.purge_after_days() if policy is not None else 0
    retired = repository.retire(session, dataset_id, number, None if days is None else days * DAY_S)
    for version_id, due in retired.items():
        if due is not None:
            values = {"id": uuid7(clock), "tenant_id": job.tenant_id, "model_id": job.model_id, "dataset_version_id": version_id}
            common.open_job(session, values, due=due, params={"reason": "superseded", "by": "policy"}, by="control")
    return list(retired)


def plan(session: Session, thing: UUID) -> list[Blob] | Obstacle:
    """Decide which blobs of a retired version go and mark them; from here on nothing may refer to them, and no job may work on the version.

    Locks the dataset, the version, then the blobs. Raises NotFound, VersionNotReady where the version is not retired.
    """
    found = repository.version_by_id(session, thing)
    if found is not None:
        repository.find(session, found.dataset_id, lock=True)
    version = _locked(session, thing)
    if version.status != "retired":
        raise VersionNotReady(version=version.number, status=version.status)
    stands = common.under_hold(holds.over_dataset_version(session, thing)) or common.in_use(destruction.dataset_uses(session, thing))
    if stands is not None:
        return stands
    files = [Blob(file.path, file.sha256, file.size_bytes) for file in repository.files(session, [thing])[thing]]
    return common.choose(session, files, _owner(version))


def bury(session: Session, thing: UUID, blobs: Sequence[Blob], *, reason: str) -> datetime:
    """Record that the bytes are gone: no reference any more, the version `purged`; return when.

    There is no tombstone: another tenant may have the same file by right. Within the tenant the rows of the version keep its files from coming back.
    """
    version = _locked(session, thing)
    fate = common.release(session, blobs, _owner(version), tombstones=lambda _: False, reason=reason)
    at = destruction.set_purged(session, thing)
    facts = {**_named(version), "reason": reason, "at": at.isoformat(), **fate}
    audit.record(session, tenant_id=version.tenant_id, object_id=thing, type="dataset_version.destroyed", body=facts)
    log.info("dataset_version.destroyed", version_id=str(thing), count=len(fate["destroyed"]))
    return at


def certify(session: Session, thing: UUID, blobs: Sequence[Blob], proven: Proven) -> str:
    """Store the certificate with its event in the log, and let every report that tells of the version be built again; return the digest."""
    version = repository.version_by_id(session, thing)
    if version is None:
        raise NotFound
    dataset, concerned = repository.find(session, version.dataset_id), destruction.dataset_concerned(session, thing)
    named = {"dataset": dataset.name if dataset is not None else None, "version": version.number, "version_id": f"dsv_{thing.hex}"}
    document = common.body({**named, "manifest_digest": version.manifest_digest}, blobs, proven, concerned)
    return common.store(
        session, document, key={"dataset_version_id": thing}, certificate_id=proven.certificate_id, tenant_id=version.tenant_id,
        event="dataset_version.destruction_certified", facts=_named(version), concerned=concerned,
    )  # fmt: skip


def certificate(session: Session, dataset: str | UUID, number: int) -> CertificateView:
    """Return the certificate of a version. Raises NotFound, CertificateNotReady."""
    found = repository.find(session, dataset)
    version = None if found is None else repository.version(session, found.id, number)
    if version is None:
        raise NotFound
    return common.view(session, dataset_version_id=version.id)


def _locked(session: Session, version_id: UUID) -> DatasetVersion:
    version = repository.version_by_id(session, version_id, lock=True)
    if version is None:
        raise NotFound
    return version


def _owner(version: DatasetVersion) -> Owner:
    return Owner("dataset_version", version.id, version.tenant_id)


def _named(version: DatasetVersion) -> dict[str, Any]:
    return {"dataset": str(version.dataset_id), "version": str(version.id), "number": version.number}
