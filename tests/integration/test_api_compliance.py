"""The compliance record over HTTP: destroying, certificates, clocks, holds, recipients, metrics and the record of processing."""

import csv
import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rfc8785
from sqlalchemy import text

from control.purge import Purge
from models_store.memory import MemoryStore
from tests.integration.conftest import Ledger
from tests.integration.test_api_requests import Api, Desk, uuid_of
from tests.integration.test_ledger_requests import CLOCK, KEYS, World

PERIOD = "from=2026-01-01T00:00:00Z&to=2199-01-01T00:00:00Z"


class Office(Desk):
    """A caller with every scope, who asks for another person each time."""

    persons = iter(range(10))

    def ask(self, **members: Any) -> tuple[dict[str, Any], list[str]]:
        """Create a request for the next person; return it, and the ids of their records."""
        number = next(self.persons)
        scope = {"kind": "subject", "identifiers": [{"type": "customer_id", "value": f"p{number}"}]}
        made = self.create(scope, **members)
        assert made.status_code == 202, made.text
        return made.json(), [f"r{2 * number:03}", f"r{2 * number + 1:03}"]


@pytest.fixture(scope="module")
def api(postgres: Any, object_store_server: Any) -> Iterator[Api]:
    ledger = Ledger(postgres)
    made = Api(ledger, World(ledger), object_store_server)
    with made.http:
        yield made
    ledger.close()


@pytest.fixture(scope="module")
def desk(api: Api) -> Office:
    return Office(api, api.key(api.world.tenant, client="desk"))


def delete(desk: Desk, path: str) -> Any:
    return desk.api.call("DELETE", path, key=desk.key)


def test_a_version_is_destroyed_on_request_and_its_certificate_can_be_checked(desk: Office) -> None:
    world = desk.api.world
    refused = delete(desk, "/models/reader/versions/1")
    assert (refused.status_code, refused.json()["code"]) == (409, "version-in-use")
    world.train("reader", 1)
    asked = delete(desk, "/models/reader/versions/1")
    assert (asked.status_code, asked.json()["kind"], asked.json()["allowed"]) == (202, "purge", [])
    assert asked.headers["location"] == f"/v1/jobs/{asked.json()['id']}"
    place = "/models/reader/versions/1/destruction-certificate"
    assert (desk.get(place).status_code, desk.get(place).json()["code"]) == (404, "certificate-not-ready")
    cancel = desk.post(f"/jobs/{asked.json()['id']}/cancellation", {})
    assert cancel.status_code == 409

    Purge(world.ledger.engine("lethe_control"), MemoryStore(versioned=True), KEYS, clock=CLOCK).turn()

    body = desk.get(place).json()
    assert body["digest"] == f"sha256:{hashlib.sha256(rfc8785.dumps(body['document'])).hexdigest()}"
    assert body["log"]["commitment"] == f"sha256:{hashlib.sha256(rfc8785.dumps(body['log']['opening'])).hexdigest()}"
    assert f"sha256:{body['log']['opening']['body']['certificate']}" == body["digest"]
    assert desk.get(f"/jobs/{asked.json()['id']}").json()["state"] == "succeeded"
    gone = desk.get("/models/reader/versions/1/files/model.safetensors")
    assert (gone.status_code, gone.json()["code"]) == (410, "checkpoint-destroyed")
    assert delete(desk, "/models/reader/versions/1").status_code == 410
    assert delete(desk, "/models/reader/versions/9").status_code == 404


def test_a_caller_without_the_right_destroys_nothing_and_releases_no_hold(desk: Office) -> None:
    weak = Desk(desk.api, desk.api.key(desk.api.world.tenant, frozenset({"models:write", "models:read", "holds:read"})))
    assert delete(weak, "/models/reader/versions/1").json()["code"] == "insufficient-scope"
    assert weak.post("/legal-holds", {"scope": "model", "model": "reader", "reason": "x"}).status_code == 403
    assert weak.get("/legal-holds").status_code == 200


