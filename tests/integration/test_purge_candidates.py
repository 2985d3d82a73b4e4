"""Destroying what jobs put and did not publish, some days after the request has closed."""

import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, text

from models_store.objects import blob_key
from services.db.session import unit_of_work
from services.db.tables import ObjectRef, VerdictRow
from services.errors import BuriedBytes, CertificateNotReady
from services.jobs import outcomes
from services.jobs import repository as job_rows
from services.requests import candidates, holds, repository
from services.requests import service as requests
from services.requests.forms import Cancellation
from tests.integration.conftest import Ledger
from tests.integration.crash_walk import killed_at, killed_for_real, purge_process
from tests.integration.test_ledger_requests import CLOCK, KEYS, digest, person
from tests.integration.test_purge import CLEAN, LOST
from tests.integration.test_purge_data import STRIDE, DataYard

FAILED = {"verdict": "failed", "codes": ["forgetting"], "sentence": "the records are still known."}


class CandidateYard(DataYard):
    """The yard with requests whose first rung did not pass."""

    def fail(self) -> tuple[UUID, UUID, str]:
        """Ask to forget the next person and let the first rung fail; return the request, the failed job, and the digest of its candidate."""
        view = self.world.create(person(f"p{next(self.persons)}"), method="bad_teacher")
        self.world.advance(view.id)
        (job,) = self.world.jobs(view.id)
        weights = digest(f"candidate {job.id}")
        self.world.hold(job.id, "verifying")
        with unit_of_work(self.world.ledger.engine("lethe_worker"), tenant=self.world.tenant) as session:
            row = job_rows.job_row(session, job.id)
            job_rows.move_targets(session, job_rows.active_targets(session, job.id), "claim")
            job_rows.pin(session, row, "candidate.safetensors", weights, 3)
            job_rows.pin(session, row, "readings.json", digest(f"readings {job.id}"), 3)
            session.execute(insert(VerdictRow).values(tenant_id=self.world.tenant, job_id=job.id, round=1, **FAILED))
            outcomes.not_passed(session, job_rows.load(session, job.id), row, FAILED, clock=CLOCK)
        for one in (weights, digest(f"readings {job.id}")):
            self.store.put_bytes(blob_key(one), b"old", if_absent=False)
            self.store.put_bytes(blob_key(one), b"new", if_absent=False)
        return view.id, job.id, weights

    def pass_next(self, request: UUID) -> None:
        """Publish the rung that follows, and let the request end."""
        (following,) = [job for job in self.world.jobs(request) if job.state == "queued"]
        of = "SELECT record_id FROM subject_record s WHERE EXISTS (SELECT 1 FROM dataset_record d WHERE d.record_id = s.record_id AND upper_inf(d.present))"
        first = sorted(row.record_id for row in self.rows(of))[:2]
        self.world.forget(following.id, first)
        self.report(request)
        signed = "UPDATE audit_report SET envelope = '{}', tlog_proof = 'signed elsewhere' WHERE request_id = :r AND envelope IS NULL"
        self.world.sql(text(signed).bindparams(r=request), "superuser")
        assert self.world.advance(request) == "completed"
        self.fill()

    def of(self, job: UUID) -> list[Any]:
        query = (
            "SELECT *, run_after > clock_timestamp() + interval '6 days' AS later FROM job WHERE kind = 'purge' AND candidate_job_id = :j ORDER BY id"
        )
        return self.rows(query, j=job)

    def left(self, weights: str) -> int:
        return len(list(self.store.list_versions(blob_key(weights))))

    def certified(self, job: UUID) -> Any:
        return self.world.run("lethe_gateway", candidates.certificate, job)

    def again(self, request: UUID, like: UUID, turn: int) -> tuple[UUID, str]:
        """Let a further job of a closed request have failed, whose candidate is due to be destroyed; return job and digest."""
        world, other = self.world, digest(f"again {turn}")
        job = world.ledger.job(world.tenant, world.model_id, kind="unlearn")
        with unit_of_work(world.ledger.engine("lethe_worker"), tenant=world.tenant) as session:
            job_rows.pin(session, job_rows.job_row(session, job), "candidate.safetensors", other, 3)
            job_rows.drop_pins(session, job)
        ended = "UPDATE job SET state = 'failed', finished_at = clock_timestamp() WHERE id = :j"
        world.sql(text(ended).bindparams(j=job), "superuser")
        served = (
            "INSERT INTO job_target (tenant_id, job_id, target_id, active) SELECT tenant_id, :j, target_id, false FROM job_target WHERE job_id = :f"
        )
        world.sql(text(served).bindparams(j=job, f=like), "superuser")
        self.store.put_bytes(blob_key(other), b"new", if_absent=False)
        with unit_of_work(world.ledger.engine("lethe_control"), tenant=world.tenant) as session:
            held = repository.request(session, request)
            assert held is not None
            candidates.schedule(session, held, CLOCK.now(), clock=CLOCK)
        self.due()
        return job, other

    def purged_in_peace(self) -> tuple[UUID, UUID, str, Any]:
        """Return a closed request, its failed job, the digest of that one's purged candidate, and what the undisturbed purge of a further one leaves."""
        request, first, weights = self.fail()
        self.pass_next(request)
        self.due()
        self.turns()
        job, other = self.again(request, first, 0)
        self.turns()
        return request, first, weights, self.outcome_of(job, other)

    def outcome_of(self, job: UUID, weights: str) -> Any:
        """What is left of a candidate when its purge has ended, without the names of this run."""
        events = self.rows("SELECT e.type FROM audit_event e JOIN audit_payload p ON p.event_id = e.id WHERE p.object_id = :j ORDER BY e.id", j=job)
        tombs = self.rows("SELECT 1 FROM tombstone WHERE digest = :d", d=weights)
        state = [row.state for row in self.rows("SELECT state FROM object WHERE digest = :d", d=weights)]
        jobs, files = [row.state for row in self.of(job)], self.certified(job).document["files"]
        return self.left(weights), state, len(tombs), [row.type for row in events], jobs, len(files)


