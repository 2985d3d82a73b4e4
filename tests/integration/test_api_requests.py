"""The HTTP contract on a real database and object store: from create to report, and everything between."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from api import events
from api.app import create_app
from models_store.objects import blob_key
from models_store.s3 import S3Store
from services.audit import log as audit_log
from services.audit import repository as audit
from services.catalogue import service as catalogue
from services.clock import uuid7
from services.db import leaves
from services.db.session import unit_of_work
from services.db.tables import ModelVersion
from services.jobs.steps.report import keep_renderings
from services.settings import Settings
from services.tenants.caller import SCOPES
from services.tenants.service import issue_key
from tests.integration.log_world import settle, signer_over
from tests.integration.real_catalogue import publish_real
from tests.integration.test_ledger_requests import CLOCK, KEYS, World

PERSON = {"kind": "subject", "identifiers": [{"type": "customer_id", "value": "p3"}]}
CLASS = {"kind": "class_labels", "dataset": "digits", "labels": ["4"]}


class Api:
    """The gateway on the world's database, with a client for each tenant."""

    def __init__(self, ledger: Any, world: World, server: Any) -> None:
        self.world = world
        self.ledger = ledger
        parts = {"endpoint": server.endpoint, "public_endpoint": server.endpoint, "region": "us-east-1", "bucket": f"api-{uuid4().hex[:12]}"}
        self.store = S3Store.from_parts(**parts, access_key=server.access_key, secret_key=server.secret_key, secure=False)
        self.store.ensure_bucket()
        settings = Settings(
            embedded=True,
            database={"url": ledger.url("lethe_gateway")},
            keys={"encryption": KEYS.kek, "pepper": KEYS.pepper, "cursor": "33" * 32},
        )
        self.app = create_app(settings, store=self.store)
        self.http = TestClient(self.app, raise_server_exceptions=False, follow_redirects=False)

    def key(self, tenant: UUID, scopes: frozenset[str] = SCOPES, client: str | None = None) -> str:
        with unit_of_work(self.ledger.engine("lethe_owner"), tenant=tenant) as session:
            return issue_key(session, tenant_id=tenant, client=client or uuid4().hex, scopes=scopes, pepper=KEYS.pepper)

    def call(self, method: str, path: str, body: Any = None, *, key: str, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.request(method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {key}", **named})


class Desk:
    """A caller with every scope in the world's tenant."""

    def __init__(self, api: Api, key: str) -> None:
        self.api = api
        self.key = key

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.api.call("GET", path, key=self.key, **headers)

    def post(self, path: str, body: Any, ik: str | None = None, **headers: str) -> httpx2.Response:
        return self.api.call("POST", path, body, key=self.key, Idempotency_Key=ik or uuid4().hex, **headers)

    def create(self, scope: Any = PERSON, ik: str | None = None, **members: Any) -> httpx2.Response:
        return self.post("/deletion-requests", {"scope": scope, "policy": "demo", **members}, ik)


@pytest.fixture
def api(ledger: Any, object_store_server: Any) -> Iterator[Api]:
    made = Api(ledger, World(ledger), object_store_server)
    with made.http:
        yield made


@pytest.fixture
def desk(api: Api) -> Desk:
    return Desk(api, api.key(api.world.tenant, client="desk"))


def uuid_of(text: str) -> UUID:
    return UUID(text.partition("_")[2])


def test_a_request_is_created_read_replayed_and_cancelled(desk: Desk) -> None:
    made = desk.create(ik="k-1", external_id="dsr-1", metadata={"desk": "4"})
    body = made.json()
    assert made.status_code == 202
    assert made.headers["location"] == f"/v1/deletion-requests/{body['id']}" == body["links"]["self"]
    assert made.headers["retry-after"] == "30"
    assert (body["status"], body["status_drp"], body["status_opendsr"], body["done"], body["version"]) == (
        "approved",
        "in_progress",
        "in_progress",
        False,
        1,
    )
    assert (body["scope"]["records"], body["targets"][0]["model"], body["targets"][0]["base_version"]) == (2, "reader", 1)
    assert body["receipt"]["commitment"].startswith("sha256:")
    assert "p3" not in made.text

    read = desk.get(f"/deletion-requests/{body['id']}")
    assert {**read.json(), "days_left": 0} == {**body, "days_left": 0}
    assert desk.get(f"/deletion-requests/{body['id']}", If_None_Match=read.headers["etag"]).status_code == 304

    again = desk.create(ik="k-1", external_id="dsr-1", metadata={"desk": "4"})
    assert (again.status_code, again.json(), again.headers["location"]) == (202, body, made.headers["location"])
    assert (again.headers["idempotency-replayed"], "idempotency-replayed" in made.headers) == ("true", False)

    assert body["receipt"]["jws"] is None
    settle(signer_over(desk.api.ledger))
    signed = desk.get(f"/deletion-requests/{body['id']}", If_None_Match=read.headers["etag"]).json()["receipt"]
    said = json.loads(base64.urlsafe_b64decode(signed["jws"].split(".")[1] + "=="))
    assert (said["request"], *(said[name] for name in ("event", "commitment", "leaf_seq"))) == (
        body["id"], *(signed[name] for name in ("event", "commitment", "leaf_seq")),
    )  # fmt: skip
    assert datetime.fromisoformat(said["received_at"]) == datetime.fromisoformat(body["received_at"])

    cancelled = desk.post(f"{body['links']['cancellation'].removeprefix('/v1')}", {"by": "subject", "reason": "changed her mind"})
    assert (cancelled.status_code, cancelled.json()["status"], cancelled.json()["done"]) == (202, "cancelled", True)
    assert cancelled.json()["links"]["cancellation"] is None
    late = desk.post(f"/deletion-requests/{body['id']}/cancellation", {"by": "subject"})
    assert (late.status_code, late.json()["code"], late.json()["from"], late.json()["allowed"]) == (409, "invalid-transition", "cancelled", [])


def test_a_key_means_one_body_and_a_refused_create_leaves_no_trace_of_it(desk: Desk) -> None:
    assert desk.create(CLASS, ik="k").status_code == 202
    other = desk.create(PERSON, ik="k")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    refused = desk.create({"kind": "records", "dataset": "digits", "ids": ["nobody-has-this"]}, ik="k2")
    assert (refused.status_code, refused.json()["code"], "nobody-has-this" in refused.text) == (422, "records-not-found", False)
    assert desk.create(ik="k2").status_code == 202


def test_of_many_creates_with_one_key_at_once_one_acts_and_the_rest_are_told(desk: Desk) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: desk.create(ik="same"), range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    made = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.json()["id"] for answer in made}) == 1
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"idempotency-in-progress"}
    assert len(desk.get("/deletion-requests").json()["items"]) == 1


