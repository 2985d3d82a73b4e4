"""Idempotency-Key: the same call twice is done once, and answered twice with the same words.

Source: draft-ietf-httpapi-idempotency-key-header. Scope of a key: tenant and route. An answer is kept for 90 days.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, text
from sqlalchemy.orm import Session

from services.db.tables import Idempotency
from services.errors import KeyInProgress, KeyReused

KEPT = timedelta(days=90)


_BEGIN = text("""
    SELECT given.locked, i.fingerprint, i.status, i.headers, i.body, i.expires_at < clock_timestamp() AS expired
      FROM (SELECT pg_try_advisory_xact_lock(CAST(:lock AS bigint)) AS locked) given
      LEFT JOIN idempotency i ON i.tenant_id = CAST(:tenant AS uuid) AND i.route = :route AND i.key = :key
    """)
"""The look is as old as the statement: a call that committed between it and the lock is found by the unique key, and the transaction runs again."""


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the first call was answered."""

    status: int
    headers: Mapping[str, Any]
    body: Mapping[str, Any]


def begin(session: Session, *, tenant_id: UUID, route: str, key: str, fingerprint: bytes) -> StoredAnswer | None:
    """Return the stored answer of this call, or None if it is the first; then the key is locked to the end of the transaction.

    Args:
        session: in a transaction of the tenant.
        tenant_id: the caller's.
        route: method and path template.
        key: the header's value.
        fingerprint: digest of the canonical body and of what else changes the effect.

    Raises:
        KeyInProgress: the first call with this key has not ended.
        KeyReused: the first call had another body.
    """
    scope = hashlib.sha256("\0".join((str(tenant_id), route, key)).encode()).digest()
    lock = int.from_bytes(scope[:8], "big", signed=True)
    row = session.execute(_BEGIN, {"lock": lock, "tenant": tenant_id, "route": route, "key": key}).one()
    if not row.locked:
        raise KeyInProgress
    _, known, status, headers, body, expired = row
    if known is None:
        return None
    if expired:
        session.execute(delete(Idempotency).where(Idempotency.tenant_id == tenant_id, Idempotency.route == route, Idempotency.key == key))
        return None
    if known != fingerprint:
        raise KeyReused
    return StoredAnswer(status, headers, body)


def store(
    session: Session,
    *,
    tenant_id: UUID,
    route: str,
    key: str,
    fingerprint: bytes,
    status: int,
    headers: Mapping[str, Any],
    body: Mapping[str, Any],
) -> None:
    """Store the answer in the transaction of its effect, so that both are there or neither."""
    session.execute(
        insert(Idempotency).values(
            tenant_id=tenant_id,
            route=route,
            key=key,
            fingerprint=fingerprint,
            status=status,
            headers=dict(headers),
            body=dict(body),
            expires_at=func.clock_timestamp() + KEPT,
        )
    )
