"""Bodies of the audit log."""

from pydantic import ConfigDict, Field

from api.schemas.base import Moment, Out
from api.schemas.ids import Digest


class ProofOut(Out):
    """The path from a leaf to a root: `hashes` in base64, the leaf's sibling first (RFC 6962). The leaf hashes the commitment's 32 bytes."""

    seq: int
    size: int
    commitment: Digest
    leaf_hash: str
    hashes: list[str]
    root: str


class ConsistencyOut(Out):
    """That the tree of `to` leaves begins with that of `from`: `hashes` in base64 (RFC 6962)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    first: int = Field(alias="from")
    to: int
    hashes: list[str]
    from_root: str
    to_root: str


class WebKeyOut(Out):
    """A public key (RFC 8037), with its validity and the form that verifiers of the log take.

    `revoked_at_leaf` is the leaf by which the key was revoked: what was included later is not its to sign.
    """

    kty: str
    crv: str
    x: str
    kid: str
    use: str
    alg: str
    vkey: str
    valid_from: Moment
    valid_to: Moment | None
    revoked_at_leaf: int | None


class JwksOut(Out):
    """Every key that reports and heads were signed with, oldest first."""

    keys: list[WebKeyOut]