def test_the_external_id_is_a_second_key(desk: Desk) -> None:
    first = desk.create(external_id="dsr-7")
    second = desk.create(external_id="dsr-7")
    assert (second.status_code, second.json()["id"]) == (200, first.json()["id"])
    third = desk.create(CLASS, external_id="dsr-7")
    assert (third.status_code, third.json()["code"], "dsr-7" in third.text) == (409, "duplicate-external-id", False)


def test_many_creates_for_one_scope_at_once_make_one_leader(desk: Desk) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: desk.create(), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    assert sorted(answer.json()["status"] for answer in answers) == ["approved", *["duplicate"] * 7]


@pytest.mark.parametrize(
    ("members", "code", "pointer"),
    [
        ({"scope": {"kind": "records", "dataset": "nothing", "ids": ["r1"]}}, "validation-error", "/scope/dataset"),
        ({"scope": {"kind": "class_labels", "model": "nothing", "labels": ["1"]}}, "unknown-model", "/scope/model"),
        ({"scope": {"kind": "class_labels", "dataset": "digits", "labels": ["9"]}}, "records-not-found", "/scope/labels"),
        ({"scope": {"kind": "class_labels", "dataset": "digits", "labels": ["0", "1", "2", "3", "4"]}}, "validation-error", "/scope"),
        ({"scope": {"kind": "target_range", "dataset": "digits", "below": 1.0}}, "validation-error", None),
        ({"scope": PERSON, "models": ["nothing"], "note": "n"}, "unknown-model", "/models"),
        ({"scope": PERSON, "policy": "nothing"}, "validation-error", None),
        ({"scope": PERSON, "method": "nothing"}, "unknown-method", "/method"),
        ({"scope": PERSON, "method": "unsir"}, "method-not-applicable", "/method"),
        ({"scope": CLASS, "method": "unsir", "parameters": {"epochs": 0}}, "validation-error", "/parameters/epochs"),
        ({"scope": CLASS, "method": "unsir", "parameters": {"learning_rate": 1}}, "validation-error", "/parameters/learning_rate"),
        ({"scope": PERSON, "identity": {"mode": "one_time_code"}}, "validation-error", None),
    ],
)
def test_what_the_ledger_refuses_is_422_with_its_code_and_place(desk: Desk, members: dict[str, Any], code: str, pointer: str | None) -> None:
    answer = desk.post("/deletion-requests", {"policy": "demo", **members})
    assert (answer.status_code, answer.json()["code"], answer.headers["content-type"]) == (422, code, "application/problem+json"), answer.text
    assert [one["pointer"] for one in answer.json()["errors"]] == ([] if pointer is None else [pointer])
    dry = desk.post("/deletion-requests?dry_run=true", {"policy": "demo", **members})
    assert dry.status_code == 422 or (dry.status_code == 200 and not dry.json()["would_accept"]), dry.text
    assert desk.get("/deletion-requests").json()["items"] == []


