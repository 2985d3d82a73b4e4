"""The journal of erasures beside the copies of heads: what must be done again where the database is put back to a state from before them.

The signer writes it, from the log and the ledger, before it lets a head be seen that covers the erasure. An entry names models, versions, requests and
keyed digests of records; no identifier of a person or of a record. It is sealed as a compact JWS of the signer's key.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from jwt import InvalidTokenError
from jwt.api_jws import PyJWS
from sqlalchemy.orm import Session

from services.audit import receipts
from services.audit.notes import SigningKeyPair, VerifierKey
from services.db import erasures
from services.errors import IntegrityBroken

TYPE = "lethe-erasure+jws"
FORM = 1


def entries(session: Session, first: int, last: int) -> list[dict[str, Any]]:
    """Return an entry for each erasure whose first leaf is in [first, last), in order: versions published or confirmed, and versions put away."""
    made: list[dict[str, Any]] = []
    for row in erasures.between(session, first, last):
        if row.type == "model_version.quarantined":
            versions = [str(UUID(one)) for one in row.body["versions"]]
            facts = {"model": row.body["model"], "superseded": versions, "requests": _requests(session, row, [row.object_id], None)}
        else:
            requests = erasures.requests_of(session, row.id, row.body["job"])
            if not requests:  # a training run forgets nothing
                continue
            facts = {name: row.body.get(name) for name in ("job", "model", "version", "manifest")}
            facts |= {"superseded": row.body.get("superseded", []), "requests": _requests(session, row, requests, UUID(row.body["version"]))}
        made.append({"form": FORM, "leaf": row.seq, "tenant": str(row.tenant_id), "what": row.type, **facts})
    return made


def _requests(session: Session, row: Any, requests: Iterable[UUID], version: UUID | None) -> dict[str, Any]:
    """Return what a request would be made of anew, by its id: its clocks and policy, and the keyed digests of its records by dataset."""
    told: dict[str, dict[str, Any]] = {str(one): {"records": {}} for one in requests}
    for event in erasures.facts_of(session, [UUID(one) for one in told]):
        names = ("regulation", "received_at", "due_at") if event.type == "request.received" else ("policy",)
        told[str(event.object_id)] |= {name: event.body.get(name) for name in names}
    if version is not None:
        for held in erasures.ledger_of(session, UUID(row.body["model"]), version):
            if str(held.request_id) in told:
                told[str(held.request_id)]["records"].setdefault(str(held.dataset_id), []).append(bytes(held.record_hmac).hex())
    return told


def seal(entry: Mapping[str, Any], key: SigningKeyPair) -> str:
    """Return an entry as it is kept."""
    return receipts.compact(entry, key, kind=TYPE)


def opened(sealed: str, keys: Iterable[VerifierKey]) -> dict[str, Any]:
    """Return what an entry says. Raises IntegrityBroken where none of the keys sealed it, or it is of another form."""
    jws = PyJWS()
    known = {key.key_id: key for key in keys}
    try:
        header = jws.get_unverified_header(sealed)
        key = known[str(header["kid"])]
        raw = jws.decode(sealed, Ed25519PublicKey.from_public_bytes(key.public), algorithms=["EdDSA"])
        entry = json.loads(raw)
    except (InvalidTokenError, KeyError, ValueError) as error:
        raise IntegrityBroken(detail="an entry of the journal of erasures is not sealed by a key of the log") from error
    if header.get("typ") != TYPE or entry.get("form") != FORM or rfc8785.dumps(entry) != raw:
        raise IntegrityBroken(detail="an entry of the journal of erasures is of another form")
    return entry
