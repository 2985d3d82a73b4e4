"""Legal holds: what they cover waits, what works for it stops, and nothing under them is published or destroyed."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from services.clock import uuid7
from services.datasets import service as datasets
from services.datasets.forms import SubjectRow
from services.datasets.identifiers import Identifier
from services.db.session import unit_of_work
from services.db.tables import Job, Target
from services.errors import Cancelled, Conflict, HeldByLaw, InvalidInput, NotFound, PreconditionFailed, UnknownModel
from services.jobs import outcomes
from services.jobs import repository as job_rows
from services.requests import holds, jobs
from services.requests import service as requests
from services.requests.forms import Cancellation, ClassScope
from services.requests.holds import NewHold
from tests.integration.conftest import Ledger
from tests.integration.test_ledger_requests import CLOCK, KEYS, World, person

CLEAN = (
    "UPDATE legal_hold SET released_at = clock_timestamp(), released_by = 'test' WHERE released_at IS NULL",
    "UPDATE job_target SET active = false",
    "UPDATE job SET state = 'cancelled', lease_owner = NULL, lease_until = NULL, finished_at = clock_timestamp() WHERE finished_at IS NULL",
    "UPDATE target SET state = 'cancelled' WHERE state IN ('located', 'queued', 'running', 'stuck')",
    "UPDATE deletion_request SET state = 'cancelled', resume_state = NULL, closed_at = clock_timestamp() WHERE closed_at IS NULL",
)


@pytest.fixture(scope="module")
def whole(postgres: Any) -> Iterator[World]:
    ledger = Ledger(postgres)
    yield World(ledger)
    ledger.close()


@pytest.fixture
def world(whole: World) -> Iterator[World]:
    """The module's world, in which every request, job and hold of the test before has ended."""
    yield whole
    for statement in CLEAN:
        whole.sql(text(statement), "superuser")


def opened(world: World, *requests: UUID) -> list[Any]:
    """The jobs of these requests that are not ended."""
    return [job for job in world.jobs() if not job.done and set(job.requests) & set(requests)]


def place(world: World, scope: Any, over: Any = None, name: str | None = None) -> Any:
    identifier = None if name is None else Identifier("customer_id", name)
    return world.run("lethe_gateway", holds.place, NewHold(scope, "a court asked", over, identifier), caller=world.caller, clock=CLOCK, keys=KEYS)


def release(world: World, hold_id: UUID, version: int = 1) -> Any:
    return world.run("lethe_gateway", holds.release, hold_id, "the case is closed", expected_version=version, caller=world.caller)


def over(world: World, scope: str, request: UUID) -> dict[str, Any]:
    return {
        "subject": {"name": "p3"},
        "model": {"over": "reader"},
        "dataset": {"over": "digits"},
        "request": {"over": request},
    }[scope]


@pytest.mark.parametrize("scope", ["subject", "model", "dataset", "request"])
def test_a_hold_makes_the_requests_that_it_covers_wait_and_no_other(world: World, scope: str) -> None:
    covered, other = world.create(person("p3")), world.create(person("p5"))
    hold = place(world, scope, **over(world, scope, covered.id))
    assert (covered.id, "on_hold") in hold.requests
    assert world.advance(covered.id) == "on_hold"
    view = world.read(covered.id)
    assert (view.attention["code"], view.attention["holds"]) == ("legal-hold", [f"hold_{hold.id.hex}"])
    if scope in {"subject", "request"}:
        assert world.advance(other.id) == "in_progress"
    assert (hold.records, hold.over is None) == ((2, True) if scope == "subject" else (None, False))

    release(world, hold.id)
    assert (world.read(covered.id).state, world.read(covered.id).attention) == ("approved", None)
    assert world.advance(covered.id) == "in_progress"


def test_what_comes_in_under_a_hold_is_held_when_it_starts(world: World) -> None:
    hold = place(world, "subject", name="p3")
    view = world.create(person("p3"))
    assert view.state == "approved"
    assert world.advance(view.id) == "on_hold"
    second = place(world, "model", "reader")
    release(world, hold.id)
    assert world.read(view.id).state == "on_hold"  # the other one still stands
    release(world, second.id)
    assert world.advance(view.id) == "in_progress"


def test_records_that_are_indexed_after_the_hold_are_under_it_too(world: World) -> None:
    hold = place(world, "subject", name="p8")
    rows = [SubjectRow("r050", (Identifier("customer_id", "p8"),))]
    world.run("lethe_gateway", datasets.index_subjects, "digits", 1, rows, caller=world.caller, keys=KEYS)
    assert world.run("lethe_gateway", holds.read, hold.id).records == 3
    view = world.create(ClassScope(("2",), dataset="digits"))  # r050 is of class 2
    assert world.advance(view.id) == "on_hold"


