"""The audit log on a real server: leaves, heads, refusals, signed reports, and what each role may write."""

import base64
import json
import threading
from dataclasses import dataclass, field

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.audit import heads, log, sequencer, tree
from services.audit import repository as audit
from services.audit.evidence import pae
from services.audit.notes import parse_checkpoint
from services.audit.signer import endorsed
from services.clock import SystemClock, uuid7
from services.db import leaves
from services.db.health import signer_state
from services.db.session import unit_of_work
from tests.integration.conftest import Ledger
from tests.integration.log_world import OTHER, SEED, Kept, key, settle, signer_over

CLOCK = SystemClock()


@dataclass
class Log:
    """One log with its copies; `signer` starts a signer over it."""

    ledger: Ledger
    tenant: object
    copies: Kept = field(default_factory=Kept)

    def signer(self, seed: str = SEED, previous: str = "", **pace: object):
        return signer_over(self.ledger, self.copies, seed=seed, previous=previous, **pace)

    def session(self, role: str = "lethe_signer", *, tenant: bool = False):
        return unit_of_work(self.ledger.engine(role), tenant=self.tenant if tenant else None)

    def write(self, count: int = 1) -> list[int]:
        with self.session("lethe_gateway", tenant=True) as session:
            return [log.record(session, tenant_id=self.tenant, object_id=self.tenant, type="request.received", body={"n": n}) for n in range(count)]

    def request(self) -> object:
        """Write a request with nothing but its columns, past every rule, so that a report can name it."""
        request = uuid7(CLOCK)
        with psycopg.connect(self.ledger.url("superuser").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                "INSERT INTO deletion_request (id, tenant_id, regulation, state, policy_id, params, scope, body_digest, identity, details,"
                " received_at, due_at, original_due_at, created_by) VALUES (%s, %s, 'gdpr', 'in_progress', %s, '{}', '{}', '', '{}', '{}',"
                " now(), now() + interval '1 day', now(), 'test')",
                (request, self.tenant, uuid7(CLOCK)),
            )
        return request

    def report(self, request: object, statement: dict[str, object], *, digest: str | None = None) -> None:
        import hashlib

        import rfc8785

        true = hashlib.sha256(rfc8785.dumps(statement)).hexdigest()
        with self.session("lethe_control", tenant=True) as session:
            event = log.record(
                session, tenant_id=self.tenant, object_id=request, type="report.stored", body={"revision": 1, "digest": digest or true}
            )
            audit.insert_report(
                session, report_id=uuid7(CLOCK), tenant_id=self.tenant, request_id=request, digest=digest or true, statement=statement, event_id=event
            )

    def served(self, request: object):
        with self.session("lethe_gateway", tenant=True) as session:
            return audit.report(session, request)

    def tamper(self, statement: str) -> None:
        """Change rows as a superuser can, past every trigger."""
        with psycopg.connect(self.ledger.url("superuser").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            assert connection.execute(statement).rowcount > 0

    def state(self) -> str:
        with self.session("lethe_gateway") as session:
            return signer_state(session)

    def head(self):
        with self.session() as session:
            return leaves.newest_head(session)

    def size(self) -> int:
        with self.session() as session:
            return leaves.size(session)


@pytest.fixture
def held(ledger: Ledger) -> Log:
    return Log(ledger, ledger.default_tenant())


def test_leaves_are_gapless_whatever_the_writers_and_their_roots_are_those_of_the_definition(held: Log):
    stop = threading.Event()

    def sequence() -> None:
        while not stop.is_set():
            with held.session() as session:
                sequencer.integrate(session, limit=7)

    writers = [threading.Thread(target=held.write, args=(10,)) for _ in range(4)]
    sequencers = [threading.Thread(target=sequence) for _ in range(2)]
    for thread in [*sequencers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in sequencers:
        thread.join()
    with held.session() as session:
        while sequencer.integrate(session):
            pass
        size = leaves.size(session)
        rows = session.execute(text("SELECT e.seq, e.commitment FROM audit_event e ORDER BY e.seq")).all()
        assert [row.seq for row in rows] == list(range(size))
        assert size >= 40
        hashes = [tree.leaf_hash(bytes(row.commitment)) for row in rows]
        nodes = {(0, number): one for number, one in enumerate(hashes)} | tree.extend(0, hashes, [])
        for cut in (1, 2, 3, size // 2, size):
            assert sequencer.root(session, cut) == tree.fold(0, cut, nodes)
        assert tree.verify_inclusion(hashes[11], 11, size, sequencer.inclusion(session, 11, size), sequencer.root(session, size))
        path = sequencer.consistency(session, 17, size)
        assert tree.verify_consistency(17, size, path, sequencer.root(session, 17), sequencer.root(session, size))


def test_events_of_one_object_are_numbered_in_the_order_in_which_they_were_written(held: Log):
    first, second = held.write(), held.write()
    settle(held.signer())
    with held.session() as session:
        found = session.execute(text("SELECT id, seq FROM audit_event WHERE id = ANY(:ids)"), {"ids": [*first, *second]})
        numbers = {row.id: row.seq for row in found}
    assert numbers[first[0]] < numbers[second[0]]


def test_a_head_is_a_checkpoint_that_the_key_signed_and_its_copy_is_kept(held: Log):
    signer = held.signer()
    held.write(5)
    settle(signer)
    head = held.head()
    note = parse_checkpoint(head.note)
    assert (note.origin, note.size, note.root) == ("lethe.test/log", held.size(), head.root)
    assert note.signed_by(key().public)
    assert not note.signed_by(key(OTHER).public)
    assert held.copies.held[head.size] == head.note
    assert held.state() == "ok"
    before = dict(held.copies.held)
    settle(signer)
    assert held.copies.held == before


def test_a_head_waits_for_the_pace_unless_a_report_waits_for_it(held: Log):
    signer = held.signer(head_leaves=1000)
    settle(signer)
    first = held.head().size
    held.write(20)
    settle(signer)
    assert held.head().size == first
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(signer)
    assert held.head().size == first + 21
    assert held.served(request) is not None


def test_after_a_crash_between_copy_and_store_the_next_head_extends_the_lost_one(held: Log):
    held.write(3)
    with held.session() as session:
        sequencer.integrate(session)
    with held.session() as session:
        heads.extend(session, key(), held.copies)
        session.rollback()
    assert held.head() is None
    settle(held.signer())
    copy = parse_checkpoint(next(iter(held.copies.held.values())))
    with held.session() as session:
        assert sequencer.root(session, copy.size) == copy.root
    assert held.state() == "ok"


def test_of_two_signers_one_acts_and_no_head_is_signed_twice(held: Log):
    signers = [held.signer(), held.signer()]
    threads = [threading.Thread(target=settle, args=(signer, 10)) for signer in signers]
    for thread in threads:
        thread.start()
    held.write(30)
    for thread in threads:
        thread.join()
    settle(signers[0])
    assert held.head().size == held.size()
    with held.session() as session:
        for size, note in held.copies.held.items():
            assert sequencer.root(session, size) == parse_checkpoint(note).root


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_leaf SET leaf_hash = sha256('x') WHERE seq = 2",
        "UPDATE audit_event SET commitment = sha256('x') WHERE seq = 2",
        "DELETE FROM audit_leaf WHERE seq = 2",
        "UPDATE tree_node SET hash = sha256('x') WHERE level = 1 AND index = 1",
        "DELETE FROM tree_node WHERE level = 2 AND index = 0",
        "UPDATE tree_head SET root = sha256('x')",
        "DELETE FROM audit_leaf WHERE seq > 3",
    ],
)
def test_a_log_that_was_changed_gets_no_further_head_and_says_so(held: Log, statement: str):
    signer = held.signer()
    held.write(9)
    settle(signer)
    last, copies = held.head().size, dict(held.copies.held)
    held.tamper(statement)
    held.write(2)
    for one in (signer, held.signer()):
        settle(one)
        assert held.state() in {"log-tampered", "log-forked", "log-shrunken"}
    assert held.head().size == last
    assert held.copies.held == copies


def test_a_database_put_back_to_an_older_state_is_refused_by_the_copies_it_does_not_hold(held: Log):
    signer = held.signer()
    held.write(4)
    settle(signer)
    held.tamper("DELETE FROM tree_head WHERE size > 0")
    older = Log(held.ledger, held.tenant, Kept(dict(held.copies.held)))
    held.tamper("DELETE FROM audit_leaf WHERE seq > 1")
    settle(older.signer())
    assert held.state() == "log-shrunken"
    assert held.head() is None
    assert older.copies.held == held.copies.held


@pytest.mark.parametrize(("seed", "state"), [("", "signing-key-refused"), ("not hex", "signing-key-refused"), (OTHER, "signing-key-refused")])
def test_without_its_key_the_signer_makes_leaves_and_signs_nothing_and_the_report_waits(held: Log, seed: str, state: str):
    settle(held.signer())
    before = held.head().size
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(held.signer(seed))
    assert held.state() == state
    assert held.size() == before + 1
    assert held.head().size == before
    assert held.served(request) is None
    settle(held.signer())
    assert held.state() == "ok"
    assert held.served(request) is not None


def test_a_report_is_signed_once_its_leaf_is_below_a_head_and_its_request_is_told(held: Log):
    request = held.request()
    statement = {"_type": "x", "predicate": {"b": ["é", "1.5"]}}
    held.report(request, statement)
    assert held.served(request) is None
    settle(held.signer())
    report = held.served(request)
    payload = base64.b64decode(report.envelope["payload"])
    assert json.loads(payload) == statement
    (signature,) = report.envelope["signatures"]
    assert signature["keyid"] == key().public.key_id
    assert key().public.holds(base64.b64decode(signature["sig"]), pae("application/vnd.in-toto+json", payload))
    assert report.tlog_proof.startswith("c2sp.org/tlog-proof@v1\nextra ")
    with held.session("superuser") as session:
        rung = session.execute(text("SELECT count(*) FROM outbox WHERE topic = 'request.advance' AND ref = :r"), {"r": request}).scalar_one()
    assert rung == 1


def test_a_statement_that_is_not_the_one_in_the_log_is_never_signed(held: Log):
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}}, digest="ab" * 32)
    settle(held.signer())
    assert held.served(request) is None
    assert held.state() != "ok"


