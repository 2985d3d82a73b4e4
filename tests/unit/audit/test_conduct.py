"""What was done about a request beside its jobs, in the statement and on its pages: pauses, extension, destruction, holds, recipients."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from services.audit import report, schema
from services.audit.page import page_of
from services.audit.rendering import rendered
from services.audit.runs import Conduct, Told
from services.db.destruction import Fate
from services.db.tables import ClockPause, DeletionRequest, Model, ModelVersion, Policy, RecipientNotification, Target
from tests.unit.audit.test_report import AT, ID

DAY = timedelta(days=1)
HOLD = UUID(int=9)

DATA = (
    Fate(UUID(int=4), "people", 1, "purged", AT + 60 * DAY, AT + 61 * DAY, "a1" * 32),
    Fate(UUID(int=5), "people", 2, "retired", AT + 65 * DAY, None, None, [HOLD]),
)
CANDIDATES = (
    Fate(UUID(int=6), "scrub", 1, "destroyed", None, AT + 47 * DAY, "b2" * 32),
    Fate(UUID(int=7), "ssd", 2, "quarantined", AT + 90 * DAY, None, None),
)


def statement(**columns: Any) -> dict[str, Any]:
    """A request that was paused, extended and closed; of its two old versions one is destroyed and one is under a hold."""
    dates = {"received_at": AT, "original_due_at": AT + 30 * DAY, "due_at": AT + 92 * DAY, "closed_at": AT + 40 * DAY}
    extension = {"extended_at": AT + 20 * DAY, "extended_by": "desk", "extension_reason": "many records"}
    request = DeletionRequest(
        id=ID,
        regulation="gdpr",
        scope={"kind": "subject", "records": 5},
        identity={"mode": "asserted_by_controller"},
        **(dates | extension | columns),
    )
    gone = ModelVersion(id=UUID(int=1), number=1, status="destroyed", fresh_start=False, destroyed_at=AT + 70 * DAY, destroy_by=AT + 70 * DAY)
    kept = ModelVersion(id=UUID(int=2), number=2, status="quarantined", fresh_start=False, destroy_by=AT + 70 * DAY)
    new = ModelVersion(id=UUID(int=3), number=3, status="ready", fresh_start=False, manifest_digest="ab" * 32)
    target = Target(id=ID, state="published", outcome="unlearned", records=5, records_commitment="cd" * 32)
    subject = report.Subject(
        target, Model(id=ID, name="faces"), kept, new, [gone, kept], {gone.id: "ef" * 32}, {kept.id: [HOLD]}, data=DATA, candidates=CANDIDATES
    )
    pause = ClockPause(from_at=AT + DAY, to_at=AT + 3 * DAY, reason="a second proof")
    letter = RecipientNotification(recipient="Acme Analytics", channel="letter", sent_at=AT + 41 * DAY, outcome="confirmed")
    conduct = Conduct([pause], [Told(letter, "faces", 1)])
    policy = Policy(id=ID, key="demo", version=1)
    return report.build(request, [subject], [], policy, tenant_ref="aa" * 32, revision=2, at=AT + 71 * DAY, supersedes="bb" * 32, conduct=conduct)


def test_the_clock_tells_of_pauses_and_the_extension_and_a_later_revision_keeps_the_day_of_the_end() -> None:
    clock = statement()["predicate"]["clock"]
    assert clock["pauses"] == [{"from": (AT + DAY).isoformat(), "to": (AT + 3 * DAY).isoformat(), "reason": "a second proof"}]
    assert clock["extensions"] == [
        {"at": (AT + 20 * DAY).isoformat(), "by": "desk", "reason": "many records", "original_due": (AT + 30 * DAY).isoformat()}
    ]
    assert (clock["completed"], clock["on_time"]) == ((AT + 40 * DAY).isoformat(), True)
    late = statement(due_at=AT + 39 * DAY, extended_at=None, extension_reason=None)["predicate"]["clock"]
    assert (late["extensions"], late["on_time"]) == ([], False)


def test_an_old_version_comes_with_its_certificate_or_with_the_hold_that_keeps_it() -> None:
    gone, kept = statement()["predicate"]["artifacts"][0]["superseded"]
    assert (gone["disposition"], gone["destroyed_at"], gone["certificate"], gone["holds"]) == (
        "destroyed",
        (AT + 70 * DAY).isoformat(),
        "ef" * 32,
        [],
    )
    assert (kept["disposition"], kept["destroyed_at"], kept["certificate"], kept["holds"]) == ("quarantined", None, None, [f"hold_{HOLD.hex}"])
    codes = {entry["code"] for entry in statement()["predicate"]["limitations"]}
    assert ("storage" in codes, "storage_reclaim" in codes) == (True, False)  # one of them is not destroyed


def test_data_and_candidates_come_with_their_fates_and_the_next_review_is_the_first_date_of_all() -> None:
    told = statement()["predicate"]
    artifacts = told["artifacts"][0]
    assert [(one["dataset"], one["version"], one["disposition"], one["certificate"], one["holds"]) for one in artifacts["datasets"]] == [
        ("people", 1, "purged", "a1" * 32, []),
        ("people", 2, "retired", None, [f"hold_{HOLD.hex}"]),
    ]
    assert [(one["job"], one["method"], one["rung"], one["disposition"]) for one in artifacts["candidates"]] == [
        (f"job_{UUID(int=6).hex}", "scrub", 1, "destroyed"),
        (f"job_{UUID(int=7).hex}", "ssd", 2, "quarantined"),
    ]
    assert told["next_review"] == (AT + 65 * DAY).isoformat()


def test_a_statement_from_before_that_tells_of_no_data_stays_valid_and_is_printed() -> None:
    told = statement()
    for name in ("datasets", "candidates"):
        del told["predicate"]["artifacts"][0][name]
    schema.Statement.model_validate(told)
    page = page_of(told, digest=report.digest(told), figures={})
    assert [row[1] for row in page["versions"]] == ["1", "2", "3"]


def test_the_statement_is_of_the_closed_form() -> None:
    told = statement()
    assert schema.Statement.model_validate(told).predicate.recipients[0].recipient == "Acme Analytics"
    told["predicate"]["clock"]["pauses"][0]["by"] = "somebody"
    with pytest.raises(ValidationError):
        schema.Statement.model_validate(told)


def test_the_pages_print_all_of_it() -> None:
    told = statement()
    page = page_of(told, digest=report.digest(told), figures={})
    assert ["Extended", "on 21 March 2026, 00:00 UTC, from 31 March 2026, 00:00 UTC: many records"] in page["asked"]
    assert ["Clock paused", "from 2 March 2026, 00:00 UTC to 4 March 2026, 00:00 UTC: a second proof"] in page["asked"]
    assert page["recipients"] == [["Acme Analytics", "faces version 1", "letter, 11 April 2026, 00:00 UTC", "confirmed"]]
    fates = {row[1]: row[2] for row in page["versions"] if row[0] == "faces"}
    data = {row[1]: row[2] for row in page["versions"] if row[0] == "dataset people"}
    assert data["1"] == f"destroyed on 1 May 2026, 00:00 UTC; certificate {'a1' * 32}"
    assert data["2"].startswith("superseded: nothing learns from it any more, to be destroyed on 5 May 2026")
    assert data["2"].endswith(f"under legal hold hold_{HOLD.hex}")
    assert fates["attempt 1"].startswith("did not pass; destroyed on 17 April 2026")
    assert fates["attempt 2"].startswith("did not pass; in quarantine")
    assert fates["1"] == f"destroyed on 10 May 2026, 00:00 UTC; certificate {'ef' * 32}"
    assert f"under legal hold hold_{HOLD.hex}" in fates["2"]
    forms = {one.form: one.body for one in rendered(told, digest=report.digest(told), figures={})}
    assert b"Acme Analytics" in forms["html"]
    assert b"Recipients of earlier versions" in forms["html"]
    assert forms["pdf"].startswith(b"%PDF")
