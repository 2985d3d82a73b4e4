"""What the signer does, turn by turn: leaves, heads, reports, and the log of its own keys."""

import json
import os
from collections.abc import Mapping
from typing import Any

import rfc8785
from sqlalchemy.orm import Session

from services.audit import evidence, log, sequencer, tree
from services.audit.evidence import Opening
from services.audit.notes import SigningKeyPair, VerifierKey
from services.db import erasures, leaves, revocations
from services.db.tables import SigningKey, TreeHead
from services.errors import KeyRefused, LogTampered

NAME = "signer"
REPORTS = 32


def known_keys(session: Session) -> list[VerifierKey]:
    """Return every key that the log knows, oldest first."""
    return [VerifierKey(row.name, bytes(row.public_key)) for row in leaves.keys(session)]


def adopt(session: Session, key: SigningKeyPair, previous: SigningKeyPair | None) -> None:
    """Write the key into the log where it is not there yet: the first one as it is, a later one only with a signature of the one before it.

    Raises KeyRefused: another key is current, and nothing of it vouches for this one.
    """
    keys = list(leaves.keys(session))
    current = next((row for row in keys if row.valid_to is None), None)
    if current is None and keys:
        raise KeyRefused(detail=f"{keys[-1].key_id} was revoked; `python -m control.signer revoke {keys[-1].key_id} --fresh-key` takes this key")
    if current is not None and bytes(current.public_key) == key.public.public and current.name == key.name:
        return
    if current is not None and bytes(current.public_key) == key.public.public and previous is None and erasures.epoch(session) is not None:
        previous = SigningKeyPair(current.name, key.seed)  # the same key under the log's new name
    if any(row.key_id == key.public.key_id for row in keys):
        raise KeyRefused(detail=f"the key {key.public.key_id} was replaced by {current.key_id if current else 'none'}")
    body: dict[str, Any] = {"key": key.public.text, "replaces": None, "endorsement": None}
    if current is not None:
        if previous is None or previous.public.public != bytes(current.public_key):
            raise KeyRefused(detail=f"the current key is {current.key_id}; give it as LETHE_KEYS__SIGNING_PREVIOUS to replace it")
        body |= {"replaces": current.key_id, "endorsement": previous.sign(endorsed(key.public)).hex()}
        leaves.end_key(session, current.key_id)
    add_key(session, key.public, body)


def check_current(session: Session, key: SigningKeyPair) -> None:
    """Raise KeyRefused where the key is not the log's current one any more: it was revoked, or replaced by another signer."""
    current = next((row for row in leaves.keys(session) if row.valid_to is None), None)
    if current is None or current.key_id != key.public.key_id:
        raise KeyRefused(detail=f"the key {key.public.key_id} is not current any more; current is {current.key_id if current else 'none'}")


def endorsed(key: VerifierKey) -> bytes:
    """Return what an old key signs to let a new one follow it."""
    return f"lethe key endorsement v1\n{key.text}\n".encode()


def check_name(session: Session, name: str) -> None:
    """Raise KeyRefused where the log was restored and goes on under another name than this."""
    epoch = erasures.epoch(session)
    if epoch is not None and epoch.origin != name:
        raise KeyRefused(detail=f"the log was restored and goes on as {epoch.origin}; set LETHE_SIGNER__ORIGIN to it")


def tell_epoch(session: Session) -> None:
    """Write into the log that it goes on after a restore, naming the head of before; once for an epoch."""
    epoch = erasures.epoch(session)
    if epoch is None or epoch.told_event is not None:
        return
    body = {"origin": epoch.origin, "epoch": epoch.number, "after": epoch.after_note, "lost_from": epoch.held_size, "lost_to": epoch.after_size,
            "replayed": epoch.replayed}  # fmt: skip
    event_id = leaves.add_event(session, "log.restored", log.commitment("log.restored", body, bytes(16)))
    erasures.told(session, epoch.number, event_id)


