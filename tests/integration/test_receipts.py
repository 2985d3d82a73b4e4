"""Signed receipts on a real server: who signs them, when, and that they hold against the key set."""

import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from jwt import InvalidSignatureError, PyJWK
from jwt.api_jws import PyJWS
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.audit import log, sequencer, signer, tree
from services.clock import SystemClock, uuid7
from services.db import leaves
from services.db.health import signer_state
from services.db.session import unit_of_work
from services.requests import repository as requests
from tests.integration.conftest import Ledger
from tests.integration.log_world import OTHER, SEED, Kept, settle, signer_over

AT = datetime(2026, 5, 1, 9, tzinfo=UTC).isoformat()


def receive(ledger: Ledger, tenant: UUID) -> UUID:
    """Write the event of a receipt, as intake does, and return the request's id."""
    request = uuid7(SystemClock())
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        log.record(session, tenant_id=tenant, object_id=request, type="request.received", body={"records": 3, "received_at": AT})
        log.record(session, tenant_id=tenant, object_id=request, type="request.approved", body={"by": "policy"})
    return request


def shown(ledger: Ledger, tenant: UUID, request: UUID) -> tuple[int, str, int | None, str | None]:
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        return requests.receipts(session, tenant, [request])[request]


def key_set(ledger: Ledger) -> list[dict[str, Any]]:
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        return signer.web_keys(session)


def opened(keys: list[dict[str, Any]], jws: str) -> dict[str, Any]:
    """Return what a receipt says, once its signature was checked with the key of the published set that its header names."""
    published = {one["kid"]: one for one in keys}
    kid = json.loads(base64.urlsafe_b64decode(jws.split(".", maxsplit=1)[0] + "=="))["kid"]
    key = PyJWK({name: published[kid][name] for name in ("kty", "crv", "x")}, algorithm="EdDSA")
    return json.loads(PyJWS().decode(jws, key, algorithms=["EdDSA"]))


def test_a_receipt_is_signed_with_the_next_head_and_verifies_against_the_key_set(ledger: Ledger):
    tenant = ledger.default_tenant()
    request = receive(ledger, tenant)
    assert shown(ledger, tenant, request)[3] is None
    settle(signer_over(ledger))
    event, commitment, seq, jws = shown(ledger, tenant, request)
    assert jws is not None
    assert seq is not None
    facts = opened(key_set(ledger), jws)
    assert (facts["request"], facts["event"], facts["leaf_seq"]) == (f"dr_{request.hex}", f"evt_{event:032x}", seq)
    assert (facts["commitment"], facts["received_at"]) == (f"sha256:{commitment}", AT)
    size, root = facts["head"]["size"], base64.b64decode(facts["head"]["root"])
    with unit_of_work(ledger.engine("lethe_signer"), tenant=None) as session:
        head = leaves.head_of(session, size)
        assert head is not None
        assert head.root == root
        assert tree.verify_inclusion(tree.leaf_hash(bytes.fromhex(commitment)), seq, size, sequencer.inclusion(session, seq, size), root)


def test_any_changed_byte_of_a_receipt_is_seen(ledger: Ledger):
    tenant = ledger.default_tenant()
    request = receive(ledger, tenant)
    settle(signer_over(ledger))
    jws = shown(ledger, tenant, request)[3]
    assert jws is not None
    keys = key_set(ledger)
    head, payload, signature = jws.split(".")
    raw = bytearray(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    for at in range(len(raw)):
        bent = bytes(raw[:at]) + bytes([raw[at] ^ 1]) + bytes(raw[at + 1 :])
        text_of = base64.urlsafe_b64encode(bent).rstrip(b"=").decode()
        with pytest.raises(InvalidSignatureError):
            opened(keys, f"{head}.{text_of}.{signature}")
    with pytest.raises(InvalidSignatureError):
        opened(keys, f"{head}.{payload}.{'A' * len(signature)}")


def test_a_receipt_stands_through_restarts_and_a_later_key(ledger: Ledger):
    tenant, copies = ledger.default_tenant(), Kept()
    first = receive(ledger, tenant)
    settle(signer_over(ledger, copies))
    before = shown(ledger, tenant, first)[3]
    second = receive(ledger, tenant)
    settle(signer_over(ledger, copies, seed=OTHER, previous=SEED))
    assert shown(ledger, tenant, first)[3] == before
    assert before is not None
    later = shown(ledger, tenant, second)[3]
    assert later is not None
    keys = key_set(ledger)
    assert opened(keys, before)["head"]["size"] < opened(keys, later)["head"]["size"]


def test_a_receipt_makes_a_head_due_before_other_leaves_would(ledger: Ledger):
    tenant = ledger.default_tenant()
    made = signer_over(ledger, head_leaves=1000)
    settle(made)
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        log.record(session, tenant_id=tenant, object_id=tenant, type="model.created", body={})
    quick = signer_over(ledger, made.copies, head_leaves=1000, receipt_s=0.001)
    settle(quick)
    with unit_of_work(ledger.engine("lethe_signer"), tenant=None) as session:
        head = leaves.newest_head(session)
        assert head is not None
        assert head.size < leaves.size(session)
    request = receive(ledger, tenant)
    settle(quick)
    assert shown(ledger, tenant, request)[3] is not None


def test_a_payload_that_is_not_what_was_committed_to_stops_the_signer(ledger: Ledger):
    tenant = ledger.default_tenant()
    request = receive(ledger, tenant)
    with unit_of_work(ledger.engine("superuser"), tenant=None) as session:
        session.execute(text("UPDATE audit_payload SET body = body || '{\"received_at\": \"2020-01-01T00:00:00+00:00\"}' WHERE body ? 'received_at'"))
    settle(signer_over(ledger))
    assert shown(ledger, tenant, request)[3] is None
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        assert signer_state(session) == "log-tampered"


@pytest.mark.parametrize("role", ["lethe_gateway", "lethe_worker", "lethe_control", "lethe_owner"])
def test_nobody_but_the_signer_writes_a_receipt_and_nobody_changes_one(ledger: Ledger, role: str):
    tenant = ledger.default_tenant()
    receive(ledger, tenant)
    settle(signer_over(ledger))
    wanted = "immutable" if role == "lethe_owner" else "permission denied"
    statements = ["UPDATE receipt SET jws = 'x'", "DELETE FROM receipt"]
    if role != "lethe_owner":  # it owns the table: what it could insert names no leaf that the signer has not signed already
        statements.append(f"INSERT INTO receipt (event_id, tenant_id, leaf_seq, head_size, jws) VALUES (1, '{tenant}', 99, 1, 'x')")
    for statement in statements:
        with pytest.raises(DBAPIError, match=wanted), unit_of_work(ledger.engine(role), tenant=tenant) as session:
            session.execute(text(statement))


def test_a_tenant_sees_its_own_receipts_alone(ledger: Ledger):
    ours, theirs = ledger.default_tenant(), ledger.tenant("theirs")
    for tenant in (ours, theirs):
        receive(ledger, tenant)
    settle(signer_over(ledger))
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=ours) as session:
        assert session.scalars(text("SELECT DISTINCT tenant_id FROM receipt")).all() == [ours]
