"""A database that was put back to before an erasure: the signer refuses, the journal brings the erasure back, and the log goes on under another name."""

import copy
import json
from typing import Any
from uuid import uuid4

import pytest
from psycopg import sql
from sqlalchemy import select, text
from starlette.testclient import TestClient

from api.app import create_app
from control.replay import restore
from control.signer import bucket_of
from models_store.memory import MemoryStore
from services.audit import journal
from services.audit.notes import parse_checkpoint
from services.db import leaves
from services.db.health import signer_state
from services.db.session import unit_of_work
from services.db.tables import ForgetLedger, ModelVersion
from services.errors import IntegrityBroken, InvalidInput
from services.settings import Settings
from services.tenants.caller import SCOPES
from services.tenants.service import issue_key
from tests.integration.conftest import Ledger
from tests.integration.log_world import OTHER, Kept, key, settle, signer_over
from tests.integration.test_ledger_requests import CLOCK, KEYS, World, person

NEXT = "lethe.test/log/2"
RECORDS = ["r006", "r007"]


class Past:
    """A world whose request was carried out after its database was copied; `then` is the copy, `copies` what the bucket of the log holds."""

    def __init__(self, ledger: Ledger, postgres: Any) -> None:
        self.world, self.copies = World(ledger), Kept()
        settle(signer_over(ledger, self.copies))
        self.then = self._copy(ledger, postgres)
        self.request = self.world.create(person("p3")).id
        self.world.advance(self.request)
        self.world.forget(self.world.jobs(self.request)[0].id, RECORDS)
        self.world.report(self.request)
        assert self.world.advance(self.request) == "completed"
        settle(signer_over(ledger, self.copies))
        self.restored = copy.copy(self.world)
        self.restored.ledger = self.then

    @staticmethod
    def _copy(ledger: Ledger, postgres: Any) -> Ledger:
        ledger.close()
        name = f"{ledger.name}_then"
        with postgres.server.admin() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER lethe_owner").format(sql.Identifier(name), sql.Identifier(ledger.name)))
        return Ledger(postgres, name)

    def replay(self, origin: str = NEXT) -> Any:
        return restore(self.then.engine("lethe_owner"), self.copies, origin, clock=CLOCK)

    def state(self) -> str:
        with unit_of_work(self.then.engine("lethe_gateway"), tenant=None) as session:
            return signer_state(session)

    def versions(self) -> dict[int, str]:
        with unit_of_work(self.then.engine("lethe_gateway"), tenant=self.world.tenant) as session:
            return {number: status for number, status in session.execute(select(ModelVersion.number, ModelVersion.status))}  # noqa: C416

    def served(self) -> int:
        """Return what a caller who may read models is told who asks for the weights of version 1."""
        with unit_of_work(self.then.engine("lethe_owner"), tenant=self.world.tenant) as session:
            secret = issue_key(session, tenant_id=self.world.tenant, client=uuid4().hex, scopes=SCOPES - {"requests:operate"}, pepper=KEYS.pepper)
        settings = Settings(
            embedded=True,
            database={"url": self.then.url("lethe_gateway")},
            keys={"encryption": KEYS.kek, "pepper": KEYS.pepper, "cursor": "33" * 32},
        )
        with TestClient(create_app(settings, store=MemoryStore()), raise_server_exceptions=False, follow_redirects=False) as http:
            path = "/v1/models/reader/versions/1/files/model.safetensors"
            return http.get(path, headers={"Authorization": f"Bearer {secret}"}).status_code


@pytest.fixture
def past(ledger: Ledger, postgres: Any) -> Any:
    made = Past(ledger, postgres)
    yield made
    made.then.close()


@pytest.mark.soak
def test_the_journal_holds_digests_and_ids_and_no_identifier(past: Past):
    (sealed,) = past.copies.journal.values()
    entry = journal.opened(sealed, [key().public])
    (facts,) = entry["requests"].values()
    (digests,) = facts["records"].values()
    assert (len(digests), facts["regulation"], len(entry["superseded"])) == (2, "gdpr", 1)
    assert all(len(bytes.fromhex(one)) == 32 for one in digests)
    told = json.dumps(entry)
    assert not any(name in told for name in (*RECORDS, "p3", "customer_id"))


