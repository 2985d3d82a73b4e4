"""Who gets in, what they see, and what they may take away: keys, scopes and tenants over every path of the OpenAPI document; downloads."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from services.tenants.caller import SCOPES
from services.tenants.policies import seed_policies
from tests.integration.api_world import CLOCK, Gateway, gateways, populate, safetensors, until
from tests.integration.log_world import signer_over

FILE = "models/reader/versions/1/files/model.safetensors"
WEIGHTS = safetensors({"0.weight": [8, 2], "0.bias": [8]})
PERSON = {"kind": "subject", "identifiers": [{"type": "customer_id", "value": "p0"}]}


@pytest.fixture(scope="module")
def gateway(postgres: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateways(postgres, object_store_server, tmp_path_factory.mktemp("api")) as made:
        populate(made)
        yield made


@pytest.fixture(scope="module")
def places(gateway: Gateway) -> dict[str, str]:
    """Values for the parameters of every path: things that exist in the first tenant."""
    request = gateway.ask(PERSON).json()
    job = gateway.call("POST", "models/reader/training-runs", {"dataset": "digits", "dataset_version": 1}).json()
    assert gateway.call("PUT", "models/reader/aliases/live", {"version": 1}, If_None_Match="*").status_code == 200
    nobody = {"type": "customer_id", "value": "nobody"}
    hold = gateway.call("POST", "legal-holds", {"scope": "subject", "identifier": nobody, "reason": "x"}).json()
    return {
        "request_id": request["id"],
        "target_id": request["targets"][0]["id"],
        "job_id": job["id"],
        "model": gateway.call("GET", "models/reader").json()["id"],
        "dataset": gateway.call("GET", "datasets/digits").json()["id"],
        "number": "1",
        "revision": "1",
        "alias": "live",
        "path": "model.safetensors",
        "name": "retrain",
        "hold_id": hold["id"],
        "pause_id": f"pause_{'1' * 32}",
    }


BODIES: dict[str, Any] = {
    "/v1/deletion-requests": {"scope": PERSON},
    "/v1/deletion-requests/{request_id}/decision": {"outcome": "approve"},
    "/v1/deletion-requests/{request_id}/cancellation": {"by": "subject"},
    "/v1/deletion-requests/{request_id}/extension": {"reason": "x"},
    "/v1/deletion-requests/{request_id}/pauses": {"reason": "x"},
    "/v1/deletion-requests/{request_id}/recipients": {
        "model": "reader",
        "version": 1,
        "recipient": "Acme",
        "channel": "letter",
        "sent_at": "2026-01-01T00:00:00Z",
    },
    "/v1/legal-holds": {"scope": "model", "model": "reader", "reason": "x"},
    "/v1/legal-holds/{hold_id}/release": {"reason": "x"},
    "/v1/models": {"name": "m", "task": "classification", "architecture": "mlp"},
    "/v1/models/{model}/versions": {"files": [{"path": "a", "size_bytes": 1, "sha256": "0" * 64}]},
    "/v1/models/{model}/training-runs": {"dataset": "digits", "dataset_version": 1},
    "/v1/models/{model}/aliases/{alias}": {"version": 1},
    "/v1/datasets": {"name": "d", "adapter": "tabular"},
    "/v1/datasets/{dataset}/versions": {"files": [{"path": "a", "size_bytes": 1, "sha256": "0" * 64}]},
    "/v1/datasets/{dataset}/versions/{number}/subjects": {"rows": [{"record_id": "r001", "identifiers": [{"type": "customer_id", "value": "x"}]}]},
}


PERIODS = {"/v1/compliance-metrics", "/v1/processing-record"}


def operations(gateway: Gateway) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path template and operation of every documented operation that asks for a caller."""
    for path, found in gateway.client.get("/v1/openapi.json").json()["paths"].items():
        for method, operation in found.items():
            if "x-scope" in operation:
                yield method.upper(), path, operation


def send(gateway: Gateway, method: str, template: str, places: dict[str, str], **named: Any) -> httpx2.Response:
    path = re.sub(r"{(\w+)}", lambda match: places[match[1]], template)
    query = "?time=2090-01-01T00:00:00Z&alias=live" if template.endswith("/at") else ""
    query = "?from=2026-01-01T00:00:00Z&to=2090-01-01T00:00:00Z" if template in PERIODS else query
    body = BODIES.get(template) if method in {"POST", "PUT"} else None
    return gateway.call(method, path + query, body, If_Match='"1"', **named)


