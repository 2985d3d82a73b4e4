"""Signed receipts: a compact JWS that says when a request was received and where the log holds it.

Source: RFC 7515 (JWS, compact form), RFC 8037 (EdDSA with Ed25519). The key is found by `kid` in the JSON Web Key set.
"""

import base64
from collections.abc import Mapping
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.api_jws import PyJWS
from sqlalchemy.orm import Session

from services.audit import log
from services.audit.notes import SigningKeyPair, parse_checkpoint
from services.db import receipts
from services.db.tables import TreeHead
from services.errors import LogTampered

TYPE = "lethe-receipt+jws"
BATCH = 256
_JWS = PyJWS()


def sign(session: Session, head: TreeHead, key: SigningKeyPair) -> int:
    """Sign the receipts whose leaf is below the head and that are not signed yet, at most BATCH of them; return how many.

    Raises LogTampered: a payload is not what its event committed to.
    """
    rows = receipts.waiting(session, head.size, BATCH)
    for row in rows:
        if log.commitment(row.type, row.body, bytes(row.salt)) != bytes(row.commitment):
            raise LogTampered(first=row.seq, last=row.seq + 1, count=1)
        jws = compact(facts(row, head), key)
        receipts.add(session, event_id=row.id, tenant_id=row.tenant_id, leaf_seq=row.seq, head_size=head.size, jws=jws)
    return len(rows)


def facts(row: Any, head: TreeHead) -> dict[str, Any]:
    """Return what a receipt says: ids as clients know them, the commitment, its leaf, and the head of the log that covers it."""
    return {
        "request": f"dr_{row.object_id.hex}",
        "event": f"evt_{row.id:032x}",
        "commitment": f"sha256:{bytes(row.commitment).hex()}",
        "leaf_seq": row.seq,
        "head": {"origin": parse_checkpoint(head.note).origin, "size": head.size, "root": base64.b64encode(head.root).decode()},
        "received_at": row.body.get("received_at"),
    }


def compact(payload: Mapping[str, Any], key: SigningKeyPair, *, kind: str = TYPE) -> str:
    """Return the payload's canonical JSON as a compact JWS with algorithm EdDSA; `kind` is its type."""
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    return _JWS.encode(rfc8785.dumps(dict(payload)), private, algorithm="EdDSA", headers={"kid": key.public.key_id, "typ": kind})