@pytest.fixture(scope="module")
def whole(postgres: Any, object_store_server: Any) -> Iterator[CandidateYard]:
    ledger = Ledger(postgres)
    yield CandidateYard(ledger, object_store_server)
    ledger.close()


@pytest.fixture
def yard(whole: CandidateYard) -> Iterator[CandidateYard]:
    """The module's yard, in which nothing of the test before waits or holds."""
    yield whole
    for statement in CLEAN:
        whole.world.sql(text(statement), "superuser")


def test_a_candidate_that_did_not_pass_is_destroyed_a_week_after_the_request_has_closed(yard: CandidateYard) -> None:
    request, job, weights = yard.fail()
    assert yard.of(job) == []  # the request is open
    yard.pass_next(request)
    (purge,) = yard.of(job)
    assert (purge.state, purge.later) == ("queued", True)
    assert yard.purge.turn() == 0
    with pytest.raises(CertificateNotReady):
        yard.certified(job)
    waits = yard.report(request)["artifacts"][0]["candidates"]
    assert [(one["rung"], one["method"], one["disposition"], one["certificate"]) for one in waits] == [(1, "bad_teacher", "quarantined", None)]
    yard.due()

    yard.turns()

    assert yard.left(weights) == 0
    found = yard.certified(job)
    assert (found.document["candidate_of"], found.document["reason"], found.document["requests"]) == (
        f"job_{job.hex}", "not-published", [f"dr_{request.hex}"],
    )  # fmt: skip
    assert [(one["path"], one["disposition"]) for one in found.document["files"]] == [
        ("candidate.safetensors", "destroyed"), ("readings.json", "destroyed"),
    ]  # fmt: skip
    assert (found.opening["type"], found.opening["body"]["certificate"]) == ("candidate.destruction_certified", found.digest)
    told = yard.report(request)["artifacts"][0]["candidates"]
    assert [(one["disposition"], one["certificate"], one["destroyed_at"]) for one in told] == [
        ("destroyed", found.digest, found.document["destroyed_at"]),
    ]  # fmt: skip
    (following,) = [one for one in yard.world.jobs(request) if one.id != job]
    assert yard.of(following.id) == []  # what it put was published


def test_weights_of_a_destroyed_candidate_do_not_come_back(yard: CandidateYard) -> None:
    request, _, weights = yard.fail()
    yard.pass_next(request)
    yard.due()
    yard.turns()
    job = yard.world.ledger.job(yard.world.tenant, yard.world.model_id)
    with pytest.raises(BuriedBytes), unit_of_work(yard.world.ledger.engine("lethe_worker"), tenant=yard.world.tenant) as session:
        job_rows.pin(session, job_rows.job_row(session, job), "candidate.safetensors", weights, 3)