def test_a_hold_stops_the_job_and_everybody_elses_records_are_queued_again(world: World) -> None:
    views = [world.create(person(f"p{index}")) for index in (3, 5)]
    for view in views:
        world.run("lethe_control", requests.advance, view.id, CLOCK)
    world.advance(views[0].id)
    (job,) = opened(world, *(view.id for view in views))
    assert len(job.targets) == 2
    world.hold(job.id, "running")
    world.sql(update(Target).where(Target.id.in_(job.targets)).values(state="running"))
    place(world, "subject", name="p3")
    with unit_of_work(world.ledger.engine("lethe_worker"), tenant=world.tenant) as session:  # as a worker does at its next check
        row = job_rows.job_row(session, job.id)
        assert row.cancel_requested_at is not None
        outcomes.settle(session, row, Cancelled(), clock=CLOCK)
    assert [world.read(view.id).state for view in views] == ["on_hold", "in_progress"]
    assert [world.read(view.id).targets[0].state for view in views] == ["queued", "queued"]
    world.advance(views[1].id)
    (fresh,) = opened(world, *(view.id for view in views))
    assert fresh.requests == (views[1].id,)


def test_a_job_that_waits_is_cancelled_and_opened_again_after_the_release(world: World) -> None:
    view = world.create(person("p3"))
    world.advance(view.id)
    (job,) = opened(world, view.id)
    hold = place(world, "request", view.id)
    assert world.run("lethe_gateway", jobs.read, job.id).state == "cancelled"
    assert (world.read(view.id).state, world.read(view.id).targets[0].state) == ("on_hold", "queued")
    release(world, hold.id)
    assert world.advance(view.id) == "in_progress"
    assert [one.state for one in opened(world, view.id)] == ["queued"]


def test_nothing_is_published_under_a_hold_that_came_while_it_was_being_published(world: World) -> None:
    view = world.create(person("p3"))
    world.advance(view.id)
    (job,) = opened(world, view.id)
    world.hold(job.id, "publishing")
    place(world, "request", view.id)
    with pytest.raises(HeldByLaw):
        world.forget(job.id, ["r006", "r007"])
    assert world.read(view.id).state == "on_hold"
    assert HeldByLaw.retry_class == "transient"
    with unit_of_work(world.ledger.engine("lethe_worker"), tenant=world.tenant) as session:
        row = session.scalars(select(Job).where(Job.id == job.id)).one()
        assert outcomes.settle(session, row, HeldByLaw(holds="x"), clock=CLOCK) == "queued"


def test_a_request_whose_version_is_published_goes_on_and_the_hold_says_so(world: World) -> None:
    view = world.create(person("p7"))
    world.advance(view.id)
    world.forget(opened(world, view.id)[0].id, ["r014", "r015"])
    hold = place(world, "subject", name="p7")
    assert hold.requests == ((view.id, "in_progress"),)


def test_a_request_on_hold_can_be_cancelled_and_its_pending_review_comes_back_after_a_release(world: World) -> None:
    view = world.create(person("p3"), policy="gdpr-default")
    hold = place(world, "request", view.id)
    release(world, hold.id)
    assert (world.read(view.id).state, world.read(view.id).attention["code"]) == ("pending_review", "review-needed")
    place(world, "request", view.id)
    gone = world.run("lethe_gateway", requests.cancel, view.id, Cancellation("subject"), caller=world.caller, clock=CLOCK)
    assert gone.state == "cancelled"


def test_what_a_hold_is_over_must_exist_and_it_is_released_once_by_who_has_read_it(world: World) -> None:
    with pytest.raises(UnknownModel):
        place(world, "model", "nobody")
    with pytest.raises(NotFound):
        place(world, "request", uuid7(CLOCK))
    with pytest.raises(InvalidInput):
        place(world, "subject")
    hold = place(world, "model", "reader")
    with pytest.raises(PreconditionFailed):
        release(world, hold.id, version=2)
    assert release(world, hold.id).released_by == "desk"
    with pytest.raises(Conflict, match="released already"):
        release(world, hold.id)
    of = "SELECT e.type FROM audit_event e JOIN audit_payload p ON p.event_id = e.id WHERE p.object_id = :hold ORDER BY e.id"
    assert [row.type for row in world.sql(text(of).bindparams(hold=hold.id), "superuser")] == ["hold.placed", "hold.released"]