def test_a_key_is_replaced_only_with_the_signature_of_the_one_before(held: Log):
    settle(held.signer())
    settle(held.signer(OTHER))
    assert held.state() == "signing-key-refused"
    settle(held.signer(OTHER, previous=SEED))
    assert held.state() == "ok"
    with held.session() as session:
        old, new = leaves.keys(session)
        assert (old.valid_to is not None, new.valid_to) == (True, None)
        assert bytes(new.public_key) == key(OTHER).public.public
        assert key().public.holds(bytes.fromhex(new.body["endorsement"]), endorsed(key(OTHER).public))
        types = session.scalars(text("SELECT type FROM audit_event WHERE tenant_id IS NULL ORDER BY seq")).all()
    assert list(types) == ["key.added", "key.rotated"]
    held.write()
    settle(held.signer(OTHER))
    assert parse_checkpoint(held.head().note).signed_by(key(OTHER).public)
    settle(held.signer(SEED))
    assert held.state() == "signing-key-refused"


@pytest.mark.parametrize("role", ["lethe_gateway", "lethe_worker", "lethe_control"])
def test_the_service_writes_events_and_none_of_what_is_the_signers(held: Log, role: str):
    held.write()
    for statement in (
        "INSERT INTO audit_leaf VALUES (0, 1, '')", "INSERT INTO tree_node VALUES (1, 0, '')", "INSERT INTO tree_head VALUES (1, '', '')",
        "INSERT INTO signing_key (key_id, name, public_key, event_id, salt, body) VALUES ('k', 'n', '', 1, '', '{}')",
        "UPDATE audit_event SET seq = 0", f"INSERT INTO audit_event (tenant_id, type, commitment, seq) VALUES ('{held.tenant}', 'x', '', 0)",
        "UPDATE audit_report SET envelope = '{}', tlog_proof = ''", "UPDATE signer_state SET state = 'ok'",
    ):  # fmt: skip
        with pytest.raises(DBAPIError, match="permission denied"), held.session(role, tenant=True) as session:
            session.execute(text(statement))