def test_a_candidate_whose_bytes_a_version_has_keeps_them_and_the_certificate_says_for_whom(yard: CandidateYard) -> None:
    request, job, weights = yard.fail()
    yard.pass_next(request)
    current = yard.version(yard.current())
    row = {"tenant_id": yard.world.tenant, "digest": weights, "owner_kind": "model_version", "owner_id": current.id}
    yard.world.sql(insert(ObjectRef).values(**row), "superuser")
    yard.due()
    yard.turns()
    files = {one["path"]: one for one in yard.certified(job).document["files"]}
    assert (files["candidate.safetensors"]["disposition"], files["candidate.safetensors"]["needed_by"]) == (
        "kept",
        [f"reader version {current.number}"],
    )
    assert (files["readings.json"]["disposition"], yard.left(weights)) == ("destroyed", 2)


def test_a_legal_hold_keeps_a_candidate_until_it_is_released(yard: CandidateYard) -> None:
    request, job, weights = yard.fail()
    yard.pass_next(request)
    place = "INSERT INTO legal_hold (id, tenant_id, scope, scope_ref, reason, placed_by) VALUES (gen_random_uuid(), :t, 'request', :r, 'x', 'x') RETURNING id"
    (row,) = yard.rows(place, t=yard.world.tenant, r=request.bytes)
    yard.due()
    yard.turns()
    (purge,) = yard.of(job)
    assert (purge.state, purge.error["code"], yard.left(weights)) == ("queued", "legal-hold", 2)
    yard.world.run("lethe_gateway", holds.release, row.id, "over", expected_version=1, caller=yard.world.caller)
    yard.turns()
    assert (yard.left(weights), yard.of(job)[0].state) == (0, "succeeded")


def test_what_a_job_of_a_request_that_was_taken_back_has_put_goes_when_the_job_has_ended(yard: CandidateYard) -> None:
    request, job, weights = yard.fail()
    (following,) = [one for one in yard.world.jobs(request) if one.state == "queued"]
    yard.world.hold(following.id, "running")
    with unit_of_work(yard.world.ledger.engine("lethe_worker"), tenant=yard.world.tenant) as session:
        job_rows.pin(session, job_rows.job_row(session, following.id), "next_records.parquet", digest("next"), 3)
    yard.world.run("lethe_gateway", requests.cancel, request, Cancellation("subject"), caller=yard.world.caller, clock=CLOCK)
    yard.due()
    yard.turns()
    assert (yard.left(weights), yard.of(job)[0].state) == (0, "succeeded")
    assert (yard.of(following.id)[0].state, yard.of(following.id)[0].error["code"]) == ("queued", "version-in-use")  # it has not stopped yet
    stopped = "UPDATE job SET state = 'cancelled', lease_owner = NULL, lease_until = NULL, finished_at = clock_timestamp() WHERE id = :j"
    yard.world.sql(text(stopped).bindparams(j=following.id), "superuser")
    yard.world.sql(text("DELETE FROM object_pin"), "superuser")
    yard.due()
    yard.turns()
    assert [one["path"] for one in yard.certified(following.id).document["files"]] == ["next_records.parquet"]


@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.soak)])
def test_a_purge_of_a_candidate_that_is_interrupted_at_any_point_ends_as_one_that_was_not(
    ledger: Ledger, object_store_server: Any, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    yard = CandidateYard(ledger, object_store_server)
    request, first, weights, undisturbed = yard.purged_in_peace()
    assert undisturbed[:3] == (0, ["deleted"], 1)
    assert undisturbed[3] == ["candidate.destroyed", "candidate.destruction_certified"]
    assert yard.left(weights) == 0
    places: list[str] = []
    while len(places) < 60:
        job, other = yard.again(request, first, len(places) + 1)
        place = killed_at(monkeypatch, len(places) * stride + 1, yard.turns)
        if place is None:
            break
        places.append(place)
        yard.world.sql(text(LOST), "superuser")
        yard.turns()
        assert yard.outcome_of(job, other) == undisturbed, places[-1]
    assert len(places) * stride >= 24


@pytest.mark.soak
def test_a_purge_of_a_candidate_killed_for_real_ends_as_one_that_was_not(ledger: Ledger, object_store_server: Any) -> None:
    yard = CandidateYard(ledger, object_store_server)
    arguments = purge_process(ledger, object_store_server, yard.bucket, KEYS.kek)
    request, first, _, undisturbed = yard.purged_in_peace()
    kills = 0

    for point in range(1, 60, STRIDE):
        job, other = yard.again(request, first, point)
        if not killed_for_real(arguments, point):
            break
        kills += 1
        yard.world.sql(text(LOST), "superuser")
        subprocess.run(arguments, check=True, capture_output=True)
        assert yard.outcome_of(job, other) == undisturbed, point
    assert kills * STRIDE >= 24
