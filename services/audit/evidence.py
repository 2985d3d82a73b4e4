"""What makes a report evidence: the DSSE envelope over its canonical JSON, and the proof that its digest is a leaf of the log.

Source: DSSE v1.0.2 (Ed25519 over the pre-authentication encoding), in-toto Statement v1, C2SP tlog-proof v1.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rfc8785

from services.audit.notes import SigningKeyPair

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PROOF_HEAD = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class Opening:
    """What a leaf commits to, with the number of the leaf and its path to the root."""

    seq: int
    type: str
    body: Mapping[str, Any]
    salt: bytes
    path: Sequence[bytes]

    @property
    def facts(self) -> dict[str, Any]:
        """The three members whose canonical JSON the commitment hashes."""
        return {"type": self.type, "body": dict(self.body), "salt": self.salt.hex()}


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: lengths in decimal, so that no two pairs of type and payload have the same."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, key: SigningKeyPair) -> dict[str, Any]:
    """Return the DSSE envelope of a payload."""
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": _base64(payload),
        "signatures": [{"keyid": key.public.key_id, "sig": _base64(signature)}],
    }


def tlog_proof(report: Opening, others: Sequence[Opening], note: str) -> str:
    """Return the proof as text: the opening of the report's leaf and of `others` (plan and run), the report's path, the checkpoint.

    All paths lead to the root of the checkpoint `note`.
    """
    extra = {
        "leaf": report.facts,
        "leaves": [{"index": one.seq, **one.facts, "path": [_base64(node) for node in one.path]} for one in others],
    }
    lines = [PROOF_HEAD, f"extra {_base64(rfc8785.dumps(extra))}", f"index {report.seq}", *(_base64(node) for node in report.path), "", note]
    return "\n".join(lines)


def document(envelope_body: Mapping[str, Any], proof: str) -> bytes:
    """Return the report as the file that is handed out: canonical JSON."""
    return rfc8785.dumps({"envelope": dict(envelope_body), "tlog_proof": proof})


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def base64url(raw: bytes) -> str:
    """Return bytes as base64url without padding, as RFC 7515 writes them."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def digest(payload: bytes) -> str:
    """Return the SHA-256 of a payload, which is what the log holds of a report, in hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()
