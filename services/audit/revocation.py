"""After a key was compromised: its revocation in the log, a fresh key without its word, and reports signed anew.

What counts is the time of inclusion: a report whose leaf came before the revocation stands, once a later key has signed a head above it.
"""

import os

import rfc8785
from sqlalchemy.orm import Session

from services.audit import evidence, log, signer
from services.audit.notes import SigningKeyPair
from services.db import leaves, revocations
from services.db.tables import TreeHead
from services.errors import InvalidInput, KeyRefused


def revoke(session: Session, key_id: str, *, reason: str) -> bool:
    """Revoke a key: an event of the log, and the end of its validity where it has none. Return whether it was not revoked before.

    Raises InvalidInput: the log knows no such key.
    """
    known = [row.key_id for row in leaves.keys(session)]
    if key_id not in known:
        raise InvalidInput(detail=f"the log knows no key {key_id}; it knows {', '.join(known) or 'none'}")
    if key_id in revocations.revoked(session):
        return False
    body, salt = {"key": key_id, "reason": reason}, os.urandom(16)
    event_id = leaves.add_event(session, "key.revoked", log.commitment("key.revoked", body, salt))
    leaves.end_key(session, key_id)
    revocations.add(session, key_id=key_id, event_id=event_id, salt=salt, body=body)
    return True


def start_afresh(session: Session, key: SigningKeyPair) -> None:
    """Make a key the log's, on the operator's word alone: the one before it was revoked, so its signature would prove nothing.

    Raises KeyRefused: a key is current, this one is known already, or the last one was not revoked.
    """
    keys = list(leaves.keys(session))
    if any(row.valid_to is None for row in keys):
        raise KeyRefused(detail="the log has a current key; it is replaced with LETHE_KEYS__SIGNING_PREVIOUS, or revoked first")
    if not keys or keys[-1].key_id not in revocations.revoked(session) or any(row.key_id == key.public.key_id for row in keys):
        raise KeyRefused(detail="a fresh key follows a revoked one, and is none that the log knows")
    signer.add_key(session, key.public, {"key": key.public.text, "replaces": keys[-1].key_id, "endorsement": None})


def renew(session: Session, head: TreeHead, key: SigningKeyPair) -> int:
    """Sign anew the reports below the head that a revoked key signed before it was; return how many.

    Raises LogTampered: a stored statement is not the one whose digest is in the log.
    """
    rows = revocations.stale_reports(session, head.size, signer.REPORTS)
    for row in rows:
        payload = rfc8785.dumps(row.statement)
        proof = signer.proof_of(session, head, row, payload)
        fresh = evidence.envelope(payload, key)
        envelope = {**fresh, "signatures": [*fresh["signatures"], *row.envelope["signatures"]]}
        revocations.renew(session, report_id=row.id, tenant_id=row.tenant_id, key_id=key.public.key_id, envelope=envelope, tlog_proof=proof)
    return len(rows)
