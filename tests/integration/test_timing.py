"""The clock of a request: extended once, paused while the person is in question, acknowledged."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from services.clock import FixedClock
from services.errors import ClockRefused, ExtensionNotAllowed, InvalidInput, NotFound
from services.jobs.steps.report import build_report
from services.requests import service as requests
from services.requests import timing
from services.requests.forms import Cancellation, Decision, NewRequest, RecordsScope, RequestFilters
from services.tenants.caller import SCOPES, Caller
from tests.integration.conftest import Ledger
from tests.integration.test_ledger_requests import CLOCK, KEYS, World

RECEIVED = datetime(2026, 11, 20, 9, 12, tzinfo=UTC)
DUE, EXTENDED = datetime(2026, 12, 21, 23, 59, 59, tzinfo=UTC), datetime(2027, 2, 22, 23, 59, 59, tzinfo=UTC)
DAY = timedelta(days=1)


class Desk:
    """A world whose requests came in on 20 November 2026, and a clock that the test moves."""

    def __init__(self, world: World) -> None:
        self.world, self.clock, self.records = world, FixedClock(RECEIVED + DAY), iter(range(100))

    def ask(self, **members: Any) -> UUID:
        """Ask for a record that no other request of the module names."""
        scope = RecordsScope("digits", (f"r{next(self.records):03}",))
        body = NewRequest(scope, **({"policy": "gdpr-default", "received_at": RECEIVED} | members))
        return self.do(requests.create, body, keys=KEYS).id

    def do(self, call: Any, *args: Any, **named: Any) -> Any:
        return self.world.run("lethe_gateway", call, *args, caller=self.world.caller, clock=self.clock, **named)

    def read(self, request_id: UUID) -> Any:
        return self.world.run("lethe_gateway", requests.read, request_id, clock=self.clock)

    def events(self, request_id: UUID) -> list[str]:
        rows = self.world.sql(
            text("SELECT e.type FROM audit_event e JOIN audit_payload p ON p.event_id = e.id WHERE p.object_id = :id ORDER BY e.id").bindparams(
                id=request_id
            ),
            "superuser",
        )
        return [row.type for row in rows if row.type.startswith("clock.")]


@pytest.fixture(scope="module")
def whole(postgres: Any) -> Iterator[Desk]:
    ledger = Ledger(postgres)
    yield Desk(World(ledger))
    ledger.close()


@pytest.fixture
def desk(whole: Desk) -> Desk:
    whole.clock.at = RECEIVED + DAY
    return whole


def test_a_request_is_extended_once_and_its_targets_and_jobs_go_by_the_new_date(desk: Desk) -> None:
    request = desk.ask(policy="demo")
    desk.world.advance(request)
    desk.do(timing.extend, request, "many records")
    view = desk.read(request)
    assert (view.due_at, view.original_due_at, view.extended_at, view.extension_reason) == (EXTENDED, DUE, desk.clock.at, "many records")
    assert [target.due_at for target in view.targets] == [EXTENDED]
    assert [job.due_at for job in desk.world.jobs(request)] == [EXTENDED]
    with pytest.raises(ExtensionNotAllowed, match="once already"):
        desk.do(timing.extend, request, "more")
    assert desk.events(request) == ["clock.extended"]


def test_after_the_original_due_date_and_after_the_end_nothing_is_extended(desk: Desk) -> None:
    late, closed = desk.ask(), desk.ask()
    desk.clock.at = DUE - timedelta(seconds=1)
    desk.do(requests.cancel, closed, Cancellation("subject"))
    with pytest.raises(ExtensionNotAllowed, match="closed"):
        desk.do(timing.extend, closed, "x")
    desk.clock.at = DUE
    with pytest.raises(ExtensionNotAllowed, match="has passed"):
        desk.do(timing.extend, late, "x")
    with pytest.raises(NotFound):
        desk.do(timing.extend, desk.world.tenant, "x")


@pytest.mark.parametrize(("regulation", "due"), [("ccpa", datetime(2027, 2, 18, 23, 59, 59, tzinfo=UTC)), ("gdpr", EXTENDED)])
def test_the_extension_is_that_of_the_regulation(desk: Desk, regulation: str, due: datetime) -> None:
    request = desk.ask(regulation=regulation)
    desk.do(timing.extend, request, "x")
    assert desk.read(request).due_at == due


def test_while_the_identity_is_in_question_the_clock_stands_and_goes_on_by_what_that_took(desk: Desk) -> None:
    request = desk.ask()
    before = desk.read(request).days_left
    pause = desk.do(timing.pause, request, "asked for a second proof")
    desk.clock.at += 3 * DAY
    stopped = desk.read(request)
    assert (stopped.clock_paused, stopped.days_left, stopped.due_at) == (True, before, DUE)
    with pytest.raises(ClockRefused, match="paused already"):
        desk.do(timing.pause, request, "again")
    lawyer = Caller(desk.world.tenant, "lawyer", SCOPES)
    approve = Decision("approve")
    with pytest.raises(ClockRefused, match="identity query is open"):
        desk.world.run("lethe_gateway", requests.decide, request, approve, expected_version=stopped.version, caller=lawyer, clock=desk.clock)

    desk.do(timing.resume, request, pause)
    view = desk.read(request)
    assert (view.clock_paused, view.due_at, view.days_left) == (False, DUE + 3 * DAY, before)
    assert [target.due_at for target in view.targets] == [DUE + 3 * DAY]
    assert [(one.from_at, one.to_at, one.reason) for one in view.pauses] == [(RECEIVED + DAY, RECEIVED + 4 * DAY, "asked for a second proof")]
    with pytest.raises(ClockRefused, match="has ended"):
        desk.do(timing.resume, request, pause)
    desk.do(timing.extend, request, "many records")
    assert desk.read(request).due_at == EXTENDED + 3 * DAY
    assert desk.events(request) == ["clock.paused", "clock.resumed", "clock.extended"]


def test_a_pause_moves_the_last_day_for_an_extension(desk: Desk) -> None:
    request = desk.ask()
    pause = desk.do(timing.pause, request, "x")
    desk.clock.at += 3 * DAY
    desk.do(timing.resume, request, pause)
    desk.clock.at = DUE + 2 * DAY
    desk.do(timing.extend, request, "x")
    assert desk.read(request).due_at == EXTENDED + 3 * DAY


def test_only_the_gdpr_knows_pauses_and_only_before_the_decision(desk: Desk) -> None:
    with pytest.raises(ClockRefused, match="under ccpa"):
        desk.do(timing.pause, desk.ask(regulation="ccpa"), "x")
    with pytest.raises(ClockRefused, match="decided"):
        desk.do(timing.pause, desk.ask(policy="demo"), "x")
    request = desk.ask()
    with pytest.raises(NotFound):
        desk.do(timing.resume, request, desk.world.tenant)


def test_a_request_that_ends_ends_its_pause(desk: Desk) -> None:
    request = desk.ask()
    desk.do(timing.pause, request, "x")
    desk.clock.at += DAY
    desk.do(requests.cancel, request, Cancellation("subject"))
    view = desk.read(request)
    assert (view.state, view.clock_paused, view.pauses[0].to_at) == ("cancelled", False, desk.clock.at)


def test_a_request_on_a_stopped_clock_is_not_listed_as_overdue(desk: Desk) -> None:
    request, other = desk.ask(received_at=CLOCK.now() - 60 * DAY), desk.ask(received_at=CLOCK.now() - 60 * DAY)
    desk.clock.at = CLOCK.now() - 40 * DAY
    desk.do(timing.pause, request, "x")

    def overdue(*, late: bool) -> list[UUID]:
        found = desk.world.run("lethe_gateway", requests.listing, RequestFilters(overdue=late), clock=CLOCK, limit=200)[0]
        return [view.id for view in found if view.id in {request, other}]

    assert (overdue(late=True), overdue(late=False)) == ([other], [request])


def test_a_receipt_under_the_ccpa_is_acknowledged_by_a_person_and_once(desk: Desk) -> None:
    request, other = desk.ask(regulation="ccpa"), desk.ask()
    view = desk.read(request)
    assert (view.ack_due_at, view.acknowledged_at) == (datetime(2026, 12, 4, 23, 59, 59, tzinfo=UTC), None)
    assert desk.read(other).acknowledged_at == desk.clock.at  # nothing more is asked there than the answer that it was recorded
    for wrong in (RECEIVED - DAY, desk.clock.at + DAY):
        with pytest.raises(InvalidInput):
            desk.do(timing.acknowledge, request, wrong)
    desk.do(timing.acknowledge, request, RECEIVED + timedelta(hours=1))
    assert desk.read(request).acknowledged_at == RECEIVED + timedelta(hours=1)
    with pytest.raises(ClockRefused):
        desk.do(timing.acknowledge, request, None)


def test_the_report_prints_pauses_and_the_extension_and_still_the_day_it_was_closed(desk: Desk) -> None:
    request = desk.ask()
    pause = desk.do(timing.pause, request, "asked for a second proof")
    desk.clock.at += DAY
    desk.do(timing.resume, request, pause)
    desk.do(timing.extend, request, "many records")
    closed = "UPDATE deletion_request SET state = 'completed', closed_at = :at, scope_hmac = NULL WHERE id = :id"
    desk.world.sql(text(closed).bindparams(at=RECEIVED + 5 * DAY, id=request))
    desk.world.sql(text("UPDATE target SET state = 'exempt' WHERE request_id = :id").bindparams(id=request))
    desk.world.run("lethe_control", build_report, request, tenant_id=desk.world.tenant, keys=KEYS, clock=CLOCK)
    (row,) = desk.world.sql(text("SELECT statement FROM audit_report"))
    clock = row.statement["predicate"]["clock"]
    start, end = (RECEIVED + DAY).isoformat(), (RECEIVED + 2 * DAY).isoformat()
    assert clock["pauses"] == [{"from": start, "to": end, "reason": "asked for a second proof"}]
    assert clock["extensions"] == [{"at": end, "by": "desk", "reason": "many records", "original_due": DUE.isoformat()}]
    assert (clock["due"], clock["completed"], clock["on_time"]) == ((EXTENDED + DAY).isoformat(), (RECEIVED + 5 * DAY).isoformat(), True)