def test_the_clock_is_extended_paused_and_acknowledged(desk: Office) -> None:
    request, _ = desk.ask(policy="gdpr-default")
    place = f"/deletion-requests/{request['id']}"
    paused = desk.post(f"{place}/pauses", {"reason": "a second proof was asked for"}).json()
    assert (paused["clock"]["paused"], paused["version"]) == (True, 2)
    pause = paused["clock"]["pauses"][0]["id"]
    ended = desk.post(f"{place}/pauses/{pause}/end", None)
    assert (ended.status_code, ended.json()["clock"]["paused"]) == (200, False)
    again = desk.post(f"{place}/pauses/{pause}/end", None)
    assert (again.status_code, again.json()["code"]) == (409, "clock-refused")
    extended = desk.post(f"{place}/extension", {"reason": "many records"}).json()
    assert extended["clock"]["extension_reason"] == "many records"
    assert extended["due_at"] > extended["original_due_at"]
    twice = desk.post(f"{place}/extension", {"reason": "many records"})
    assert (twice.status_code, twice.json()["code"]) == (409, "extension-not-allowed")
    assert desk.post(f"{place}/extension", {}).status_code == 422
    told = desk.post(f"{place}/acknowledgement", None)
    assert (told.status_code, told.json()["code"]) == (409, "clock-refused")
    ccpa = desk.create({"kind": "class_labels", "dataset": "digits", "labels": ["1"]}, regulation="ccpa").json()
    assert ccpa["acknowledged_at"] is None
    assert desk.post(f"/deletion-requests/{ccpa['id']}/acknowledgement", None).json()["acknowledged_at"] is not None
    names = [event["type"] for event in desk.get(f"{place}/events").json()["items"]]
    assert [name for name in names if name.startswith("clock.")] == ["clock.paused", "clock.resumed", "clock.extended"]


def test_a_hold_is_placed_listed_and_released_with_its_etag(desk: Office) -> None:
    request, records = desk.ask()
    person = f"p{int(records[0][1:]) // 2}"
    identifier = {"type": "customer_id", "value": person}
    made = desk.post("/legal-holds", {"scope": "subject", "identifier": identifier, "reason": "a court asked"})
    assert (made.status_code, made.json()["status"], made.json()["over"], made.json()["records"]) == (201, "standing", None, 2)
    assert made.json()["requests"] == [{"id": request["id"], "status": "on_hold"}]
    assert f'"{person}"' not in made.text
    place = made.headers["location"].removeprefix("/v1")
    read = desk.get(place)
    assert desk.post(f"{place}/release", {"reason": "over"}).status_code == 428
    assert desk.post(f"{place}/release", {"reason": "over"}, If_Match='"2-x"').status_code == 412
    done = desk.post(f"{place}/release", {"reason": "over"}, If_Match=read.headers["etag"])
    assert (done.status_code, done.json()["status"], done.json()["release_reason"]) == (200, "released", "over")
    assert [one["id"] for one in desk.get("/legal-holds?status=released").json()["items"]] == [made.json()["id"]]
    assert desk.get("/legal-holds?status=standing").json()["items"] == []
    assert desk.get(f"/deletion-requests/{request['id']}").json()["status"] == "approved"
    desk.post(f"/deletion-requests/{request['id']}/cancellation", {"by": "subject"})
    both = {"scope": "model", "model": "reader", "dataset": "digits", "reason": "x"}
    assert desk.post("/legal-holds", both).status_code == 422
    assert desk.get(f"/legal-holds/hold_{'0' * 32}").status_code == 404


def test_a_refusal_under_the_gdpr_gives_reason_complaint_and_court(desk: Office) -> None:
    request, _ = desk.ask(policy="gdpr-default", received_at="2026-04-01T00:00:00Z")
    lawyer = Desk(desk.api, desk.api.key(desk.api.world.tenant, client="lawyer"))
    place, etag = f"/deletion-requests/{request['id']}/decision", '"1-x"'
    refused = lawyer.post(place, {"outcome": "deny", "exemption": "legal_claims"}, If_Match=etag)
    assert (refused.status_code, [one["pointer"] for one in refused.json()["errors"]]) == (422, ["/note", "/complaint_told", "/court_told"])
    whole = {"outcome": "deny", "exemption": "legal_claims", "note": "kept for a claim", "complaint_told": True, "court_told": True}
    assert lawyer.post(place, whole, If_Match=etag).json()["status"] == "denied"
    (item,) = lawyer.get("/processing-record?from=2026-04-01T00:00:00Z&to=2026-04-02T00:00:00Z").json()["items"]
    assert (item["status"], item["exemption"], item["reason_given"], item["complaint_told"], item["court_told"]) == (
        "denied", "legal_claims", True, True, True,
    )  # fmt: skip


def finished(desk: Office, **members: Any) -> tuple[dict[str, Any], int]:
    """Carry out a request; return it with the number of the version that it superseded. The next one is published, the report stored."""
    world = desk.api.world
    old = desk.get("/models/reader").json()["current_version"]
    assert desk.get(f"/models/reader/versions/{old}/files/model.safetensors").status_code == 307
    request, records = desk.ask(**members)
    number = uuid_of(request["id"])
    world.advance(number)
    world.forget(world.jobs(number)[0].id, records)
    world.report(number)
    assert world.advance(number) == "completed"
    return request, old