OUT_OF_BOUNDS = [
    ("bad_teacher", {"epochs": 1e9}, "/parameters/epochs", "must be at most 20"),
    ("unsir", {"epochs_repair": 10**9}, "/parameters/epochs_repair", "must be at most 10"),
    ("bad_teacher", {"lr": "NaN"}, "/parameters/lr", "must be of type number"),
    ("unsir", {"noise_lr": "NaN"}, "/parameters/noise_lr", "must be of type number"),
    ("unsir", {"noise_lr": -0.1}, "/parameters/noise_lr", "must be at least 0.0001"),
]


def test_parameters_out_of_bounds_are_refused_in_the_words_of_the_methods_own_schema(api: Api, desk: Desk) -> None:
    publish_real(api.ledger)
    answers = [desk.create(CLASS, method=method, parameters=parameters) for method, parameters, _, _ in OUT_OF_BOUNDS]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(422, "validation-error")] * len(OUT_OF_BOUNDS)
    errors = [[(one["pointer"], one["detail"]) for one in answer.json()["errors"]] for answer in answers]
    assert errors == [[(pointer, f"Parameter (as sent) is refused: {words}")] for _, _, pointer, words in OUT_OF_BOUNDS]


def test_an_unknown_person_is_recorded_all_the_same(desk: Desk) -> None:
    made = desk.create({"kind": "subject", "identifiers": [{"type": "customer_id", "value": "nobody"}]})
    assert (made.status_code, made.json()["targets"][0]["outcome"]) == (202, "not_identifiable")


def test_a_dry_run_says_what_would_happen_and_records_nothing(desk: Desk) -> None:
    told = desk.post("/deletion-requests?dry_run=true", {"scope": CLASS, "policy": "demo"}).json()
    assert (told["would_accept"], told["problems"], told["records"], told["models"][0]["model"]) == (True, [], 20, "reader")
    assert desk.get("/deletion-requests").json()["items"] == []


def test_a_model_that_no_live_worker_could_hold_is_refused_with_the_numbers(api: Api, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1024**3
    monkeypatch.setattr(catalogue, "REMEMBERED_S", 0.0)
    files = [{"path": "model.safetensors", "size_bytes": 4 * gib}, {"path": "manifest.json", "size_bytes": gib}]
    api.world.sql(update(ModelVersion).values(manifest={"files": files}), "superuser")
    body = {"scope": CLASS, "policy": "demo"}
    alone = desk.post("/deletion-requests?dry_run=true", body).json()
    assert (alone["would_accept"], alone["models"][0]["memory_bytes"], alone["models"][0]["gpu_memory_bytes"]) == (True, 32 * gib + 120, None)

    def introduce(name: str, capacity: int, kind: str) -> None:
        with unit_of_work(api.ledger.engine("lethe_worker"), tenant=None) as session:
            catalogue.introduce(session, worker=name, queue=name, device={"device": kind, "capacity_bytes": capacity, "devices": 2}, versions={})

    introduce("small", 24 * gib, "cpu")
    refused = desk.post("/deletion-requests", body)
    told = refused.json()
    assert (refused.status_code, told["code"], told["errors"][0]["pointer"]) == (422, "model-too-large", "/method"), refused.text
    assert (told["needed_bytes"], told["capacity_bytes"], told["devices"], told["methods"]) == (32 * gib + 120, 24 * gib, 2, [])
    assert "about 32.0 GiB of memory" in told["detail"]
    assert "2 x 24.0 GiB (cpu), and the method cannot share the weights" in told["detail"]
    dry = desk.post("/deletion-requests?dry_run=true", body).json()
    assert (dry["would_accept"], [one["code"] for one in dry["problems"]]) == (False, ["model-too-large"])
    assert desk.get("/deletion-requests").json()["items"] == []

    introduce("large", 40 * gib, "cuda")
    assert desk.post("/deletion-requests?dry_run=true", body).json()["models"][0]["gpu_memory_bytes"] == 32 * gib + 120
    assert desk.post("/deletion-requests", body).status_code == 202


def test_another_tenant_finds_nothing(api: Api, desk: Desk) -> None:
    request = desk.create().json()
    job = desk.post("/models/reader/training-runs", {"dataset": "digits", "dataset_version": 1}).json()
    stranger = Desk(api, api.key(api.ledger.tenant("other")))
    model, dataset = desk.get("/models/reader").json()["id"], desk.get("/datasets/digits").json()["id"]
    paths = [
        f"/deletion-requests/{request['id']}", f"/deletion-requests/{request['id']}/targets",
        f"/deletion-requests/{request['id']}/targets/{request['targets'][0]['id']}", f"/deletion-requests/{request['id']}/events",
        f"/deletion-requests/{request['id']}/audit-report", f"/deletion-requests/{request['id']}/audit-reports",
        f"/deletion-requests/{request['id']}/audit-reports/1", f"/deletion-requests/{request['id']}/audit-reports/1/figures", f"/jobs/{job['id']}", f"/jobs/{job['id']}/attempts", f"/jobs/{job['id']}/events",
        f"/models/{model}", "/models/reader", f"/models/{model}/versions", f"/models/{model}/versions/1", f"/models/{model}/versions/1/lineage",
        f"/models/{model}/versions/1/files/model.safetensors", f"/models/{model}/aliases", f"/models/{model}/aliases/current",
        f"/models/{model}/at?time=2030-01-01T00:00:00Z&alias=current", f"/datasets/{dataset}", "/datasets/digits", f"/datasets/{dataset}/versions",
        f"/datasets/{dataset}/versions/1", f"/datasets/{dataset}/versions/1/models",
    ]  # fmt: skip
    for path in paths:
        answer = stranger.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), path
    posts = [
        (f"/deletion-requests/{request['id']}/cancellation", {"by": "subject"}), (f"/jobs/{job['id']}/cancellation", None),
        (f"/models/{model}/versions", {"files": [{"path": "model.safetensors", "size_bytes": 1, "sha256": "0" * 64}]}),
        (f"/models/{model}/versions/1/complete", {}), (f"/datasets/{dataset}/versions/1/complete", {}),
        (f"/models/{model}/training-runs", {"dataset": dataset, "dataset_version": 1}),
        (f"/datasets/{dataset}/versions", {"files": [{"path": "a.parquet", "size_bytes": 1, "sha256": "0" * 64}]}),
        (f"/datasets/{dataset}/versions/1/subjects", {"rows": [{"record_id": "r000", "identifiers": [{"type": "customer_id", "value": "x"}]}]}),
    ]  # fmt: skip
    for path, body in posts:
        assert stranger.post(path, body).status_code == 404, path
    assert stranger.post(f"/deletion-requests/{request['id']}/decision", {"outcome": "approve"}, If_Match='"1"').status_code == 404
    for listing in ("/deletion-requests", "/jobs", "/models", "/datasets"):
        assert stranger.get(listing).json()["items"] == [], listing
    assert stranger.get(f"/jobs?request={request['id']}").json()["items"] == []
    assert desk.get(f"/deletion-requests/{request['id']}").json()["status"] == "approved"


