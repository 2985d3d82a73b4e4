"""Tenants and their API keys."""

import hmac
from collections.abc import Collection
from uuid import UUID

from sqlalchemy.orm import Session

from services.clock import Clock, SystemClock, uuid7
from services.db.session import enter_tenant
from services.errors import Conflict, InvalidInput, Unauthenticated
from services.tenants import api_keys, repository
from services.tenants.caller import SCOPES, Caller
from services.tenants.keys import KeyRing, new_tenant_key, wrap

_CLOCK = SystemClock()
_LIVE_KEYS_PER_CLIENT = 2
_NOBODY = bytes(32)


def create_tenant(session: Session, *, name: str, keys: KeyRing, clock: Clock = _CLOCK) -> UUID:
    """Return the id of the tenant called `name`, made with a key of its own where there is none. For the owner role."""
    held = repository.tenant_by_name(session, name)
    if held is not None:
        return held.id
    tenant_id = uuid7(clock)
    if repository.insert_tenant(session, tenant_id=tenant_id, name=name, key_wrapped=wrap(new_tenant_key(), tenant_id, keys.kek)):
        return tenant_id
    return create_tenant(session, name=name, keys=keys, clock=clock)


def issue_key(session: Session, *, tenant_id: UUID, client: str, scopes: Collection[str], pepper: str, clock: Clock = _CLOCK) -> str:
    """Return a new API key of a client. It is shown here once: only its digest is stored.

    Raises:
        InvalidInput: a scope that does not exist, or none.
        Conflict: the client holds two live keys, as many as a rotation needs.
    """
    if not scopes or not SCOPES.issuperset(scopes):
        raise InvalidInput(detail=f"scopes must be some of {', '.join(sorted(SCOPES))}")
    if repository.live_keys(session, tenant_id, client) >= _LIVE_KEYS_PER_CLIENT:
        raise Conflict(detail="the client holds two live keys; revoke one first")
    key = api_keys.new_key()
    repository.insert_key(
        session,
        key_id=uuid7(clock),
        tenant_id=tenant_id,
        client=client,
        prefix=key.prefix,
        digest=api_keys.digest(key, pepper),
        scopes=sorted(scopes),
    )
    return key.text


def authenticate(session: Session, secret: str, pepper: str) -> Caller:
    """Return whose key this is, and enter the tenant for the rest of the transaction.

    An unknown id takes as long as a wrong secret. The key's `last_used_at` is written at most once a minute.

    Raises:
        Unauthenticated: malformed, unknown, wrong, expired or revoked; the caller is not told which.
    """
    key = api_keys.parse(secret)
    if key is None:
        raise Unauthenticated
    row = repository.find_key(session, key.prefix)
    genuine = hmac.compare_digest(api_keys.digest(key, pepper), _NOBODY if row is None else row.hash)
    if row is None or not genuine or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= row.now):
        raise Unauthenticated
    enter_tenant(session, row.tenant_id)
    if row.last_used_at is None or (row.now - row.last_used_at).total_seconds() > 60:
        repository.touch_key(session, row.id)
    return Caller(row.tenant_id, row.client, frozenset(row.scopes))
