"""SQL of tenants, API keys and policies."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from services.db.tables import ApiKey, Policy, Tenant


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What authentication reads of one API key. `now` is the database's time of reading."""

    id: UUID
    tenant_id: UUID
    client: str
    hash: bytes
    scopes: tuple[str, ...]
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    now: datetime


_FIND_KEY = text("SELECT id, tenant_id, client, hash, scopes, expires_at, revoked_at, last_used_at, clock_timestamp() AS now FROM lethe_key(:prefix)")


def find_key(session: Session, prefix: str) -> KeyRow | None:
    """Return the key with this prefix, of whatever tenant."""
    row = session.execute(_FIND_KEY, {"prefix": prefix}).one_or_none()
    if row is None:
        return None
    return KeyRow(row.id, row.tenant_id, row.client, row.hash, tuple(row.scopes), row.expires_at, row.revoked_at, row.last_used_at, row.now)


def touch_key(session: Session, key_id: UUID) -> None:
    """Note that a key was used, at most once a minute."""
    now = func.clock_timestamp()
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - timedelta(minutes=1))
    session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=now))


def insert_key(session: Session, *, key_id: UUID, tenant_id: UUID, client: str, prefix: str, digest: bytes, scopes: Sequence[str]) -> None:
    """Insert a key that does not expire."""
    session.execute(insert(ApiKey).values(id=key_id, tenant_id=tenant_id, client=client, prefix=prefix, hash=digest, scopes=sorted(scopes)))


def live_keys(session: Session, tenant_id: UUID, client: str | None = None) -> int:
    """Return how many keys of the tenant (and of one client) are neither revoked nor expired."""
    query = select(func.count()).select_from(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.revoked_at.is_(None))
    query = query.where(or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.clock_timestamp()))
    if client is not None:
        query = query.where(ApiKey.client == client)
    return session.scalar(query) or 0


def revoke_key(session: Session, key_id: UUID) -> bool:
    """Revoke a key of the transaction's tenant; say whether there was a live one."""
    return (
        session.scalar(
            update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=func.clock_timestamp()).returning(ApiKey.id)
        )
        is not None
    )


def tenant_by_name(session: Session, name: str) -> Tenant | None:
    """Return the tenant called `name`."""
    return session.scalar(select(Tenant).where(Tenant.name == name))


def tenant(session: Session, tenant_id: UUID) -> Tenant | None:
    """Return a tenant, read once in a transaction."""
    found = session.get(Tenant, tenant_id)
    session.info["tenant", tenant_id] = found  # the session itself holds it only weakly
    return found


def tenant_ids(session: Session) -> Sequence[UUID]:
    """Return the ids of all tenants; for loops that go through them one by one."""
    return session.scalars(select(Tenant.id).order_by(Tenant.created_at)).all()


def insert_tenant(session: Session, *, tenant_id: UUID, name: str, key_wrapped: bytes) -> bool:
    """Insert a tenant; say whether the name was free. `tenant` is no table of tenants: any role that may insert may do it."""
    made = upsert(Tenant).values(id=tenant_id, name=name, key_wrapped=key_wrapped).on_conflict_do_nothing().returning(Tenant.id)
    return session.scalar(made) is not None


def wrapped_key(session: Session, tenant_id: UUID) -> bytes | None:
    """Return the tenant's wrapped key."""
    found = tenant(session, tenant_id)
    return None if found is None else found.key_wrapped


def newest_policy(session: Session, tenant_id: UUID, key: str) -> Policy | None:
    """Return the newest version of a policy."""
    return session.scalar(select(Policy).where(Policy.tenant_id == tenant_id, Policy.key == key).order_by(Policy.version.desc()).limit(1))


def insert_policy(session: Session, columns: dict[str, Any]) -> None:
    """Insert one version of a policy."""
    session.execute(insert(Policy).values(**columns))