def test_every_operation_on_a_thing_of_another_tenant_answers_as_if_there_were_none(gateway: Gateway, places: dict[str, str]) -> None:
    other = gateway.ledger.tenant("other")
    gateway.key("stranger", tenant=other)
    before = gateway.sql(text("SELECT count(*) FROM audit_event")).scalar_one()
    seen = 0
    for method, template, operation in operations(gateway):
        if "{" not in template or operation["x-scope"] == "any":
            continue
        theirs = send(gateway, method, template, places, by="stranger")
        nothing = send(gateway, method, template, {name: _unknown(value) for name, value in places.items()}, by="stranger")
        assert theirs.status_code == nothing.status_code == 404, (method, template, theirs.text)
        if method != "HEAD":
            assert {**theirs.json(), "request_id": "", "instance": ""} == {**nothing.json(), "request_id": "", "instance": ""}, template
        seen += 1
    assert seen > 25
    assert gateway.sql(text("SELECT count(*) FROM audit_event")).scalar_one() == before
    for listing in ("deletion-requests", "jobs", "models", "datasets"):
        assert gateway.call("GET", listing, by="stranger").json() == {"items": [], "next_cursor": None}


def _unknown(value: str) -> str:
    return re.sub(r"_[0-9a-f]{32}$", "_" + "0" * 32, value)


def test_a_name_of_another_tenant_is_free_and_names_nothing_there(gateway: Gateway) -> None:
    other = gateway.ledger.tenant("other")
    with_policies = gateway.key("stranger", tenant=other)
    assert with_policies
    from services.db.session import unit_of_work

    with unit_of_work(gateway.ledger.engine("lethe_owner"), tenant=other) as session:
        seed_policies(session, tenant_id=other, clock=CLOCK)
    for scope in ({"kind": "records", "dataset": "digits", "ids": ["r001"]}, {"kind": "class_labels", "model": "reader", "labels": ["1"]}):
        answer = gateway.call("POST", "deletion-requests", {"scope": scope, "policy": "demo"}, by="stranger")
        assert answer.status_code == 422, answer.text
    nobody = gateway.call("POST", "deletion-requests", {"scope": PERSON, "policy": "demo"}, by="stranger")
    assert (nobody.status_code, nobody.json()["scope"]["records"]) == (202, 0)
    assert gateway.call("POST", "models", {"name": "reader", "task": "classification", "architecture": "mlp"}, by="stranger").status_code == 201


def test_a_key_with_every_scope_but_the_one_that_is_needed_is_refused_everywhere(gateway: Gateway, places: dict[str, str]) -> None:
    for method, template, operation in operations(gateway):
        scope = operation["x-scope"]
        if scope == "any":
            continue
        client = f"without {scope}"
        gateway.key(client, *(SCOPES - {scope}))
        refused = send(gateway, method, template, places, by=client)
        assert refused.status_code == 403, (method, template, refused.text)
        if method != "HEAD":
            assert (refused.json()["code"], scope in refused.json()["detail"]) == ("insufficient-scope", True)


def test_no_operation_answers_without_a_key(gateway: Gateway, places: dict[str, str]) -> None:
    for method, template, _ in operations(gateway):
        refused = send(gateway, method, template, places, by=None)
        assert refused.status_code == 401, (method, template)
        assert refused.headers["www-authenticate"].startswith("Bearer")


def test_keys_that_are_wrong_in_any_place_are_401_with_one_and_the_same_body(gateway: Gateway) -> None:
    good = gateway.key("desk")
    wrong = [good[:-1] + ("0" if good[-1] != "0" else "1"), good.replace("lk_live_", "lk_test_"), good + "x", good[:-7], "x" * 9000, "null"]
    from services.tenants import api_keys

    wrong.append(api_keys.new_key().text)
    secret = list(good[:-7])
    secret[20] = "a" if secret[20] != "a" else "b"
    wrong.append("".join(secret) + "_" + api_keys._checksum("".join(secret)))
    bodies = set()
    for key in wrong:
        answer = gateway.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 401, key
        bodies.add(str({**answer.json(), "request_id": "", "instance": ""}))
        assert key not in answer.text
    assert len(bodies) == 1


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
def test_a_revoked_or_expired_key_stops_within_a_second(gateway: Gateway, column: str) -> None:
    client = f"short {column}"
    gateway.key(client, "models:read")
    assert gateway.call("GET", "models", by=client).status_code == 200
    gateway.sql(text(f"UPDATE api_key SET {column} = clock_timestamp() WHERE client = '{client}'"))
    started = time.monotonic()
    until(lambda: gateway.call("GET", "models", by=client).status_code == 401)
    assert time.monotonic() - started < 3


# --- downloads -------------------------------------------------------------------------------------------------------------------------