def test_a_key_opens_only_what_its_scopes_name(api: Api) -> None:
    reader = Desk(api, api.key(api.world.tenant, frozenset({"requests:read"})))
    assert reader.get("/deletion-requests").status_code == 200
    refused = reader.create()
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient-scope")
    assert reader.get("/jobs").status_code == 403
    assert reader.get("/methods").status_code == 200


def test_pages_lead_through_the_whole_listing_once(desk: Desk) -> None:
    made = [desk.create({"kind": "records", "dataset": "digits", "ids": [f"r{number:03}"]}).json()["id"] for number in range(5)]
    seen, path = [], "/deletion-requests?limit=2"
    while path:
        answer = desk.get(path)
        seen += [one["id"] for one in answer.json()["items"]]
        link = answer.headers.get("link")
        assert (link is None) == (answer.json()["next_cursor"] is None)
        path = link and link.split(">")[0].removeprefix("</v1")
    assert seen == list(reversed(made))
    cursor = desk.get("/deletion-requests?limit=2").json()["next_cursor"]
    for moved in (f"/deletion-requests?limit=2&status=approved&cursor={cursor}", f"/jobs?cursor={cursor}", f"/models?cursor={cursor}"):
        assert (desk.get(moved).status_code, desk.get(moved).json()["code"]) == (422, "invalid-cursor")
    assert len(desk.get("/deletion-requests?status=approved&model=reader&overdue=false&regulation=gdpr").json()["items"]) == 5
    assert desk.get("/deletion-requests?status=denied").json()["items"] == []


def test_a_second_person_decides_on_what_waits_for_review(api: Api, desk: Desk) -> None:
    made = desk.post("/deletion-requests", {"scope": CLASS, "policy": "gdpr-default"})
    assert made.json()["status"] == "pending_review"
    path = f"/deletion-requests/{made.json()['id']}"
    other = Desk(api, api.key(api.world.tenant, client="second"))
    tag = other.get(path).headers["etag"]
    assert other.post(f"{path}/decision", {"outcome": "approve"}).status_code == 428
    assert other.post(f"{path}/decision", {"outcome": "approve"}, If_Match='"7"').status_code == 412
    approved = other.post(f"{path}/decision", {"outcome": "approve", "note": "verified"}, If_Match=tag)
    assert (approved.status_code, approved.json()["status"], approved.json()["decided_by"]) == (200, "approved", "second")
    assert other.post(f"{path}/decision", {"outcome": "approve"}, If_Match=tag).status_code == 412