def test_recipients_of_a_superseded_version_are_found_told_and_recorded(desk: Office) -> None:
    request, old = finished(desk)
    place = f"/deletion-requests/{request['id']}/recipients"
    found = desk.get(place).json()
    assert [(one["model"], one["version"], one["by"], one["times"]) for one in found["handed_out"]] == [("reader", old, "desk", 1)]
    form = {"model": "reader", "version": old, "recipient": "Acme Analytics", "channel": "letter", "sent_at": "2026-11-21T10:00:00Z"}
    made = desk.post(place, form)
    assert (made.status_code, made.json()["recipient"], made.json()["outcome"]) == (201, "Acme Analytics", "sent")
    assert desk.get(place).json()["items"] == [made.json()]
    assert desk.api.world.topics(uuid_of(request["id"]))[-1] == "report.build"
    for wrong in ({"version": old + 1}, {"sent_at": "2190-01-01T00:00:00Z"}, {"recipient": "jane@example.org"}, {"outcome": "ignored"}):
        assert desk.post(place, form | wrong).status_code == 422, wrong


def test_a_period_is_counted_and_exported_without_a_word_about_anybody(desk: Office) -> None:
    period = "from=2026-01-01T00:00:00Z&to=2026-02-01T00:00:00Z"
    before = desk.get(f"/compliance-metrics?{period}").json()
    assert (before["received"], before["median_days"]) == (0, None)
    late = "2026-01-05T00:00:00Z"
    request, old = finished(desk, received_at=late)
    desk.ask(regulation="ccpa", external_id="ticket-jane", received_at="2026-01-04T00:00:00Z")
    counted = desk.get(f"/compliance-metrics?{period}").json()
    assert (counted["received"], counted["complied"], counted["open"], counted["overdue"]) == (2, 1, 1, 1)
    days = (datetime.now(UTC) - datetime.fromisoformat(late)) / timedelta(days=1)
    assert float(counted["median_days"]) == float(counted["mean_days"]) == pytest.approx(days, abs=0.02)
    assert desk.get(f"/compliance-metrics?{period}&regulation=ccpa").json()["received"] == 1
    empty = desk.get("/compliance-metrics?from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z")
    assert (empty.status_code, empty.json()["errors"][0]["pointer"]) == (422, "/query/to")

    whole = desk.get(f"/processing-record?{period}")
    ccpa, done = whole.json()["items"]
    assert (done["request"], done["status"], done["on_time"]) == (request["id"], "completed", False)
    shown = [(one["version"], one["disposition"]) for one in done["versions"]]
    assert shown[-2:] == [(old, "quarantined"), (old + 1, "published")]
    assert (ccpa["regulation"], ccpa["closed_at"], ccpa["on_time"]) == ("ccpa", None, None)
    assert "jane" not in whole.text
    table = desk.get(f"/processing-record?{period}", Accept="text/csv")
    assert table.headers["content-type"].startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(table.text)))
    assert [line["request"] for line in lines] == [ccpa["request"], done["request"]]
    assert lines[1]["versions"].endswith(f"reader@{old} quarantined; reader@{old + 1} published")


def test_the_numbers_of_a_period_are_the_mean_and_the_median_of_the_days_to_the_answer(desk: Office) -> None:
    world, start = desk.api.world, datetime(2026, 3, 1, tzinfo=UTC)
    for label, days in (("1", 1), ("2", 2), ("3", 9)):
        made = desk.create({"kind": "class_labels", "dataset": "digits", "labels": [label]}).json()
        world.sql(
            text("UPDATE deletion_request SET state = 'completed', received_at = :at, due_at = :due, closed_at = :end WHERE id = :id").bindparams(
                at=start, due=start + timedelta(days=30), end=start + timedelta(days=days), id=uuid_of(made["id"])
            )
        )
    found = desk.get("/compliance-metrics?from=2026-03-01T00:00:00Z&to=2026-03-02T00:00:00Z").json()
    assert (found["received"], found["complied"], found["median_days"], found["mean_days"]) == (3, 3, "2.00", "4.00")
    assert desk.get("/compliance-metrics?from=2026-03-02T00:00:00Z&to=2026-03-31T00:00:00Z").json()["received"] == 0


def test_another_tenant_sees_nothing_of_it(desk: Office) -> None:
    request, _ = desk.ask()
    hold = desk.post("/legal-holds", {"scope": "model", "model": "reader", "reason": "x"}).json()
    other = Desk(desk.api, desk.api.key(desk.api.ledger.tenant("other")))
    for path in (f"/legal-holds/{hold['id']}", f"/deletion-requests/{request['id']}/recipients", "/models/reader/versions/1/destruction-certificate"):
        assert other.get(path).status_code == 404
    assert other.get("/legal-holds").json()["items"] == []
    assert other.get(f"/processing-record?{PERIOD}").json()["items"] == []
    assert other.get(f"/compliance-metrics?{PERIOD}").json()["received"] == 0
    assert other.post(f"/legal-holds/{hold['id']}/release", {"reason": "x"}, If_Match='"1"').status_code == 404
