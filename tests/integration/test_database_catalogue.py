"""The catalogue and the audit log, on a real server."""

import hashlib
import time
from datetime import timedelta

import pytest
import rfc8785
from sqlalchemy import insert, text

from services.audit import log
from services.audit import repository as audit
from services.catalogue import service as catalogue
from services.catalogue.service import EntryIn
from services.clock import SystemClock, uuid7
from services.db.session import unit_of_work
from services.db.tables import DeletionRequest
from services.errors import ParameterOutOfRange, UnknownComponent
from services.tenants.policies import current_policy

SCHEMA = {"type": "object", "additionalProperties": False, "properties": {"epochs": {"type": "integer", "minimum": 1, "default": 3}}}
UNSIR = EntryIn(
    kind="method",
    name="unsir",
    version="2",
    schema=SCHEMA,
    guarantee="approximate",
    needs=("forget_set", "retain_set"),
    facts={"tasks": ["classification"], "granularities": ["class"]},
)
BROKEN = EntryIn(kind="method", name="acme", error="ImportError: no module")


@pytest.fixture
def tenant(ledger):
    return ledger.default_tenant()


def publish(ledger, entries, worker="w1"):
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
        catalogue.publish(session, entries, worker=worker, queue="cpu")


def ask(ledger, function, *arguments):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        return function(session, *arguments)


def age(ledger, name):
    with unit_of_work(ledger.engine("superuser"), tenant=None) as session:
        session.execute(text("UPDATE catalogue_entry SET seen_at = clock_timestamp() - interval '1 hour' WHERE name = :n"), {"n": name})


def test_what_a_worker_publishes_is_listed_and_what_it_drops_is_gone(ledger):
    publish(ledger, [UNSIR, BROKEN])
    publish(ledger, [UNSIR, BROKEN])
    assert [(one.name, one.available, one.error) for one in ask(ledger, catalogue.listing, "method")] == [
        ("acme", False, "ImportError: no module"),
        ("unsir", True, None),
    ]
    publish(ledger, [UNSIR])
    assert [one.name for one in ask(ledger, catalogue.listing, "method")] == ["unsir"]
    assert ask(ledger, catalogue.listing, "metric") == []


def test_what_no_worker_offers_any_more_stays_listed_and_is_not_available_until_one_lives_again(ledger):
    publish(ledger, [UNSIR])
    age(ledger, "unsir")
    assert ask(ledger, catalogue.entry, "method", "unsir").available is False
    assert ask(ledger, catalogue.offers)["unsir"].available is False
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
        assert catalogue.renew(session, worker="w1") == 1
        assert catalogue.renew(session, worker="w2") == 0
    deadline = time.monotonic() + 10 * catalogue.REMEMBERED_S
    while not ask(ledger, catalogue.offers)["unsir"].available:
        assert time.monotonic() < deadline, "planning knows the methods as they were at most a second ago"


def test_of_two_versions_the_live_one_is_shown(ledger):
    publish(ledger, [EntryIn(kind="method", name="unsir", version="1")], worker="old")
    publish(ledger, [UNSIR], worker="new")
    age(ledger, "unsir")
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
        catalogue.renew(session, worker="old")
    assert ask(ledger, catalogue.entry, "method", "unsir").version == "1"
    assert [one.version for one in ask(ledger, catalogue.listing, "method")] == ["1"]


def test_parameters_are_checked_and_completed_and_an_unknown_name_lists_the_known(ledger):
    publish(ledger, [UNSIR])
    unsir = ask(ledger, catalogue.require, "method", "unsir")
    assert catalogue.validate_parameters(unsir, {}) == {"epochs": 3}
    assert catalogue.validate_parameters(unsir, {"epochs": 7}) == {"epochs": 7}
    with pytest.raises(ParameterOutOfRange) as refused:
        catalogue.validate_parameters(unsir, {"epochs": 0})
    assert refused.value.facts["pointer"] == "/epochs"
    with pytest.raises(UnknownComponent, match="unsir"):
        ask(ledger, catalogue.require, "method", "scrub")


def test_the_gateway_publishes_nothing(ledger):
    from sqlalchemy.exc import DBAPIError

    with pytest.raises(DBAPIError, match="permission denied"), unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        catalogue.publish(session, [UNSIR], worker="x", queue="cpu")


def test_events_come_back_in_order_with_bodies_that_match_their_commitments(ledger, tenant):
    request, job, other = (uuid7(SystemClock()) for _ in range(3))
    body = {"state": "approved", "count": 3, "digest": "ab" * 32}
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        numbers = [
            log.record(session, tenant_id=tenant, object_id=about, type=kind, body=body)
            for about, kind in ((request, "request.received"), (other, "request.received"), (job, "job.queued"), (request, "request.approved"))
        ]
        events = audit.events_of(session, [request, job], 0, 10)
        assert [(event.number, event.type) for event in events] == [
            (numbers[0], "request.received"),
            (numbers[2], "job.queued"),
            (numbers[3], "request.approved"),
        ]
        for event in events:
            canonical = rfc8785.dumps({"type": event.type, "body": event.body, "salt": event.salt.hex()})
            assert hashlib.sha256(canonical).digest() == event.commitment
        assert [event.number for event in audit.events_of(session, [request, job], numbers[0], 1)] == [numbers[2]]
        assert audit.newest_event(session, [request, job]) == numbers[3]
        assert audit.newest_event(session, [tenant]) == 0


def test_an_erased_payload_leaves_the_event_and_its_commitment(ledger, tenant):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        log.record(session, tenant_id=tenant, object_id=tenant, type="request.received", body={"x": "1"})
    with unit_of_work(ledger.engine("lethe_control"), tenant=tenant) as session:
        session.execute(text("DELETE FROM audit_payload"))
        assert audit.events_of(session, [tenant], 0, 10) == []
        assert session.scalar(text("SELECT count(commitment) FROM audit_event WHERE type = 'request.received'")) == 1


def test_revisions_of_a_report_count_up_and_stay_as_they_were(ledger, tenant):
    clock = SystemClock()
    request = uuid7(clock)
    now = clock.now()
    columns = {"regulation": "gdpr", "state": "received", "params": {}, "scope": {}, "body_digest": b"x", "identity": {}, "details": {}}
    times = {"received_at": now, "due_at": now + timedelta(days=30), "original_due_at": now + timedelta(days=30)}
    with unit_of_work(ledger.engine("lethe_control"), tenant=tenant) as session:
        policy = current_policy(session, tenant, "demo")
        session.execute(insert(DeletionRequest).values(id=request, tenant_id=tenant, policy_id=policy.id, created_by="t", **columns, **times))
        for digest in ("aa", "bb"):
            audit.insert_report(
                session, report_id=uuid7(clock), tenant_id=tenant, request_id=request, digest=digest, statement={"digest": digest}, event_id=None
            )
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        assert audit.reports(session, request) == []  # what is not signed is shown to nobody
    with unit_of_work(ledger.engine("lethe_signer"), tenant=None) as session:
        session.execute(text("UPDATE audit_report SET envelope = '{}', tlog_proof = 'proof'"))
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        assert [(revision, digest) for revision, digest, _ in audit.reports(session, request)] == [(1, "aa"), (2, "bb")]
        assert audit.report(session, request).digest == "bb"
        assert audit.report(session, request, 1).statement == {"digest": "aa"}
        assert audit.report(session, request, 3) is None
        assert audit.report(session, tenant) is None