def test_an_erasure_that_the_restored_database_lacks_is_done_again_and_the_log_goes_on(past: Past):
    settle(signer_over(past.then, past.copies))
    assert past.state() == "log-shrunken"
    assert past.versions() == {1: "ready"}
    assert past.served() == 307
    before = dict(past.copies.held)

    outcome = past.replay()
    assert (outcome.entries, outcome.requests, outcome.skipped) == (1, [f"dr_{past.request.hex}"], [])
    assert past.versions() == {1: "quarantined"}
    assert past.served() == 404
    settle(signer_over(past.then, past.copies))
    assert past.state() == "signing-key-refused"  # under its old name the log does not go on
    settle(signer_over(past.then, past.copies, origin=NEXT))
    assert past.state() == "ok"
    assert past.copies.held == before
    with unit_of_work(past.then.engine("lethe_signer"), tenant=None) as session:
        head = leaves.newest_head(session)
        assert head is not None
        assert (parse_checkpoint(head.note).origin, head.size) == (NEXT, leaves.size(session))
        types = session.scalars(
            text("SELECT type FROM audit_event WHERE type IN ('log.restored', 'restore.replayed', 'key.rotated') ORDER BY id")
        ).all()
    assert types == ["restore.replayed", "restore.replayed", "key.rotated", "log.restored"]

    world = past.restored
    assert world.advance(past.request) == "in_progress"
    (job,) = world.jobs(past.request)
    world.forget(job.id, RECORDS)
    world.report(past.request)
    assert world.advance(past.request) == "completed"
    assert past.versions() == {1: "quarantined", 2: "ready"}
    with unit_of_work(past.then.engine("lethe_gateway"), tenant=world.tenant) as session:
        assert len(session.scalars(select(ForgetLedger.record_hmac)).all()) == 2
    settle(signer_over(past.then, past.copies, origin=NEXT))
    assert [epoch for epoch, _ in past.copies.journal] == [0, 1]


@pytest.mark.soak
def test_a_replay_that_broke_off_is_done_once_more_and_a_whole_log_needs_none(past: Past):
    first = past.replay()
    again = past.replay()
    assert (again.lost_from, again.lost_to, again.quarantined, again.requests) == (first.lost_from, first.lost_to, [], [])
    settle(signer_over(past.then, past.copies, origin=NEXT))
    with pytest.raises(InvalidInput, match="whole"):
        past.replay("lethe.test/log/3")


@pytest.mark.soak
def test_a_second_restore_to_before_the_first_replay_is_refused_and_replayed_too(past: Past, postgres: Any):
    older = Past._copy(past.then, postgres)
    past.replay()
    settle(signer_over(past.then, past.copies, origin=NEXT))
    past.then = older
    settle(signer_over(older, past.copies, origin=NEXT))
    assert past.state() == "log-shrunken"
    outcome = past.replay("lethe.test/log/3")
    assert (outcome.entries, past.versions()) == (1, {1: "quarantined"})
    settle(signer_over(older, past.copies, origin="lethe.test/log/3"))
    assert past.state() == "ok"


def test_a_bucket_keeps_heads_and_journal_by_epoch(object_store_server: Any):
    parts = {"endpoint": object_store_server.endpoint, "access_key": object_store_server.access_key, "secret_key": object_store_server.secret_key}
    settings = Settings(embedded=True, store={**parts, "log_bucket": f"log-{uuid4().hex[:12]}"})
    bucket = bucket_of(settings)
    assert bucket.newest() is None
    for size, epoch in ((9, 0), (10, 0), (4, 1), (100, 1), (2, 10)):
        bucket.keep(size, f"note {epoch} {size}", epoch=epoch)
        bucket.keep_erasure(size, f"entry {epoch} {size}", epoch=epoch)
        bucket.keep(size, "another", epoch=epoch)
    assert bucket.newest() == (10, "note 10 2")
    assert list(bucket.erasures(0, 10)) == ["entry 0 10"]
    assert list(bucket.erasures(1, 0)) == ["entry 1 4", "entry 1 100"]
    assert list(bucket.erasures(2, 0)) == []


@pytest.mark.soak
def test_erasures_of_before_there_was_a_journal_are_put_into_it(past: Past):
    kept = dict(past.copies.journal)
    past.copies.journal.clear()
    settle(signer_over(past.world.ledger, past.copies))
    assert past.copies.journal == kept


def test_names_of_before_and_entries_that_no_key_of_the_log_sealed_are_refused(past: Past):
    with pytest.raises(InvalidInput, match="has had"):
        past.replay(key().name)
    (place,) = past.copies.journal
    entry = journal.opened(past.copies.journal[place], [key().public])
    past.copies.journal[place] = journal.seal({**entry, "superseded": []}, key(OTHER))
    with pytest.raises(IntegrityBroken):
        past.replay()
    assert past.versions() == {1: "ready"}
    past.copies.journal[place] = past.copies.journal[place][:-4] + "AAAA"
    with pytest.raises(IntegrityBroken):
        past.replay()
