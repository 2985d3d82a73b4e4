"""What must never reach the ledger, and how it is answered."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.unit.api.stand_in import ALL, NONE, gateway

URL = "/v1/deletion-requests"
KEY = {"Idempotency-Key": "k-1"}
GOOD: dict[str, Any] = {"scope": {"kind": "records", "dataset": "digits", "ids": ["r1"]}}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return gateway()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as made:
        yield made


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"], body["type"]) == (status, code, f"https://lethe.dev/problems/{code}")
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def changed(**members: Any) -> dict[str, Any]:
    return {**GOOD, **members}


def scoped(**members: Any) -> dict[str, Any]:
    return {"scope": members}


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer wrong"}],
    ids=["none", "empty", "no key", "basic", "unknown"],
)
def test_a_call_without_a_live_key_is_401_and_says_how_to_authenticate(client: Any, headers: dict[str, str]) -> None:
    answer = client.post(URL, json=GOOD, headers={**headers, **KEY})
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_key_without_the_scope_is_403_before_the_body_is_judged(client: Any) -> None:
    assert "requests:write" in problem(client.post(URL, json={"nonsense": 1}, headers={**NONE, **KEY}), 403, "insufficient-scope")["detail"]


@pytest.mark.parametrize("key", [None, "", " ", "a b", "x" * 129, "clé"], ids=["none", "empty", "blank", "space", "long", "letters"])
def test_a_create_without_a_usable_idempotency_key_is_400(client: Any, key: str | None) -> None:
    headers = ALL if key is None else {**ALL, "Idempotency-Key": key.encode()}
    problem(client.post(URL, json=GOOD, headers=headers), 400, "idempotency-key-missing")


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"scope=1"),
        ("multipart/form-data; boundary=b", b"--b--"),
        ("text/plain", b"{}"),
        ("application/problem+json", b"{}"),
        ("", b"{}"),
    ],
)
def test_a_body_that_is_not_json_is_415(client: Any, media_type: str, body: bytes) -> None:
    problem(client.post(URL, content=body, headers={**ALL, **KEY, "Content-Type": media_type}), 415, "unsupported-media-type")


def test_a_compressed_body_is_415(client: Any) -> None:
    headers = {**ALL, **KEY, "Content-Type": "application/json", "Content-Encoding": "gzip"}
    problem(client.post(URL, content=b"\x1f\x8b", headers=headers), 415, "unsupported-media-type")


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 10_000, b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}", b"{"])
def test_malformed_json_is_400(client: Any, body: bytes) -> None:
    problem(client.post(URL, content=body, headers={**ALL, **KEY, "Content-Type": "application/json"}), 400, "malformed-request")


@pytest.mark.parametrize("literal", ["NaN", "-Infinity", "1e400"])
def test_a_rate_that_is_no_number_of_json_is_400_whatever_its_method(client: Any, literal: str) -> None:
    body = json.dumps(changed(method="unsir", parameters={"noise_lr": "here"})).replace('"here"', literal)
    problem(client.post(URL, content=body.encode(), headers={**ALL, **KEY, "Content-Type": "application/json"}), 400, "malformed-request")


BAD_MEMBERS = {
    "not an object": ([], ""),
    "no scope": ({}, "/scope"),
    "no body": (None, ""),
    "unknown member": (changed(tenant="t"), "/tenant"),
    "mass assignment": (changed(state="completed"), "/state"),
    "unknown kind": (scoped(kind="everything"), "/scope"),
    "unknown member of a scope": (scoped(kind="records", dataset="d", ids=["r"], sql="x"), "/scope/sql"),
    "empty list": (scoped(kind="records", dataset="d", ids=[]), "/scope/ids"),
    "number for an id": (scoped(kind="records", dataset="d", ids=["a", 1]), "/scope/ids/1"),
    "empty id": (scoped(kind="records", dataset="d", ids=[""]), "/scope/ids/0"),
    "too many ids": (scoped(kind="records", dataset="d", ids=["r"] * 10_001), "/scope/ids"),
    "path for a name": (scoped(kind="records", dataset="../d", ids=["r"]), "/scope/dataset"),
    "url for a name": (scoped(kind="records", dataset="s3://other/d", ids=["r"]), "/scope/dataset"),
    "true for a label": (scoped(kind="class_labels", dataset="d", labels=[True]), "/scope/labels/0"),
    "both places": (scoped(kind="class_labels", dataset="d", model="m", labels=["3"]), "/scope"),
    "no place": (scoped(kind="class_labels", labels=["3"]), "/scope"),
    "no identifiers": (scoped(kind="subject", identifiers=[]), "/scope/identifiers"),
    "no value": (scoped(kind="subject", identifiers=[{"type": "email"}]), "/scope/identifiers/0/value"),
    "unknown regulation": (changed(regulation="hipaa"), "/regulation"),
    "time without offset": (changed(received_at="2026-11-20T09:12:00"), "/received_at"),
    "time as a number": (changed(received_at=1_700_000_000), "/received_at"),
    "year 9999": (changed(received_at="9999-12-31T23:59:59Z"), "/received_at"),
    "31 February": (changed(received_at="2026-02-31T00:00:00Z"), "/received_at"),
    "in the future": (changed(received_at="2150-01-01T00:00:00Z"), "/received_at"),
    "line break in external_id": (changed(external_id="a\r\nb"), "/external_id"),
    "empty models": (changed(models=[], note="n"), "/models"),
    "narrowing without a note": (changed(models=["m"]), ""),
    "e-mail in metadata": (changed(metadata={"who": "Anna <anna@example.org>"}), "/metadata"),
    "telephone number in metadata": (changed(metadata={"call": "+49 170 1234567"}), "/metadata"),
    "large metadata": (changed(metadata={"a": "x" * 1024}), "/metadata"),
    "many pairs": (changed(metadata={f"k{n}": "v" for n in range(17)}), "/metadata"),
    "number in metadata": (changed(metadata={"a": 1}), "/metadata/a"),
    "method with a path": (changed(method="os.system"), "/method"),
    "parameters as a list": (changed(parameters=[]), "/parameters"),
}


@pytest.mark.parametrize(("body", "pointer"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_a_body_that_does_not_fit_is_422_and_points_to_the_place(client: Any, body: Any, pointer: str) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    answer = client.post(URL, content=content, headers={**ALL, **KEY, "Content-Type": "application/json"})
    assert pointer in [one["pointer"] for one in problem(answer, 422, "validation-error")["errors"]]


def test_no_value_of_a_refused_body_comes_back(client: Any) -> None:
    canary = "canary.person@example.org"
    bodies = [
        changed(**{canary: 1}),
        scoped(kind=canary),
        scoped(kind="subject", identifiers=[{"type": canary, "value": 3, canary: 1}]),
        scoped(kind="records", dataset=canary, ids=[canary, 1]),
        changed(received_at=canary, regulation=canary, method=canary, external_id=canary + " ", metadata={canary: canary}),
    ]
    for body in bodies:
        answer = client.post(URL, json=body, headers={**ALL, **KEY})
        assert "canary" not in answer.text + str(answer.headers)
        problem(answer, 422, "validation-error")
    assert "canary" not in client.get(f"{URL}/{canary}?cursor={canary}", headers=ALL).text
    assert "canary" not in client.get(URL, params={"cursor": canary, "status": canary, "limit": canary}, headers=ALL).text


def test_a_body_larger_than_the_cap_is_413_by_its_length_alone(client: Any) -> None:
    headers = {**ALL, **KEY, "Content-Type": "application/json", "Content-Length": "262145"}
    problem(client.post(URL, content=b"{", headers=headers), 413, "payload-too-large")


def test_the_subject_index_takes_four_mebibytes(client: Any) -> None:
    rows = [{"record_id": "r" * 300, "identifiers": [{"type": "customer_id", "value": "v" * 300}]} for _ in range(1000)]
    answer = client.post("/v1/datasets/d/versions/0/subjects", json={"rows": rows}, headers=ALL)
    assert answer.status_code == 404
    problem(client.post("/v1/datasets/d/versions/1/complete", json={"rows": rows}, headers=ALL), 413, "payload-too-large")


def exchange(app: Any, chunks: Any, headers: list[tuple[bytes, bytes]] | None = None) -> tuple[int, dict[str, Any], int]:
    """Send a body in chunks and return status, problem and how many chunks were taken."""
    sent: list[Any] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        try:
            return {"type": "http.request", "body": await anext(source), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": URL, "raw_path": URL.encode(),
        "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        "headers": headers or [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")],
    }  # fmt: skip
    source = chunks()
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body), taken


def test_endless_chunks_are_stopped_at_the_cap(app: Any) -> None:
    async def endless() -> Any:
        while True:
            yield b" " * 65_536

    status, body, taken = exchange(app, endless)
    assert (status, body["code"], taken) == (413, "payload-too-large", 5)


def test_a_body_that_does_not_arrive_is_408() -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    status, body, _ = exchange(gateway(body_timeout_s=0.05), slow)
    assert (status, body["code"], body["retryable"]) == (408, "request-timeout", True)


def test_a_client_that_hangs_up_in_the_body_harms_nobody(app: Any) -> None:
    async def short() -> Any:
        yield b'{"sco'

    assert exchange(app, short)[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", "/v1/deletion-requests/", 404, "not-found"),
        ("DELETE", "/v1/deletion-requests", 405, "method-not-allowed"),
        ("GET", "/v1/deletion-requests/dr_1", 404, "not-found"),
        ("GET", "/v1/deletion-requests/job_01a1f853bd807c31a0b14d2f6a7e5c90", 404, "not-found"),
        ("GET", "/v1/deletion-requests/dr_01A1F853BD807C31A0B14D2F6A7E5C90", 404, "not-found"),
        ("GET", "/v1/deletion-requests/' OR 1=1", 404, "not-found"),
        ("GET", "/v1/models/m/versions/-1", 404, "not-found"),
        ("GET", "/v1/models/m/versions/99999999999999", 404, "not-found"),
        ("GET", "/v1/models/..%2f..%2fetc", 404, "not-found"),
        ("GET", "/v1/models/m%0d%0aSet-Cookie:x", 404, "not-found"),
        ("GET", "/v1/deletion-requests?limit=0", 422, "validation-error"),
        ("GET", "/v1/deletion-requests?limit=201", 422, "validation-error"),
        ("GET", "/v1/deletion-requests?limit=ten", 422, "validation-error"),
        ("GET", "/v1/deletion-requests?status=lost", 422, "validation-error"),
        ("GET", "/v1/deletion-requests?due_before=soon", 422, "validation-error"),
        ("GET", "/v1/deletion-requests?cursor=%00", 422, "invalid-cursor"),
        ("GET", "/v1/deletion-requests?cursor=AAAA", 422, "invalid-cursor"),
        ("GET", "/v1/deletion-requests?cursor=%C3%A9", 422, "invalid-cursor"),
        ("GET", "/v1/jobs?sort=name", 422, "validation-error"),
        ("POST", "/v1/deletion-requests/dr_01a1f853bd807c31a0b14d2f6a7e5c90/decision", 422, "validation-error"),
    ],
)
def test_paths_and_queries_that_cannot_be_are_problems(client: Any, method: str, path: str, status: int, code: str) -> None:
    problem(client.request(method, path, headers=ALL), status, code)


def test_a_decision_needs_a_version_to_decide_on(client: Any) -> None:
    url = "/v1/deletion-requests/dr_01a1f853bd807c31a0b14d2f6a7e5c90/decision"
    problem(client.post(url, json={"outcome": "approve"}, headers=ALL), 428, "precondition-required")
    for tag in ("*", '"x"', 'W/"1"', '"99999999999999999999"'):
        problem(client.post(url, json={"outcome": "approve"}, headers={**ALL, "If-Match": tag}), 412, "precondition-failed")


def test_an_unforeseen_error_is_500_and_says_nothing(client: Any, capsys: Any) -> None:
    answer = client.get("/v1/deletion-requests/dr_01a1f853bd807c31a0b14d2f6a7e5c90", headers={**ALL, "X-Request-ID": "quote-me"})
    body = problem(answer, 500, "internal")
    assert "engine" not in answer.text
    assert body["request_id"] == "quote-me"


def test_every_answer_carries_the_security_headers_and_a_request_id(client: Any) -> None:
    for path in ("/healthz", "/v1/nothing", "/v1/openapi.json"):
        headers = client.get(path, headers={"X-Request-ID": "a\tb"}).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "max-age" in headers["strict-transport-security"]
        assert headers["x-request-id"] != "a\tb"
        assert "server" not in headers