def test_events_are_listed_and_streamed_to_the_end(api: Api, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.05)
    request = desk.create().json()
    path = f"/deletion-requests/{request['id']}/events"
    listed = desk.get(path).json()
    assert listed["items"][0]["type"] == "request.received"
    assert desk.get(f"{path}?after={listed['next_after']}").json() == {"items": [], "next_after": None}
    cancel = threading.Timer(0.5, lambda: desk.post(f"/deletion-requests/{request['id']}/cancellation", {"by": "subject"}))
    cancel.start()
    frames = [frame for frame in desk.get(path, Accept="text/event-stream").text.split("\n\n") if frame]
    cancel.join()
    assert frames[0] == "retry: 3000"
    told = [json.loads(line.removeprefix("data: ")) for frame in frames[1:] for line in frame.split("\n") if line.startswith("data: ")]
    assert told[: len(listed["items"])] == listed["items"]
    assert told[-1]["type"] == "request.cancelled"
    last = frames[-1].split("\n")
    assert f"id: {told[-1]['id']}" in last
    resumed = desk.get(path, Accept="text/event-stream", Last_Event_ID=str(told[-2]["id"])).text
    assert [line for line in resumed.split("\n") if line.startswith("id: ")] == [f"id: {told[-1]['id']}"]
    garbage = desk.get(path, Accept="text/event-stream", Last_Event_ID="x' OR 1").text
    assert garbage.count("data: ") == len(told)
    assert api.app.state.streams._open == {}


def test_a_principal_has_at_most_five_streams(api: Api, desk: Desk) -> None:
    request = desk.create().json()
    who = (api.world.tenant, "desk")
    api.app.state.streams._open[who] = 5
    refused = desk.get(f"/deletion-requests/{request['id']}/events", Accept="text/event-stream")
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "rate-limited", "30")
    assert Desk(api, api.key(api.world.tenant)).get(f"/deletion-requests/{request['id']}/events").status_code == 200


def check_pages(api: Api, desk: Desk, request: str, report_id: UUID) -> None:
    """The report as HTML and PDF: not ready, then stored once, then served by what Accept prefers."""
    path = f"/deletion-requests/{request}"
    making = desk.get(f"{path}/audit-report", Accept="application/pdf")
    assert (making.status_code, making.json()["code"], making.headers["retry-after"]) == (404, "audit-report-not-ready", "1")
    pages = {"html": b"<p>as a page</p>", "pdf": b"%PDF"}
    with unit_of_work(api.ledger.engine("lethe_control"), tenant=api.world.tenant) as session:
        keep_renderings(session, report_id, tenant_id=api.world.tenant, forms=pages)
        keep_renderings(session, report_id, tenant_id=api.world.tenant, forms={"html": b"another"})
    told = {"text/html": ("html", "inline"), "application/pdf": ("pdf", "attachment")}
    for accept, media_type in (
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/pdf, text/html;q=0.5", "application/pdf"),
    ):
        form, shown_as = told[media_type]
        got = desk.get(f"{path}/audit-report", Accept=accept)
        assert (got.content, got.headers["content-type"].split(";")[0], got.headers["vary"]) == (pages[form], media_type, "Accept")
        assert got.headers["etag"] == f'"sha256:{hashlib.sha256(pages[form]).hexdigest()}"'
        assert got.headers["content-disposition"] == f'{shown_as}; filename="audit-report-{request}-1.{form}"'
        assert desk.get(f"{path}/audit-report", Accept=accept, If_None_Match=got.headers["etag"]).status_code == 304
        assert desk.get(f"{path}/audit-report", Accept="application/json", If_None_Match=got.headers["etag"]).status_code == 200
    refused = desk.get(f"{path}/audit-report", Accept="image/png, application/json;q=0")
    assert (refused.status_code, refused.json()["code"], refused.headers["vary"]) == (406, "not-acceptable", "Accept")
    assert desk.get(f"{path}/audit-reports/1/figures").json() == {"items": []}
    assert desk.get(f"{path}/audit-reports/2/figures").status_code == 404
    assert "report.rendered" in [event["type"] for event in desk.get(f"{path}/events").json()["items"]]


