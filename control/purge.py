"""Purge jobs: a version's blobs are deleted at the store, that is proved by listing and HEAD, and a certificate says so.

Each step can be interrupted anywhere and be taken up again: absent counts as done, and what was decided stands in the job's `step_state`.
"""

import hashlib
import hmac
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine, func
from sqlalchemy.orm import Session

from models_store.errors import DeletionNotProved, StoreRefused, StoreUnavailable
from models_store.objects import ObjectStore, blob_key
from services.audit.destruction import Blob, Destroyer, Obstacle, Proven, thing_of
from services.catalogue import service as catalogue
from services.clock import Clock, uuid7
from services.datasets import purge as datasets
from services.db import objects
from services.db.crash import crash_point
from services.db.destruction import QUEUE
from services.db.session import unit_of_work
from services.db.tables import Job
from services.errors import LeaseLost, LetheError, NotFound, StoreDown
from services.jobs import outcomes, repository
from services.jobs.lease import Lease, claim, fence, heartbeat
from services.model_versions import purge as models
from services.requests import candidates
from services.tenants.keys import KeyRing, derive, tenant_key

log = structlog.get_logger()

OWNER = "purge"
HELD_AGAIN_S = 3600.0
BUSY_AGAIN_S = 60.0
DESTROYERS: Mapping[str, Destroyer] = {"model": models, "dataset": datasets, "candidate": candidates}
WORKERS_AGAIN_S = 15.0


class Waiting(Exception):
    """The job goes back to its queue for `again_s`, for a reason that is no fault."""

    def __init__(self, code: str, detail: str, again_s: float) -> None:
        self.code, self.detail, self.again_s = code, detail, again_s
        super().__init__(code)


