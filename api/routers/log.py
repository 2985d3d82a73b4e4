"""The audit log: signed heads, proofs of inclusion and of consistency, and the keys that reports and heads are signed with."""

import base64
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from api.dependencies import AuditRead
from api.schemas.log import ConsistencyOut, JwksOut, ProofOut
from services.audit import repository, sequencer, signer, tree
from services.db import leaves
from services.db.session import async_unit_of_work
from services.db.tables import TreeHead
from services.errors import HeadNotReady, InvalidInput, NotFound

router = APIRouter(tags=["audit"])
Count = Annotated[int, Query(ge=0, lt=2**53)]
Size = Annotated[int | None, Query(ge=1, lt=2**53)]


@router.get("/v1/audit/head", response_model=None)
async def newest_head(ledger: AuditRead) -> Response:
    """Return the newest signed head of the log, a checkpoint in the form of a C2SP signed note."""

    def work(session: Session) -> str:
        return signer.cosigned(session, _newest(session))

    return Response(await ledger(work), media_type="text/plain; charset=utf-8")


@router.get("/v1/audit/proof", response_model=ProofOut)
async def proof(ledger: AuditRead, seq: Count, size: Size = None) -> ProofOut:
    """Return the path from leaf `seq`, one of yours, to the root of the first `size` leaves (by default those of the newest head)."""

    def work(session: Session) -> ProofOut:
        total = size if size is not None else _newest(session).size
        _within(session, total, "size")
        if seq >= total:
            raise InvalidInput(detail=f"seq is not below size, which is {total}")
        commitment = repository.own_leaf(session, seq)
        if commitment is None:
            raise NotFound
        path = sequencer.inclusion(session, seq, total)
        root = sequencer.root(session, total)
        return ProofOut(
            seq=seq, size=total, commitment=f"sha256:{commitment.hex()}", leaf_hash=_text(tree.leaf_hash(commitment)), hashes=_texts(path), root=_text(root)
        )  # fmt: skip

    return await ledger(work)


@router.get("/v1/audit/consistency", response_model=ConsistencyOut)
async def consistency(ledger: AuditRead, first: Annotated[int, Query(alias="from", ge=0, lt=2**53)], to: Size = None) -> ConsistencyOut:
    """Return the proof that the first `to` leaves (by default those of the newest head) begin with the first `from`."""

    def work(session: Session) -> ConsistencyOut:
        total = to if to is not None else _newest(session).size
        _within(session, total, "to")
        if first > total:
            raise InvalidInput(detail=f"from is above to, which is {total}")
        roots = [_text(sequencer.root(session, count)) for count in (first, total)]
        hashes = _texts(sequencer.consistency(session, first, total))
        return ConsistencyOut.model_validate({"from": first, "to": total, "hashes": hashes, "from_root": roots[0], "to_root": roots[1]})

    return await ledger(work)


@router.get("/.well-known/jwks.json", response_model=JwksOut)
async def jwks(request: Request) -> JwksOut:
    """Return the public keys of reports and heads, oldest first. `vkey` is the line that `lethe verify --log-key` takes; get it from two places."""
    async with async_unit_of_work(request.app.state.door.engine, tenant=None) as session:
        return await session.run_sync(lambda held: JwksOut.model_validate({"keys": signer.web_keys(held)}))


def _newest(session: Session) -> TreeHead:
    found = leaves.newest_head(session)
    if found is None:
        raise HeadNotReady
    return found


def _within(session: Session, total: int, name: str) -> None:
    """Raise InvalidInput where the log has fewer leaves."""
    held = leaves.size(session)
    if total > held:
        raise InvalidInput(detail=f"{name} is above the log's {held} leaves")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _texts(hashes: Sequence[bytes]) -> list[str]:
    return [_text(one) for one in hashes]