def add_key(session: Session, key: VerifierKey, body: Mapping[str, Any]) -> None:
    """Write a key into the log, which becomes the current one; `body` says which one it replaces and whose word it has."""
    event_type, salt = "key.rotated" if body["replaces"] else "key.added", os.urandom(16)
    event_id = leaves.add_event(session, event_type, log.commitment(event_type, body, salt))
    leaves.add_key(
        session, key_id=key.key_id, name=key.name, public_key=key.public, event_id=event_id, salt=salt, body=dict(body)
    )  # fmt: skip


def sign_reports(session: Session, head: TreeHead, key: SigningKeyPair) -> int:
    """Sign the reports whose leaf is below the head, and let their requests go on; return how many.

    Raises LogTampered: a stored statement is not the one whose digest is in the log; nothing is signed any more.
    """
    rows = leaves.unsigned_reports(session, head.size, REPORTS)
    for row in rows:
        payload = rfc8785.dumps(row.statement)
        proof = proof_of(session, head, row, payload)
        leaves.sign_report(session, row, json.dumps(evidence.envelope(payload, key)), proof)
    return len(rows)


def proof_of(session: Session, head: TreeHead, row: Any, payload: bytes) -> str:
    """Return the proof that a report's leaf, and those of its plans and runs, are below the head. Raises LogTampered."""
    report = Opening(row.seq, row.type, row.body, bytes(row.salt), sequencer.inclusion(session, row.seq, head.size))
    _check(row, payload, report, session)
    others = [
        Opening(one.seq, one.type, one.body, bytes(one.salt), sequencer.inclusion(session, one.seq, head.size))
        for one in leaves.opened(session, [seq for seq in named_leaves(row.statement) if seq < head.size])
    ]
    return evidence.tlog_proof(report, others, cosigned(session, head))


def _check(row: Any, payload: bytes, report: Opening, session: Session) -> None:
    """Raise LogTampered unless statement, digest, event and leaf are of one piece."""
    digest = evidence.digest(payload)
    leaf = tree.leaf_hash(log.commitment(report.type, report.body, report.salt))
    if not row.digest == report.body.get("digest") == digest or leaves.nodes(session, [(0, report.seq)]).get((0, report.seq)) != leaf:
        raise LogTampered(first=report.seq, last=report.seq + 1, count=1)


def cosigned(session: Session, head: TreeHead) -> str:
    """Return the note of a head with the lines of its witnesses."""
    return head.note + "".join(f"{line}\n" for line in leaves.cosignatures(session, head.size))


def named_leaves(statement: Mapping[str, Any]) -> list[int]:
    """Return the leaves that a statement names: plan and start of each run."""
    found: set[int] = set()
    for run in statement.get("predicate", {}).get("verification", []):
        for part in ("plan", "run"):
            index = (run.get(part) or {}).get("leaf_index")
            if isinstance(index, int):
                found.add(index)
    return sorted(found)


def web_keys(session: Session) -> list[dict[str, Any]]:
    """Return every key of the log as a JSON Web Key (RFC 8037), oldest first, with the form that verifiers of the log take.

    `revoked_at_leaf` is the number of the leaf by which a key was revoked: nothing that is included later is its to sign.
    """
    revoked = revocations.revoked(session)
    return [{**web_key(row), "revoked_at_leaf": revoked.get(row.key_id)} for row in leaves.keys(session)]


def web_key(row: SigningKey) -> dict[str, Any]:
    """Return a key as a JSON Web Key (RFC 8037), with the form that verifiers of the log take."""
    key = VerifierKey(row.name, bytes(row.public_key))
    return {"kty": "OKP", "crv": "Ed25519", "x": evidence.base64url(key.public), "kid": row.key_id, "use": "sig", "alg": "EdDSA",
            "vkey": key.text, "valid_from": row.valid_from, "valid_to": row.valid_to}  # fmt: skip
