"""Names of the entities that a request is about, while it is open: encrypted in its row, and read by the job alone.

A method and its metrics must know what no answer may say, so a digest is not enough. The key is the request's own, from K_tenant; the row loses what
is sealed when the request closes.
"""

import json
from collections.abc import Sequence
from uuid import UUID

from services.tenants.keys import derive, seal, unseal


def sealed(names: Sequence[str], key: bytes, tenant_id: UUID, request_id: UUID) -> bytes | None:
    """Return the names under a key of this request, derived from K_tenant; None where there are none."""
    if not names:
        return None
    return seal(_own(key, request_id), json.dumps(list(names)).encode(), bound=tenant_id.bytes + request_id.bytes)


def opened(box: bytes | None, key: bytes, tenant_id: UUID, request_id: UUID) -> tuple[str, ...]:
    """Return what `sealed` was given. Raises IntegrityBroken for another tenant or request, or changed bytes."""
    if box is None:
        return ()
    return tuple(json.loads(unseal(_own(key, request_id), box, bound=tenant_id.bytes + request_id.bytes)))


def _own(key: bytes, request_id: UUID) -> bytes:
    return derive(key, f"names:{request_id.hex}")