def test_a_redirect_leads_to_the_bytes_and_names_the_file(gateway: Gateway) -> None:
    answer = gateway.call("GET", FILE)
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "no-store")
    fetched = httpx2.get(answer.headers["location"])
    assert fetched.content == WEIGHTS
    assert "model.safetensors" in fetched.headers["content-disposition"]
    tampered = answer.headers["location"].replace(hashlib.sha256(WEIGHTS).hexdigest(), "0" * 64)
    assert httpx2.get(tampered).status_code == 403


def test_a_stream_carries_the_digest_of_what_it_streams(gateway: Gateway) -> None:
    answer = gateway.call("GET", f"{FILE}?delivery=stream")
    digest = hashlib.sha256(answer.content)
    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["etag"] == f'"sha256:{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["cache-control"] == "private, immutable"
    head = gateway.call("HEAD", FILE)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(WEIGHTS)))
    assert head.headers["etag"] == answer.headers["etag"]
    manifest = gateway.call("GET", "models/reader/versions/1").json()["manifest"]
    assert [(one["path"], one["sha256"]) for one in manifest["files"]] == [("model.safetensors", digest.hexdigest())]


SIZE = len(WEIGHTS)


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-9", 206, WEIGHTS[:10]),
        ("bytes=10-", 206, WEIGHTS[10:]),
        ("bytes=-7", 206, WEIGHTS[-7:]),
        (f"bytes=0-{SIZE * 9}", 206, WEIGHTS),
        ("bytes=9-1", 200, WEIGHTS),
        ("bytes=0-1,4-5", 200, WEIGHTS),
        (",".join(["bytes=0-1"] * 180), 200, WEIGHTS),
        ("items=0-1", 200, WEIGHTS),
        (f"bytes={SIZE}-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_a_range_is_answered_as_the_standard_says(gateway: Gateway, asked: str, status: int, content: bytes | None) -> None:
    answer = gateway.call("GET", f"{FILE}?delivery=stream", Range=asked)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
        assert answer.json()["code"] == "range-not-satisfiable"
    else:
        assert answer.content == content
        assert ("content-range" in answer.headers) == (status == 206)


def test_a_download_can_be_resumed_only_from_the_same_bytes(gateway: Gateway) -> None:
    etag = gateway.call("HEAD", FILE).headers["etag"]
    first = gateway.call("GET", f"{FILE}?delivery=stream", Range="bytes=0-49").content
    rest = gateway.call("GET", f"{FILE}?delivery=stream", Range="bytes=50-", If_Range=etag)
    assert (rest.status_code, first + rest.content) == (206, WEIGHTS)
    assert gateway.call("GET", f"{FILE}?delivery=stream", Range="bytes=50-", If_Range='"sha256:old"').status_code == 200
    assert gateway.call("GET", FILE, If_None_Match=etag).status_code == 304
    assert gateway.call("GET", f"{FILE}?delivery=stream", If_None_Match=f'"x", {etag}').status_code == 304


def test_each_hand_out_is_an_audit_event_and_a_look_is_not(gateway: Gateway) -> None:
    count = text("SELECT count(*) FROM audit_event WHERE type = 'version.file_issued'")
    before = gateway.sql(count).scalar_one()
    gateway.call("HEAD", FILE)
    assert gateway.sql(count).scalar_one() == before
    gateway.call("GET", FILE)
    gateway.call("GET", f"{FILE}?delivery=stream")
    assert gateway.sql(count).scalar_one() == before + 2


@pytest.mark.parametrize("path", ["other", "..%2fmodel.safetensors", "%2e%2e/%2e%2e/1/files/model.safetensors", "model.safetensors/", "a" * 600])
def test_a_file_that_is_not_of_the_version_is_404(gateway: Gateway, path: str) -> None:
    answer = gateway.call("GET", f"models/reader/versions/1/files/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def set_status(gateway: Gateway, version: str, status: str) -> None:
    more = ", destroy_by = clock_timestamp() + interval '30 days'" if status == "quarantined" else ""
    more += ", destroyed_at = clock_timestamp()" if status == "destroyed" else ""
    gateway.sql(text(f"UPDATE model_version SET status = '{status}'{more} WHERE id = '{version}'"))


def test_a_quarantined_version_is_404_but_to_operators_and_a_destroyed_one_410(gateway: Gateway) -> None:
    assert gateway.model("old", WEIGHTS)["status"] == "ready"
    made = gateway.call("GET", "models/old/versions/1").json()
    version = str(UUID(made["id"].removeprefix("mv_")))
    place = "models/old/versions/1/files/model.safetensors"
    gateway.key("reader", "checkpoints:read")
    gateway.key("operator", "checkpoints:read", "requests:operate")
    assert gateway.call("GET", place, by="reader").status_code == 307
    set_status(gateway, version, "quarantined")
    for suffix in ("", "?delivery=stream"):
        assert gateway.call("GET", place + suffix, by="reader").status_code == 404
    assert gateway.call("HEAD", place, by="reader").status_code == 404
    assert gateway.call("GET", f"{place}?delivery=stream", by="operator").content == WEIGHTS
    set_status(gateway, version, "destroyed")
    gone = gateway.call("GET", place, by="operator")
    assert (gone.status_code, gone.json()["code"]) == (410, "checkpoint-destroyed")


def test_a_blob_that_the_store_lost_is_503_and_nothing_is_cut_short(gateway: Gateway) -> None:
    other = safetensors({"0.weight": [8, 2], "0.bias": [8]}, values=0.125)
    assert gateway.model("lost", other)["status"] == "ready"
    gateway.store.delete(f"blobs/sha256/{hashlib.sha256(other).hexdigest()}")
    answer = gateway.call("GET", "models/lost/versions/1/files/model.safetensors?delivery=stream")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-unavailable")


# --- privacy and health ----------------------------------------------------------------------------------------------------------------


def test_the_forms_nfc_and_nfd_of_an_identifier_name_one_person(gateway: Gateway) -> None:
    rows = [{"record_id": "r080", "identifiers": [{"type": "customer_id", "value": "zo\u00eb"}]}]
    assert gateway.call("POST", "datasets/digits/versions/1/subjects", {"rows": rows}).status_code == 200
    made = gateway.ask({"kind": "subject", "identifiers": [{"type": "customer_id", "value": " zoe\u0308 "}]})
    assert made.json()["scope"]["records"] == 1


def test_no_identifier_stands_in_a_table_an_answer_or_a_log(gateway: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    mark = "zqxwvk"  # no hexadecimal digit: a random salt or digest cannot spell it
    canary = f"canary-{mark}"
    rows = [{"record_id": "r081", "identifiers": [{"type": "email", "value": f"{canary}@example.org"}]}]
    spoken = [{"record_id": "r082", "identifiers": [{"type": "entity", "value": canary}]}]
    answers = [
        gateway.call("POST", "datasets/digits/versions/1/subjects", {"rows": rows}),
        gateway.ask({"kind": "subject", "identifiers": [{"type": "email", "value": f"{canary}@example.org"}]}),
        gateway.ask({"kind": "subject", "identifiers": [{"type": "email", "value": f"{canary}@example.org", canary: 1}]}),
        gateway.ask({"kind": "records", "dataset": "digits", "ids": [canary]}),
        gateway.ask({"kind": "records", "dataset": canary, "ids": ["r001"]}),
        gateway.ask({"kind": "subject", "identifiers": [{"type": "email", "value": "x"}]}, metadata={"a": f"{canary}@example.org"}),
        gateway.call("POST", "datasets", {"name": "x", "adapter": canary.replace("-", "_")}),
        gateway.call("GET", f"models/{canary}"),
        gateway.call("GET", f"jobs?cursor={canary}"),
        gateway.call("POST", "datasets/digits/versions/1/subjects", {"rows": spoken}),
        gateway.ask({"kind": "entity", "dataset": "digits", "names": [canary]}),
        gateway.ask({"kind": "entity", "dataset": "digits", "names": [f"{canary}s"]}),
    ]
    assert [answer.status_code for answer in answers] == [200, 202, 422, 422, 422, 422, 422, 404, 422, 200, 202, 422]
    for answer in answers:
        assert mark not in answer.text + str(answer.headers)
    out, err = capfd.readouterr()
    assert mark not in out + err
    public = text("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'")
    for table in gateway.sql(public).scalars().all():
        plain, as_bytes = f"t::text LIKE '%{mark}%'", f"t::text LIKE '%{mark.encode().hex()}%'"
        assert gateway.sql(text(f'SELECT count(*) FROM "{table}" AS t WHERE {plain} OR {as_bytes}')).scalar_one() == 0, table


def test_readiness_is_degraded_but_200_while_no_worker_is_seen(gateway: Gateway) -> None:
    signer_over(gateway.ledger).turn()
    checks = {"database": "ok", "migration": "ok", "store": "ok", "signer": "ok"}
    assert gateway.client.get("/readyz").json() == {"status": "ok", "checks": checks, "degraded": []}
    gateway.sql(text("UPDATE catalogue_entry SET seen_at = clock_timestamp() - interval '1 hour'"))
    answer = gateway.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"], answer.json()["degraded"]) == (200, "degraded", ["no live worker"])
    assert gateway.ask({"kind": "class_labels", "dataset": "digits", "labels": ["3"]}).status_code == 202
    assert gateway.call("GET", "methods/retrain").json()["available"] is False
    gateway.sql(text("UPDATE catalogue_entry SET seen_at = clock_timestamp()"))
