"""SQL of blobs: announced before they are put, referenced once they are there, destroyed with a tombstone that keeps them from coming back.

Who needs a blob is told by its references and, for what a running job has put, by its pins. Rows of blobs are locked in the order of their digests.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from services.db.tables import StoredObject, Tombstone
from services.errors import BuriedBytes, StoreDown

_ANNOUNCE = text("""
    INSERT INTO object (digest, size_bytes) SELECT x.d, x.s FROM unnest(CAST(:digests AS text[]), CAST(:sizes AS bigint[])) AS x(d, s)
     ORDER BY x.d ON CONFLICT DO NOTHING
    """)
_STATES = text("""
    SELECT o.digest, o.state, EXISTS (SELECT 1 FROM tombstone t WHERE t.digest = o.digest) AS buried
      FROM object o WHERE o.digest = ANY(:digests) ORDER BY o.digest FOR UPDATE
    """)
_NEEDED = text("""
    SELECT r.digest, COALESCE(m.name || ' version ' || v.number, 'dataset ' || s.name || ' version ' || d.number) AS by
      FROM object_ref r LEFT JOIN model_version v ON v.id = r.owner_id AND r.owner_kind = 'model_version' LEFT JOIN model m ON m.id = v.model_id
      LEFT JOIN dataset_version d ON d.id = r.owner_id AND r.owner_kind = 'dataset_version' LEFT JOIN dataset s ON s.id = d.dataset_id
     WHERE r.digest = ANY(:digests) AND NOT (r.tenant_id = :tenant AND r.owner_kind = :kind AND r.owner_id = :owner)
     ORDER BY r.digest, m.name, v.number, s.name, d.number
    """)


def enter(session: Session, sizes: Mapping[str, int]) -> None:
    """Enter blobs (digest: bytes) that are not known yet."""
    session.execute(_ANNOUNCE, {"digests": list(sizes), "sizes": list(sizes.values())})


def announce(session: Session, sizes: Mapping[str, int]) -> None:
    """Enter blobs (digest: bytes) that are about to be put; one whose bytes were removed and are not buried counts as live again.

    Raises: BuriedBytes for a digest with a tombstone; StoreDown while a blob is being deleted, to be tried again.
    """
    if not sizes:
        return
    enter(session, sizes)
    removed = [digest for digest, state in _states(session, sizes) if state == "deleted"]
    if removed:
        session.execute(update(StoredObject).where(StoredObject.digest.in_(removed)).values(state="live", deleted_at=None))


def require_live(session: Session, digests: Collection[str]) -> None:
    """Make sure that blobs to be referenced are not on their way out; their rows are locked. Raises as `announce`, StoreDown also for removed ones."""
    if any(state != "live" for _, state in _states(session, digests)):
        raise StoreDown


def _states(session: Session, digests: Collection[str]) -> list[tuple[str, str]]:
    found = session.execute(_STATES, {"digests": list(digests)}).all()
    if any(row.buried for row in found):
        raise BuriedBytes
    if any(row.state == "deleting" for row in found):
        raise StoreDown
    return [(row.digest, row.state) for row in found]


# --- destruction -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Who refers to blobs: a `model_version` or `dataset_version` by its id; a `candidate` refers to none."""

    kind: str
    id: UUID
    tenant_id: UUID


@dataclass(frozen=True, slots=True)
class Need:
    """Who else needs a blob: a version of the same tenant by its name, or somebody who is not named."""

    digest: str
    by: str


def lock(session: Session, digests: Collection[str]) -> dict[str, str]:
    """Lock blobs for the rest of the transaction; return the state of each that is known."""
    query = select(StoredObject.digest, StoredObject.state).where(StoredObject.digest.in_(digests)).order_by(StoredObject.digest).with_for_update()
    return {row.digest: row.state for row in session.execute(query)}


def needs(session: Session, digests: Collection[str], *, owner: Owner) -> list[Need]:
    """Return who needs these blobs beside one owner. For control, which sees the references of every tenant."""
    values = {"digests": list(digests), "tenant": owner.tenant_id, "kind": owner.kind, "owner": owner.id}
    return [Need(row.digest, row.by or "another owner") for row in session.execute(_NEEDED, values)]


def pinned(session: Session, digests: Collection[str]) -> bool:
    """Say whether a running job has put one of these blobs and may yet refer to it."""
    statement = text("SELECT EXISTS (SELECT 1 FROM object_pin WHERE digest = ANY(:digests) AND until > clock_timestamp())")
    return bool(session.scalar(statement, {"digests": list(digests)}))


def set_deleting(session: Session, digests: Collection[str]) -> None:
    """Mark blobs that will be deleted: nobody may refer to them from here on."""
    session.execute(update(StoredObject).where(StoredObject.digest.in_(digests), StoredObject.state == "live").values(state="deleting"))


def bury(session: Session, digests: Collection[str], *, weights: Collection[str], reason: str) -> None:
    """Record that the bytes of blobs are gone from the store; those of weights get a tombstone."""
    gone = update(StoredObject).where(StoredObject.digest.in_(digests), StoredObject.state == "deleting")
    session.execute(gone.values(state="deleted", deleted_at=func.clock_timestamp()))
    statement = text("""
        INSERT INTO tombstone (digest, size_bytes, reason)
        SELECT digest, size_bytes, :reason FROM object WHERE digest = ANY(:digests) AND state = 'deleted' ORDER BY digest ON CONFLICT DO NOTHING
        """)
    session.execute(statement, {"digests": [digest for digest in weights if digest in set(digests)], "reason": reason})


def drop_references(session: Session, owner: Owner) -> None:
    """Forget that an owner of the transaction's tenant needs its blobs."""
    statement = text("DELETE FROM object_ref WHERE owner_kind = :kind AND owner_id = :owner")
    session.execute(statement, {"kind": owner.kind, "owner": owner.id})


def gone(session: Session, sizes: Collection[int]) -> dict[int, set[str]]:
    """Return the digests of destroyed blobs, by the size of their bytes, of these sizes: those with a tombstone, and those that nobody put again."""
    found: dict[int, set[str]] = {}
    buried = select(Tombstone.size_bytes, Tombstone.digest).where(Tombstone.size_bytes.in_(sizes))
    deleted = select(StoredObject.size_bytes, StoredObject.digest).where(StoredObject.state == "deleted", StoredObject.size_bytes.in_(sizes))
    for row in session.execute(buried.union(deleted)):
        found.setdefault(row.size_bytes, set()).add(row.digest)
    return found


def now(session: Session) -> datetime:
    """Return the database's time."""
    moment: Any = session.scalar(select(func.clock_timestamp()))
    return moment