def test_the_signer_reads_no_request_and_writes_no_event_of_a_tenant(held: Log):
    for statement in (
        "SELECT * FROM deletion_request",
        "SELECT * FROM target_record",
        "SELECT * FROM api_key",
        "UPDATE audit_report SET digest = ''",
    ):
        with pytest.raises(DBAPIError, match="permission denied"), held.session() as session:
            session.execute(text(statement))
    with pytest.raises(DBAPIError, match="row-level security"), held.session() as session:
        session.execute(text(f"INSERT INTO audit_event (tenant_id, type, commitment) VALUES ('{held.tenant}', 'x', '')"))


def test_what_the_signer_has_set_stands_even_for_the_owner(held: Log):
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(held.signer())
    for statement in (
        "UPDATE audit_event SET seq = seq + 100", "UPDATE audit_report SET tlog_proof = 'x'", "UPDATE audit_report SET statement = '{}'",
        "UPDATE audit_leaf SET leaf_hash = ''", "DELETE FROM audit_leaf", "TRUNCATE tree_node", "UPDATE tree_head SET note = ''", "DELETE FROM tree_head",
        "UPDATE signing_key SET public_key = ''",
    ):  # fmt: skip
        with pytest.raises(DBAPIError, match="immutable"), held.session("lethe_owner", tenant=True) as session:
            session.execute(text(statement))
