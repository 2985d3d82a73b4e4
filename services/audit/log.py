"""The audit log: one line for each state change, written in its transaction; type and commitment here, the body in an erasable table."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy.orm import Session

from services.audit import repository

_SALT_BYTES = 16


def commitment(event_type: str, body: Mapping[str, Any], salt: bytes) -> bytes:
    """Return what the log keeps of an event: SHA-256 over the canonical JSON of type, body and salt (hex).

    Source: RFC 8785. With the salt gone the body cannot be guessed from it.
    """
    return hashlib.sha256(rfc8785.dumps({"type": event_type, "body": dict(body), "salt": salt.hex()})).digest()


def record(session: Session, *, tenant_id: UUID, object_id: UUID, type: str, body: Mapping[str, Any]) -> int:  # noqa: A002  the column's name
    """Write an event about a request, job or version and return its id.

    Args:
        session: in the transaction of the change; the object's row is locked, so that its events come in the order of what happened.
        tenant_id: the transaction's tenant.
        object_id: what the event is about.
        type: past tense, such as `request.approved`.
        body: JSON without personal data; identifiers are keyed digests. Integers up to 2**53, other numbers as decimal strings.
    """
    return record_all(session, tenant_id=tenant_id, object_id=object_id, events=[(type, body)])[0][0]


def record_all(session: Session, *, tenant_id: UUID, object_id: UUID, events: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[int, bytes]]:
    """Write events about one object, given as (type, body), in their order; return id and commitment of each. Otherwise as `record`."""
    made: list[repository.NewEvent] = []
    for event_type, body in events:
        salt = os.urandom(_SALT_BYTES)
        made.append(repository.NewEvent(event_type, commitment(event_type, body, salt), salt, body))
    numbers = repository.insert_events(session, tenant_id=tenant_id, object_id=object_id, events=made)
    return [(number, event.commitment) for number, event in zip(numbers, made, strict=True)]
