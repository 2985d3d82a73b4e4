"""Keyset pages: a cursor names where a listing stopped, and cannot be moved to another listing, tenant or set of filters."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import rfc8785

from services.errors import InvalidCursor

MAC_BYTES = 32


class Cursors:
    """Makes and reads cursors under the deployment's cursor key."""

    def __init__(self, key_hex: str) -> None:
        self._key = bytes.fromhex(key_hex)

    def make(self, *, tenant: UUID, route: str, filters: Mapping[str, Any], last: tuple[Any, ...] | None) -> str | None:
        """Return the cursor after `last`, or None at the end."""
        if last is None:
            return None
        key = [part.isoformat() if isinstance(part, datetime) else part.hex if isinstance(part, UUID) else part for part in last]
        body = rfc8785.dumps({"t": tenant.hex, "r": route, "f": _digest(filters), "k": key})
        return base64.urlsafe_b64encode(self._mac(body) + body).rstrip(b"=").decode()

    def read(self, cursor: str | None, *, tenant: UUID, route: str, filters: Mapping[str, Any]) -> list[Any] | None:
        """Return the key to continue after. Raises InvalidCursor for what this listing did not issue."""
        if cursor is None:
            return None
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (ValueError, TypeError) as error:
            raise InvalidCursor from error
        mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise InvalidCursor
        found = json.loads(body)
        if (found["t"], found["r"], found["f"]) != (tenant.hex, route, _digest(filters)):
            raise InvalidCursor
        return list(found["k"])

    def key_of(self, cursor: str | None, *, tenant: UUID, route: str, filters: Mapping[str, Any]) -> tuple[datetime, UUID] | None:
        """Return the key of a listing by creation time and id."""
        found = self.read(cursor, tenant=tenant, route=route, filters=filters)
        return None if found is None else (datetime.fromisoformat(found[0]), UUID(found[1]))

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()


def _digest(filters: Mapping[str, Any]) -> str:
    """Return what stands for the filters in a cursor."""
    named = {name: str(value) for name, value in filters.items() if value is not None}
    return hashlib.sha256(rfc8785.dumps(named)).hexdigest()[:32]