def test_a_finished_request_shows_versions_jobs_and_a_report_with_its_digest(api: Api, desk: Desk) -> None:
    world = api.world
    request = desk.create().json()
    path = f"/deletion-requests/{request['id']}"
    early = desk.get(f"{path}/audit-report")
    assert (early.status_code, early.json()["code"]) == (404, "audit-report-not-ready")
    world.advance(uuid_of(request["id"]))
    (job,) = desk.get(f"/jobs?request={request['id']}&limit=1&sort=-created_at").json()["items"]
    assert (job["method"], job["state"], job["done"], job["queue_position"] is not None) == ("retrain", "queued", False, True)
    assert job["choice"]["reason"].startswith("too few records for an equivalence test: 2, and within 0.05")
    world.forget(uuid_of(job["id"]), ["r006", "r007"])
    statement = {"b": 1, "a": ["é", "1.5"]}
    canonical = '{"a":["é","1.5"],"b":1}'.encode()
    digest = hashlib.sha256(canonical).hexdigest()
    with unit_of_work(api.ledger.engine("lethe_control"), tenant=world.tenant) as session:
        facts = {"tenant_id": world.tenant, "object_id": uuid_of(request["id"])}
        event = audit_log.record(session, **facts, type="report.stored", body={"revision": 1, "digest": digest})
        facts = {"report_id": uuid7(CLOCK), "tenant_id": world.tenant, "request_id": uuid_of(request["id"])}
        audit.insert_report(session, **facts, digest=digest, statement=statement, event_id=event)
    assert world.advance(uuid_of(request["id"])) == "in_progress"
    unsigned = desk.get(f"{path}/audit-report")
    assert (unsigned.status_code, unsigned.json()["code"]) == (404, "audit-report-not-ready")
    assert desk.get(f"{path}/audit-reports").json()["items"] == []
    settle(signer_over(api.ledger))
    world.advance(uuid_of(request["id"]))

    done = desk.get(path).json()
    assert (done["status"], done["done"], done["error"]) == ("completed", True, None)
    assert done["result"]["versions"][0]["version"] == 2
    assert done["result"]["audit_report"] == {"revision": 1, "digest": f"sha256:{digest}"}
    assert "retry-after" not in desk.get(path).headers
    assert desk.get(f"{path}/targets").json()["items"][0]["status"] == "published"
    finished = desk.get(f"/jobs/{job['id']}").json()
    assert (finished["state"], finished["done"], finished["error"]) == ("succeeded", True, None)
    assert finished["result"] is not None

    report = desk.get(f"{path}/audit-report", Accept="application/json")
    assert base64.b64decode(report.json()["envelope"]["payload"]) == canonical
    assert report.headers["etag"] == f'"sha256:{hashlib.sha256(report.content).hexdigest()}"'
    assert report.headers["content-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(report.content).digest()).decode()}:"
    assert desk.get(f"{path}/audit-report", If_None_Match=report.headers["etag"]).status_code == 304
    check_pages(api, desk, request["id"], facts["report_id"])
    assert desk.get(f"{path}/audit-reports").json()["items"][0]["digest"] == f"sha256:{digest}"
    revision = desk.get(f"{path}/audit-reports/1")
    assert (revision.content, revision.headers["cache-control"]) == (report.content, "private, immutable")
    assert desk.get(f"{path}/audit-reports/2").status_code == 404


def test_a_queued_job_can_be_cancelled_and_a_finished_one_cannot(desk: Desk) -> None:
    made = desk.post("/models/reader/training-runs", {"dataset": "digits", "dataset_version": 1, "recipe": {"epochs": 1}, "seed": 3}, "k")
    assert (made.status_code, made.headers["location"]) == (202, f"/v1/jobs/{made.json()['id']}")
    assert made.json()["kind"] == "train"
    assert desk.get("/models/reader/training-runs").json()["items"][0]["id"] == made.json()["id"]
    assert desk.get("/jobs?kind=train&state=queued&model=reader").json()["items"][0]["id"] == made.json()["id"]
    cancelled = desk.post(f"/jobs/{made.json()['id']}/cancellation", None)
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert desk.post(f"/jobs/{made.json()['id']}/cancellation", None).status_code == 409
    assert desk.get(f"/jobs/{made.json()['id']}/attempts").json() == {"items": [], "steps": []}
    assert desk.get(f"/jobs/{made.json()['id']}/events").json()["items"][0]["type"] == "job.queued"


def test_a_dataset_is_registered_uploaded_by_presigned_urls_and_completed(api: Api, desk: Desk) -> None:
    made = desk.post("/datasets", {"name": "faces", "adapter": "image", "subject_types": ["customer_id"]})
    assert (made.status_code, made.headers["location"]) == (201, f"/v1/datasets/{made.json()['id']}")
    taken = desk.post("/datasets", {"name": "faces", "adapter": "image"})
    assert (taken.status_code, taken.json()["code"]) == (409, "duplicate-name")
    assert desk.post("/datasets", {"name": "f2", "adapter": "os"}).json()["code"] == "unknown-method"
    content = b"PAR1"
    file = {"path": "train/a.parquet", "size_bytes": 4, "sha256": hashlib.sha256(content).hexdigest()}
    opened = desk.post("/datasets/faces/versions", {"files": [file]})
    (upload,) = opened.json()["uploads"]
    assert (opened.status_code, opened.json()["version"], opened.json()["status"], upload["method"]) == (201, 1, "pending", "PUT")
    assert httpx2.put(upload["url"], content=b"PAR2", headers=upload["headers"]).status_code >= 400
    assert httpx2.put(upload["url"], content=content, headers=upload["headers"]).status_code == 200
    assert b"".join(api.store.open(f"uploads/{uuid_of(opened.json()['id'])}/train/a.parquet")) == content
    complete = api.call("POST", "/datasets/faces/versions/1/complete", key=desk.key)
    assert (complete.status_code, complete.json()["status"]) == (202, "checking")
    assert desk.get("/datasets/faces/versions").json()["items"][0]["status"] == "checking"
    for bad in ("../a", "/a", "a//b", "a/../b", ".hidden", "a b", "a\\b", "x" * 300):
        assert desk.post("/datasets/faces/versions", {"files": [{**file, "path": bad}]}).status_code == 422, bad
    assert desk.post("/datasets/faces/versions", {"files": [file, file]}).status_code == 422
    assert desk.post("/datasets/faces/versions", {"files": [{**file, "size_bytes": 6 * 1024**3}]}).status_code == 422


def test_the_subject_index_takes_rows_and_counts_them(desk: Desk) -> None:
    rows = [{"record_id": "r050", "identifiers": [{"type": "customer_id", "value": "new-person"}]}]
    told = desk.post("/datasets/digits/versions/1/subjects", {"rows": rows})
    assert (told.status_code, told.json()) == (200, {"indexed": 1, "total": 21})
    assert desk.post("/datasets/digits/versions/1/subjects", {"rows": rows}).json() == {"indexed": 1, "total": 21}
    unknown = desk.post("/datasets/digits/versions/1/subjects", {"rows": [{**rows[0], "record_id": "secret-record"}]})
    assert (unknown.status_code, "secret-record" in unknown.text) == (422, False)
    assert desk.create({"kind": "subject", "identifiers": [{"type": "customer_id", "value": "new-person"}]}).json()["scope"]["records"] == 1
    assert desk.get("/datasets/digits/versions/1/models").json()["items"][0]["model"] == "reader"


def test_a_checkpoint_is_redirected_to_streamed_and_gone_when_destroyed(api: Api, desk: Desk) -> None:
    content = bytes(range(256)) * 9000
    version = desk.get("/models/reader/versions/1").json()
    digest = version["manifest"]["files"][0]["sha256"]
    api.store.put_bytes(blob_key(digest), content)
    path = "/models/reader/versions/1/files/model.safetensors"
    redirect = desk.get(path)
    assert (redirect.status_code, redirect.headers["cache-control"]) == (307, "no-store")
    assert httpx2.get(redirect.headers["location"]).content == content
    head = api.call("HEAD", path, key=desk.key)
    assert (head.status_code, head.headers["etag"], head.headers["accept-ranges"]) == (200, f'"sha256:{digest}"', "bytes")
    part = desk.get(f"{path}?delivery=stream", Range="bytes=10-19", If_Range=head.headers["etag"])
    assert (part.status_code, part.content) == (206, content[10:20]) or int(head.headers["content-length"]) != len(content)
    assert desk.get(path, If_None_Match=head.headers["etag"]).status_code == 304
    assert desk.get("/models/reader/versions/1/files/other").status_code == 404
    assert desk.get("/models/reader/versions/2/files/model.safetensors").status_code == 404
    reader = Desk(api, api.key(api.world.tenant, frozenset({"models:read"})))
    assert reader.get(path).status_code == 403


def test_a_model_is_registered_uploaded_and_named(api: Api, desk: Desk) -> None:
    made = desk.post("/models", {"name": "faces", "task": "classification", "architecture": "mlp"})
    assert (made.status_code, made.headers["location"], made.json()["current_version"]) == (201, f"/v1/models/{made.json()['id']}", None)
    assert desk.post("/models", {"name": "x", "task": "nothing", "architecture": "mlp"}).status_code == 422
    file = {"path": "model.safetensors", "size_bytes": 8, "sha256": hashlib.sha256(b"weights!").hexdigest()}
    opened = desk.post("/models/faces/versions", {"files": [file], "trained_on": [{"dataset": "digits", "version": 1}]})
    assert (opened.status_code, opened.json()["number"], opened.json()["status"]) == (201, 1, "pending")
    assert httpx2.put(opened.json()["uploads"][0]["url"], content=b"weights!").status_code == 200
    not_ready = desk.get("/models/faces/versions/1/files/model.safetensors")
    assert (not_ready.status_code, not_ready.json()["code"]) == (409, "version-not-ready")
    assert desk.post("/models/faces/versions/1/complete", {"manifest": {"files": [file]}}).status_code == 202
    assert desk.get("/models/faces/versions").json()["items"][0]["status"] == "checking"

    put = {"version": 1}
    created = api.call("PUT", "/models/reader/aliases/live", put, key=desk.key, If_None_Match="*")
    assert (created.status_code, created.json()["version"]) == (200, 1)
    again = api.call("PUT", "/models/reader/aliases/live", put, key=desk.key, If_None_Match="*")
    assert (again.status_code, again.json()["code"]) == (409, "alias-in-use")
    assert api.call("PUT", "/models/reader/aliases/live", put, key=desk.key).status_code == 428
    assert api.call("PUT", "/models/reader/aliases/live", put, key=desk.key, If_Match='"99"').status_code == 412
    assert api.call("PUT", "/models/reader/aliases/live", {"version": 9}, key=desk.key, If_Match=created.headers["etag"]).status_code == 404
    assert desk.get("/models/reader/at?time=2090-01-01T00:00:00Z&alias=live").json()["number"] == 1
    assert desk.get("/models/reader/at?time=1990-01-01T00:00:00Z&alias=live").status_code == 404
    assert desk.get("/models/reader/versions/1/lineage").json()["items"][0]["depth"] == 0
    assert api.call("DELETE", "/models/reader/aliases/live", key=desk.key, If_Match=created.headers["etag"]).status_code == 204
    assert desk.get("/models/reader/aliases/live").status_code == 404


def test_the_catalogue_lists_what_workers_published(desk: Desk) -> None:
    listed = desk.get("/methods")
    assert [one["name"] for one in listed.json()["items"]] == ["bad_teacher", "retrain", "unsir"]
    assert all(one["available"] for one in listed.json()["items"])
    assert desk.get("/methods", If_None_Match=listed.headers["etag"]).status_code == 304
    assert desk.get("/methods/unsir").json()["parameters"]["properties"]["epochs"]["minimum"] == 1
    assert desk.get("/methods/nothing").status_code == 404
    assert {desk.get(f"/{kind}").status_code for kind in ("metrics", "attacks", "tasks", "architectures", "dataset-adapters")} == {200}


def test_the_gateway_is_ready_and_counts_its_answers_by_route(api: Api, desk: Desk) -> None:
    ready = api.http.get("/readyz")
    checks = {"database": "ok", "migration": "ok", "store": "ok"}
    assert (ready.status_code, ready.json()["checks"]) == (503, {**checks, "signer": "no signer was seen"})
    signer_over(api.ledger).turn()
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]) == (200, {**checks, "signer": "ok"})
    request = desk.create().json()
    desk.get(f"/deletion-requests/{request['id']}")
    text = api.http.get("/metrics").text
    assert 'route="/v1/deletion-requests/{request_id}"' in text
    assert request["id"] not in text


