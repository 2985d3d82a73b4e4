"""Heads, proofs and keys of the audit log over HTTP, checked with the offline verifier's own arithmetic."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.app import create_app
from cli import verifier
from models_store.memory import MemoryStore
from services.audit import log
from services.db.session import unit_of_work
from services.settings import Settings
from services.tenants.caller import SCOPES
from services.tenants.service import issue_key
from tests.integration.conftest import KEYS, Ledger
from tests.integration.log_world import key, settle, signer_over


@dataclass
class Desk:
    """A caller of the gateway over one log."""

    ledger: Ledger
    http: TestClient
    tenant: Any
    secret: str

    def get(self, path: str) -> Any:
        return self.http.get(path, headers={"Authorization": f"Bearer {self.secret}"})

    def write(self, count: int) -> None:
        with unit_of_work(self.ledger.engine("lethe_gateway"), tenant=self.tenant) as session:
            for number in range(count):
                log.record(session, tenant_id=self.tenant, object_id=self.tenant, type="request.received", body={"n": number})


@pytest.fixture
def desk(ledger: Ledger) -> Iterator[Desk]:
    settings = Settings.model_validate(
        {"embedded": True, "database": {"url": SecretStr(ledger.url("lethe_gateway"))},
         "keys": {"encryption": KEYS.kek, "pepper": KEYS.pepper, "cursor": "33" * 32}}
    )  # fmt: skip
    ours = ledger.tenant("ours")
    with unit_of_work(ledger.engine("lethe_owner"), tenant=ours) as session:
        secret = issue_key(session, tenant_id=ours, client="desk", scopes=SCOPES, pepper=KEYS.pepper)
    with TestClient(create_app(settings, store=MemoryStore()), raise_server_exceptions=False) as http:
        yield Desk(ledger, http, ours, secret)


def raw(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


def test_a_log_of_one_head_after_another_is_proved_over_http(desk: Desk) -> None:
    early = desk.get("/v1/audit/head")
    assert (early.status_code, early.json()["code"]) == (404, "log-head-not-ready")
    assert desk.http.get("/.well-known/jwks.json").json() == {"keys": []}
    signer = signer_over(desk.ledger)
    desk.write(3)
    settle(signer)
    first = desk.get("/v1/audit/head")
    assert first.headers["content-type"] == "text/plain; charset=utf-8"
    desk.write(6)
    settle(signer)

    (known,) = desk.http.get("/.well-known/jwks.json").json()["keys"]
    assert (known["vkey"], known["kid"], known["crv"]) == (key().public.text, key().public.key_id, "Ed25519")
    assert base64.urlsafe_b64decode(known["x"] + "=") == key().public.public
    keys = verifier.keys_of(known["vkey"], verifier.NOTE_KEY, "key")
    old, new = verifier.note_of(first.text, "first"), verifier.note_of(desk.get("/v1/audit/head").text, "second")
    assert old.signed_by(keys) == new.signed_by(keys) == "lethe.test/log"
    assert old.size < new.size

    told = desk.get(f"/v1/audit/consistency?from={old.size}&to={new.size}").json()
    assert verifier.consistent(old.size, new.size, raw(told["hashes"]), old.root, new.root)
    assert raw([told["from_root"], told["to_root"]]) == [old.root, new.root]
    assert desk.get(f"/v1/audit/consistency?from={old.size}").json() == told
    proof = desk.get(f"/v1/audit/proof?seq={new.size - 1}").json()
    commitment = bytes.fromhex(proof["commitment"].removeprefix("sha256:"))
    assert verifier.included(verifier.leaf_hash(commitment), new.size - 1, new.size, raw(proof["hashes"]), new.root)
    assert proof["size"] == new.size


def test_a_leaf_of_another_tenant_and_numbers_beyond_the_log_are_refused(desk: Desk) -> None:
    desk.write(2)
    settle(signer_over(desk.ledger))
    size = verifier.note_of(desk.get("/v1/audit/head").text, "head").size
    assert desk.get("/v1/audit/proof?seq=0").status_code == 404  # an event of another tenant, or of the log's key
    for path in (
        f"/v1/audit/proof?seq={size}", f"/v1/audit/proof?seq=1&size={size + 1}", "/v1/audit/proof?seq=-1", "/v1/audit/proof?seq=x", "/v1/audit/proof",
        "/v1/audit/proof?seq=1&size=0", f"/v1/audit/proof?seq={2**70}", f"/v1/audit/consistency?from={size + 1}", "/v1/audit/consistency",
        f"/v1/audit/consistency?from=1&to={size + 1}", "/v1/audit/consistency?from=2&to=1", "/v1/audit/consistency?from=-1&to=1",
    ):  # fmt: skip
        refused = desk.get(path)
        assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json"), path
        assert refused.json()["code"] == "validation-error"
    assert desk.http.get("/v1/audit/head").status_code == 401
    assert desk.get("/v1/audit/consistency?from=0&to=1").json()["hashes"] == []
