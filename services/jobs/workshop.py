"""What every step works with: database, store, keys, the lease, the scratch folder, and the one way to make an effect."""

import hashlib
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import rfc8785
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models_store import checkpoints
from models_store.errors import DigestWrong, ObjectMissing, Refused, StoreRefused, StoreUnavailable
from models_store.objects import ObjectStore
from services.clock import Clock
from services.db.crash import crash_point
from services.db.session import unit_of_work
from services.derived import Folder, Root
from services.errors import DigestMismatch, IntegrityBroken, StoreDown, UnsafeCheckpoint
from services.jobs import repository
from services.jobs.lease import Lease, fence
from services.jobs.repository import Work
from services.tenants.keys import KeyRing


class Compute(Protocol):
    """The runner as a step sees it. Each call raises what the runner raised, or why the supervisor killed it."""

    def open(self, folder: Path) -> None:
        """Give the runner its job folder."""
        ...

    def step(self, name: str) -> float:
        """Run one compute step and return its seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Workshop:
    """One claimed job under work in the pool child. `larger_queue` takes what does not fit this worker's memory; empty: there is none."""

    engine: Engine
    store: ObjectStore
    keys: KeyRing
    clock: Clock
    lease: Lease
    folder: Path
    compute: Compute
    device: str
    derived: Root | None = None
    larger_queue: str = ""

    def cache(self, work: Work) -> Folder | None:
        """Return the folder of what is derived from the job's dataset, the tenant's own; None where nothing is kept."""
        if self.derived is None or work.job.kind == "train":
            return None
        return self.derived.folder(self.lease.tenant_id.hex, work.dataset.id.hex)

    @contextmanager
    def effect(self) -> Generator[Session]:
        """Run one fenced transaction: the job row is locked on this lease's epoch before anything else. Raises LeaseLost."""
        with unit_of_work(self.engine, tenant=self.lease.tenant_id) as session:
            fence(session, self.lease.job_id, self.lease.epoch)
            yield session

    def work(self) -> Work:
        """Return the job and what it needs, as they are now."""
        with self.effect() as session:
            return repository.load(session, self.lease.job_id)

    def keep(self, path: Path) -> dict[str, Any]:
        """Pin, put and re-read a file; return {digest, size_bytes}. The blob waits under a pin until publish refers to it."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = path.stat().st_size
        with self.effect() as session:
            repository.pin(session, repository.job_row(session, self.lease.job_id), path.name, digest, size_bytes)
        crash_point("before put")
        with store_errors(path.name):
            checkpoints.put_blob(self.store, path)
        crash_point("after put")
        return {"digest": digest, "size_bytes": size_bytes}

    def fetch(self, digest: str, name: str) -> Path:
        """Bring a blob into the job folder, its digest checked. Raises StoreDown, DigestMismatch, IntegrityBroken."""
        path = self.folder / name
        if not path.exists():
            crash_point("before get")
            with store_errors(name):
                checkpoints.fetch_blob(self.store, digest, path)
        return path


@contextmanager
def store_errors(name: str) -> Generator[None]:
    """Translate the store's errors into the service's."""
    try:
        yield
    except (StoreUnavailable, StoreRefused) as error:
        raise StoreDown(detail=str(error)) from error
    except DigestWrong as error:
        raise DigestMismatch(name=name, actual=error.actual, expected=error.expected) from error
    except ObjectMissing as error:
        raise IntegrityBroken(detail=f"the object of {name} is missing") from error
    except Refused as error:
        raise UnsafeCheckpoint(name=name, gate=error.gate, detail=error.detail) from error


def canonical_digest(document: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `document`."""
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def within_53_bits(document: Any) -> Any:
    """Return JSON-able `document` with whole numbers of 2**53 and beyond as strings: canonical JSON (RFC 8785) has no form for such an integer.

    A float of that size goes the same way, since the database gives it back as an integer.
    """
    if isinstance(document, Mapping):
        return {str(name): within_53_bits(part) for name, part in document.items()}
    if isinstance(document, list | tuple):
        return [within_53_bits(part) for part in document]
    if isinstance(document, int | float) and math.isfinite(document) and abs(document) >= 2**53:
        return str(document)
    return document