def test_an_event_that_waits_for_its_leaf_for_more_than_ten_seconds_makes_the_gateway_unready(api: Api, desk: Desk) -> None:
    signer_over(api.ledger).turn()
    desk.create()
    with unit_of_work(api.ledger.engine("lethe_signer"), tenant=None) as other:
        assert leaves.alone(other)  # so that no signer can make leaves
        for waited_s, expected in ((8, (200, "ok")), (11, (503, "log-behind"))):
            age_waiting_events(api.ledger, waited_s)
            signer_over(api.ledger).turn()
            ready = api.http.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["signer"]) == expected
    signer_over(api.ledger).turn()
    assert api.http.get("/readyz").status_code == 200


def age_waiting_events(ledger: Any, age_s: int) -> None:
    """Let the events without a leaf be this old, past every trigger."""
    with psycopg.connect(ledger.url("superuser").replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        done = connection.execute("UPDATE audit_event SET at = clock_timestamp() - make_interval(secs => %s) WHERE seq IS NULL", (age_s,))
        assert done.rowcount


def test_a_database_that_does_not_answer_is_503_and_the_gateway_is_not_ready(api: Api, desk: Desk, postgres: Any) -> None:
    assert desk.get("/models").status_code == 200
    with postgres.server.admin() as connection:
        connection.execute(f"ALTER DATABASE {api.ledger.name} WITH ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (api.ledger.name,))
    refused = desk.create()
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "database-unavailable", "5")
    assert (api.http.get("/readyz").status_code, api.http.get("/healthz").status_code) == (503, 200)


def test_the_yardstick_of_the_gateway_bench_writes_the_rows_of_a_request_as_the_gateway_may(desk: Desk) -> None:
    import asyncio

    import asyncpg

    from bench.bare_app import Rows

    made = desk.create(ik="yardstick").json()["id"]
    ledger = desk.api.ledger

    async def again() -> list[str]:
        rows = Rows()
        reader = await asyncpg.connect(ledger.url("superuser").replace("+psycopg", ""))
        await rows.read(reader, uuid_of(made), only_request=False)
        await reader.close()
        writer = await asyncpg.connect(ledger.url("lethe_gateway").replace("+psycopg", ""))
        async with writer.transaction():
            await writer.execute("SELECT set_config('app.tenant', $1, true)", rows.tenant)
            await rows.write(writer)
        await writer.close()
        return [table for table, *_ in rows.statements]

    assert {"deletion_request", "target", "audit_event", "audit_payload", "idempotency"} <= set(asyncio.run(again()))
    assert len(desk.get("/deletion-requests").json()["items"]) == 2