class Purge:
    """Carries out purge jobs one by one. `turn` can be called at any time, by any number of processes: a lease decides."""

    def __init__(self, engine: Engine, store: ObjectStore, keys: KeyRing, *, clock: Clock, lease_s: float = 60.0) -> None:
        self.engine, self.store, self.keys, self.clock, self.lease_s = engine, store, keys, clock, lease_s

    def turn(self) -> int:
        """Do one due purge job, if there is one, and return how many."""
        with unit_of_work(self.engine, tenant=None) as session:
            lease = claim(session, queue=QUEUE, owner=OWNER, lease_s=self.lease_s)
        if lease is None:
            return 0
        try:
            self._run(lease)
        except Waiting as wait:
            self._wait(lease, wait)
        except LeaseLost:
            log.warning("purge.lost", job_id=str(lease.job_id), epoch=lease.epoch)
        except StoreDown as error:  # the bytes are still there, so this is tried for as long as it takes
            self._wait(lease, Waiting(error.code, str(error), BUSY_AGAIN_S))
        except LetheError as error:
            log.warning("purge.failed", job_id=str(lease.job_id), code=error.code)
            with self._effect(lease) as session:
                outcomes.settle(session, repository.job_row(session, lease.job_id), error, clock=self.clock)
        return 1

    def _run(self, lease: Lease) -> None:
        with self._effect(lease) as session:
            job = repository.job_row(session, lease.job_id)
            repository.start_attempt(session, job, worker=OWNER, device={})
        self._once(lease, "plan", self._plan)
        self._once(lease, "delete", self._delete)
        self._once(lease, "bury", self._bury)
        self._once(lease, "workers", self._workers)
        with self._effect(lease) as session:
            job = repository.job_row(session, lease.job_id)
            digest = self._certify(session, job, lease) if _blobs(job) else None  # a job may have published all that it put
            repository.end_attempt(session, job, outcome="succeeded")
            repository.move(session, job, "finished", error=None, result={"certificate": digest, **_told(job)})
        log.info("purge.ended", job_id=str(lease.job_id), digest=digest)

    def _once(self, lease: Lease, name: str, step: Callable[[Lease, Job], Mapping[str, Any] | None]) -> None:
        """Do a step unless it is recorded as done. A step that writes rows records itself with them, and returns None."""
        with self._effect(lease) as session:
            job = repository.job_row(session, lease.job_id)
            if name in (job.step_state or {}).get("steps", {}):
                return
            repository.start_step(session, job, name)
            session.refresh(job)
        output = step(lease, job)
        if output is not None:
            with self._effect(lease) as session:
                repository.finish_step(session, repository.job_row(session, lease.job_id), name, output, output_digest=None)

    # --- steps -------------------------------------------------------------------------------------------------------------------------

    def _plan(self, lease: Lease, job: Job) -> None:
        """Decide which blobs go, and record it in the transaction that marks them. Raises Waiting for a hold, and for a use."""
        with self._effect(lease) as session:
            found = _destroyer(job).plan(session, _thing(job))
            if isinstance(found, Obstacle):
                raise Waiting(found.code, found.detail, HELD_AGAIN_S if found.code == "legal-hold" else BUSY_AGAIN_S)
            output = {"blobs": [asdict(blob) for blob in found]}
            repository.finish_step(session, repository.job_row(session, lease.job_id), "plan", output, output_digest=None)

    def _delete(self, lease: Lease, job: Job) -> dict[str, Any]:
        """Delete every version of every blob, then ask the store for each of them once more. Raises StoreDown."""
        keys = sorted({blob_key(blob.digest) for blob in _blobs(job) if not blob.needed_by})
        with _store_errors():
            for key in keys:
                self._beat(lease)
                self.store.abort_uploads(key)
                crash_point("after aborted uploads")
                for version in [one for one in self.store.list_versions(key) if one.key == key]:
                    self.store.delete_version(key, version.version_id)
                    crash_point("after a deleted store version")
            for key in keys:
                left = sum(one.key == key for one in self.store.list_versions(key))
                if left or self.store.head(key) is not None:
                    raise DeletionNotProved(key=key, left=left or 1)
        with self._effect(lease) as session:
            checked_at = objects.now(session)
        return {"proof": {"head": "absent", "listing": "empty", "unfinished_uploads": "aborted", "checked_at": checked_at.isoformat()}}

    def _bury(self, lease: Lease, job: Job) -> None:
        with self._effect(lease) as session:
            at = _destroyer(job).bury(session, _thing(job), _blobs(job), reason=str(job.params.get("reason", "superseded")))
            held = repository.job_row(session, lease.job_id)
            repository.finish_step(session, held, "bury", {"at": at.isoformat()}, output_digest=None)

    def _workers(self, _: Lease, job: Job) -> dict[str, Any]:
        """Wait until every live worker has looked for copies since the tombstones stand. Raises Waiting."""
        since = (job.step_state or {})["steps"]["bury"]["at"]
        with unit_of_work(self.engine, tenant=None) as session:
            asked, silent = catalogue.seen_since(session, since)
        if silent:
            raise Waiting("worker-not-seen", f"{len(silent)} live workers have not looked for copies yet", WORKERS_AGAIN_S)
        return {"asked": asked}

    def _certify(self, session: Session, job: Job, lease: Lease) -> str:
        steps = (job.step_state or {})["steps"]
        key = derive(tenant_key(session, lease.tenant_id, self.keys.kek), "audit:tenant-ref")
        proven = Proven(
            uuid7(self.clock), hmac.digest(key, lease.tenant_id.bytes, hashlib.sha256).hex(), job.params, steps["delete"]["proof"],
            steps["workers"]["asked"], steps["bury"]["at"],
        )  # fmt: skip
        return _destroyer(job).certify(session, _thing(job), _blobs(job), proven)

    # --- lease -------------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _effect(self, lease: Lease) -> Generator[Session]:
        with unit_of_work(self.engine, tenant=lease.tenant_id) as session:
            fence(session, lease.job_id, lease.epoch)
            yield session

    def _beat(self, lease: Lease) -> None:
        with unit_of_work(self.engine, tenant=lease.tenant_id) as session:
            heartbeat(session, job_id=lease.job_id, epoch=lease.epoch, lease_s=self.lease_s, progress=None)

    def _wait(self, lease: Lease, wait: Waiting) -> None:
        with self._effect(lease) as session:
            job = repository.job_row(session, lease.job_id)
            repository.fail_step(session, job)
            repository.end_attempt(session, job, outcome="waiting", error={"code": wait.code, "detail": wait.detail})
            later = func.clock_timestamp() + timedelta(seconds=wait.again_s)
            repository.move(session, job, "transient", run_after=later, error={"code": wait.code, "detail": wait.detail})
        log.info("purge.waits", job_id=str(lease.job_id), code=wait.code)


def _destroyer(job: Job) -> Destroyer:
    return DESTROYERS[thing_of(job)[0]]


def _thing(job: Job) -> UUID:
    found = thing_of(job)[1]
    if found is None:
        raise NotFound
    return found


def _told(job: Job) -> dict[str, str]:
    """Return what the job's result says was destroyed."""
    kind, thing = thing_of(job)
    return {{"model": "version_id", "dataset": "dataset_version_id", "candidate": "job_id"}[kind]: str(thing)}


def _blobs(job: Job) -> list[Blob]:
    """Return the blobs as the step `plan` left them."""
    planned = (job.step_state or {})["steps"]["plan"]["blobs"]
    return [Blob(one["path"], one["digest"], one["size_bytes"], tuple(one["needed_by"])) for one in planned]


@contextmanager
def _store_errors() -> Generator[None]:
    try:
        yield
    except (StoreUnavailable, StoreRefused, DeletionNotProved) as error:
        raise StoreDown from error
