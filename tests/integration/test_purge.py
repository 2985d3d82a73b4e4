"""Destroying versions: when, what stands in the way, what is proved, and that an interruption at any point changes nothing of the end."""

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import rfc8785
from sqlalchemy import insert, text

from control.purge import Purge
from models_store.errors import StoreUnavailable
from models_store.memory import MemoryStore
from models_store.objects import blob_key
from models_store.s3 import S3Store
from services.catalogue import service as catalogue
from services.clock import uuid7
from services.datasets import service as datasets
from services.db.session import unit_of_work
from services.db.tables import LegalHold, ObjectRef
from services.errors import BuriedBytes, CertificateNotReady, CheckpointDestroyed, Conflict, ForgottenBytes, FourEyesRequired, VersionInUse
from services.jobs import repository as job_rows
from services.jobs.steps.report import build_report
from services.model_versions import purge
from services.model_versions import service as models
from services.model_versions.forms import FileForm, NewVersion
from services.requests import holds, jobs
from tests.integration.conftest import Ledger
from tests.integration.crash_walk import killed_at, killed_for_real, purge_process
from tests.integration.test_ledger_requests import CLOCK, KEYS, World, digest, person
from worker import tombstones

DUE = "UPDATE job SET run_after = clock_timestamp() WHERE kind = 'purge' AND state = 'queued'"
LOST = "UPDATE job SET lease_until = clock_timestamp() - interval '1 second' WHERE lease_until IS NOT NULL"


CLEAN = (
    "DELETE FROM worker",
    "UPDATE legal_hold SET released_at = clock_timestamp(), released_by = 'test' WHERE released_at IS NULL",
    "UPDATE job SET state = 'cancelled', lease_owner = NULL, lease_until = NULL, finished_at = clock_timestamp() WHERE finished_at IS NULL",
)


class Yard:
    """The ledger's world with a store that keeps versions, and control's purge over both."""

    def __init__(self, ledger: Any) -> None:
        self.world = World(ledger)
        self.store = MemoryStore(versioned=True)
        self.purge = Purge(ledger.engine("lethe_control"), self.store, KEYS, clock=CLOCK)
        self.persons = iter(range(10))
        self.fill()

    def rows(self, statement: str, **values: Any) -> list[Any]:
        return list(self.world.sql(text(statement).bindparams(**values), "superuser"))

    def job(self, number: int) -> Any:
        """The newest purge job of a version."""
        of = "SELECT *, run_after > clock_timestamp() AS later FROM job WHERE kind = 'purge' AND base_version_id = :v ORDER BY id DESC LIMIT 1"
        return self.rows(of, v=self.version(number).id)[0]

    def fill(self) -> None:
        """Put twice what the ledger says is stored: a store with versions keeps both."""
        for row in self.rows("SELECT DISTINCT f.digest FROM model_file f JOIN object o ON o.digest = f.digest AND o.state = 'live'"):
            if self.store.head(blob_key(row.digest)) is None:
                self.store.put_bytes(blob_key(row.digest), b"old", if_absent=False)
                self.store.put_bytes(blob_key(row.digest), b"weights", if_absent=False)

    def supersede(self) -> tuple[UUID, int]:
        """Let the next person be forgotten by the next version; return the request and the number of the version that knew them."""
        number, person_number = self.current(), next(self.persons)
        view = self.world.create(person(f"p{person_number}"))
        self.world.advance(view.id)
        self.world.forget(self.world.jobs(view.id)[0].id, [f"r{2 * person_number:03}", f"r{2 * person_number + 1:03}"])
        self.fill()
        return view.id, number

    def train(self) -> int:
        """Train a new version on the newest data; return the number of the one before."""
        number = self.current()
        latest = self.world.run("lethe_gateway", datasets.read_dataset, "digits").latest_version
        self.world.train("reader", latest)
        self.fill()
        return number

    def current(self) -> int:
        return self.world.run("lethe_gateway", models.read_model, "reader").current_version

    def version(self, number: int) -> Any:
        return self.world.run("lethe_gateway", models.read_version, "reader", number)

    def weights(self, number: int) -> str:
        return self.version(number).files[0].sha256

    def due(self) -> None:
        self.world.sql(text(DUE), "superuser")

    def turns(self) -> int:
        """Do every due purge job, and return how many turns were made."""
        return sum(iter(self.purge.turn, 0))

    def destroy(self, number: int) -> UUID:
        return self.world.run("lethe_gateway", purge.request_destruction, "reader", number, caller=self.world.caller, clock=CLOCK)

    def certificate(self, number: int) -> Any:
        return self.world.run("lethe_gateway", purge.certificate, "reader", number)

    def stored(self, number: int) -> list[str]:
        return [one.version_id for one in self.store.list_versions(blob_key(self.weights(number)))]


@pytest.fixture(scope="module")
def whole(postgres: Any) -> Iterator[Yard]:
    ledger = Ledger(postgres)
    yield Yard(ledger)
    ledger.close()


@pytest.fixture
def yard(whole: Yard) -> Iterator[Yard]:
    """The module's yard, in which nothing of the test before waits or holds."""
    yield whole
    for statement in CLEAN:
        whole.world.sql(text(statement), "superuser")


def test_a_superseded_version_is_destroyed_when_its_quarantine_is_over_and_a_certificate_says_so(yard: Yard) -> None:
    request, old = yard.supersede()
    assert len(yard.stored(old)) == 2
    assert yard.purge.turn() == 0  # thirty days are not over
    with pytest.raises(CertificateNotReady):
        yard.certificate(old)
    yard.due()

    assert yard.turns() == 2  # and that of the dataset version

    assert yard.stored(old) == []
    assert len(yard.stored(old + 1)) == 2
    gone = yard.version(old)
    assert (gone.status, gone.destroyed_at is not None) == ("destroyed", True)
    found = yard.certificate(old)
    document = found.document
    assert found.digest == hashlib.sha256(rfc8785.dumps(document)).hexdigest()
    assert found.commitment == hashlib.sha256(rfc8785.dumps(found.opening)).hexdigest()
    assert (found.opening["type"], found.opening["body"]["certificate"]) == ("model_version.destruction_certified", found.digest)
    assert (document["model"], document["version"], document["reason"], document["requested_by"]) == ("reader", old, "superseded", "policy")
    assert document["files"] == [
        {"path": "model.safetensors", "sha256": gone.files[0].sha256, "size_bytes": 100, "disposition": "destroyed", "needed_by": []}
    ]
    assert {name: document["proof"][name] for name in ("head", "listing")} == {"head": "absent", "listing": "empty"}
    assert "unreachable through the S3 API" in document["statement"]
    assert document["destroyed_at"] == gone.destroyed_at.isoformat()
    assert yard.purge.turn() == 0
    assert (yard.job(old).state, yard.job(old).result["certificate"]) == ("succeeded", found.digest)
    assert yard.world.read(request).targets[0].published_version == old + 1


def test_a_policy_that_purges_at_once_destroys_at_once(yard: Yard) -> None:
    for trigger, rule in (("DISABLE", "now"), ("ENABLE", "")):
        yard.world.sql(text(f"ALTER TABLE policy {trigger} TRIGGER immutable"), "superuser")
        if rule:
            yard.world.sql(text("""UPDATE policy SET flags = flags || '{"purge_superseded": "now"}' WHERE key = 'demo'"""), "superuser")
    _, old = yard.supersede()
    try:
        assert yard.turns() == 2
        assert yard.version(old).status == "destroyed"
    finally:
        yard.world.sql(text("ALTER TABLE policy DISABLE TRIGGER immutable"), "superuser")
        yard.world.sql(text("""UPDATE policy SET flags = flags || '{"purge_superseded": "after:30"}' WHERE key = 'demo'"""), "superuser")
        yard.world.sql(text("ALTER TABLE policy ENABLE TRIGGER immutable"), "superuser")


def test_the_next_revision_of_the_report_shows_the_destruction_and_its_certificate(yard: Yard) -> None:
    request, old = yard.supersede()
    facts: dict[str, Any] = {"tenant_id": yard.world.tenant, "keys": KEYS, "clock": CLOCK}
    yard.world.run("lethe_control", build_report, request, **facts)
    yard.due()
    yard.turns()
    assert yard.world.topics(request)[-1] == "report.build"
    yard.world.run("lethe_control", build_report, request, **facts)

    statements = yard.rows("SELECT statement FROM audit_report WHERE request_id = :r ORDER BY revision", r=request)
    first, second = ({one["version"]: one for one in row.statement["predicate"]["artifacts"][0]["superseded"]} for row in statements)
    assert (first[old]["disposition"], first[old]["certificate"]) == ("quarantined", None)
    assert (second[old]["disposition"], second[old]["certificate"]) == ("destroyed", yard.certificate(old).digest)
    assert second[old]["destroyed_at"] == yard.version(old).destroyed_at.isoformat()
    said = [{entry["code"] for entry in row.statement["predicate"]["limitations"]} for row in statements]
    assert ["storage_reclaim" in codes for codes in said] == [False, True]
    assert yard.certificate(old).document["requests"] == [f"dr_{request.hex}"]


def test_bytes_that_another_version_needs_stay_and_the_certificate_says_for_whom(yard: Yard) -> None:
    old = yard.train()
    row = {"tenant_id": yard.world.tenant, "digest": yard.weights(old), "owner_kind": "model_version", "owner_id": yard.version(yard.current()).id}
    yard.world.sql(insert(ObjectRef).values(**row), "superuser")
    yard.destroy(old)

    assert yard.purge.turn() == 1

    assert len(yard.stored(old)) == 2
    (file,) = yard.certificate(old).document["files"]
    assert (file["disposition"], file["needed_by"]) == ("kept", [f"reader version {yard.current()}"])
    assert yard.rows("SELECT 1 FROM tombstone WHERE digest = :d", d=yard.weights(old)) == []
    assert [one.state for one in yard.rows("SELECT state FROM object WHERE digest = :d", d=yard.weights(old))] == ["live"]
    undo = "DELETE FROM object_ref WHERE digest = :d"  # or the next version would be kept for the sake of this one
    yard.world.sql(text(undo).bindparams(d=yard.weights(old)), "superuser")


def test_bytes_of_another_tenant_stay_and_the_tenant_is_not_named(yard: Yard) -> None:
    old, ledger = yard.train(), yard.world.ledger
    other = ledger.tenant("other")
    with unit_of_work(ledger.engine("superuser"), tenant=other) as session:
        session.execute(insert(ObjectRef).values(tenant_id=other, digest=yard.weights(old), owner_kind="model_version", owner_id=other))
    yard.destroy(old)
    yard.purge.turn()

    assert [one["needed_by"] for one in yard.certificate(old).document["files"]] == [["another owner"]]
    assert len(yard.stored(old)) == 2


def test_a_legal_hold_keeps_a_version_until_it_is_released(yard: Yard) -> None:
    _, old = yard.supersede()
    hold = {
        "id": uuid7(CLOCK),
        "tenant_id": yard.world.tenant,
        "scope": "model",
        "scope_ref": yard.world.model_id.bytes,
        "reason": "x",
        "placed_by": "x",
    }
    yard.world.sql(insert(LegalHold).values(**hold), "lethe_gateway")
    yard.due()
    assert yard.turns() == 2
    assert (yard.job(old).state, yard.job(old).error["code"], yard.job(old).later) == ("queued", "legal-hold", True)
    assert (yard.version(old).status, len(yard.stored(old))) == ("quarantined", 2)
    with pytest.raises(VersionInUse, match="legal hold hold_"):
        yard.destroy(old)

    yard.world.run("lethe_gateway", holds.release, hold["id"], "over", expected_version=1, caller=yard.world.caller)
    assert not yard.job(old).later  # the release has made it due
    assert yard.turns() == 2
    assert yard.version(old).status == "destroyed"


def test_under_four_eyes_another_principal_than_the_requests_creator_has_a_superseded_version_destroyed_early(yard: Yard) -> None:
    def four_eyes(said: str) -> None:
        change = """UPDATE policy SET flags = flags || '{"four_eyes": %s}' WHERE key = 'demo'""" % said  # noqa: UP031  braces
        for statement in ("ALTER TABLE policy DISABLE TRIGGER immutable", change, "ALTER TABLE policy ENABLE TRIGGER immutable"):
            yard.world.sql(text(statement), "superuser")

    _, old = yard.supersede()
    plain = yard.train()
    four_eyes("true")
    try:
        with pytest.raises(FourEyesRequired):
            yard.destroy(old)
        assert yard.version(old).destroy_by > CLOCK.now()
        yard.destroy(plain)  # nobody's records were forgotten by it
        second = replace(yard.world.caller, principal="second")
        yard.world.run("lethe_gateway", purge.request_destruction, "reader", old, caller=second, clock=CLOCK)
    finally:
        four_eyes("false")
    assert yard.turns() == 2
    assert (yard.version(old).status, yard.certificate(old).document["requested_by"]) == ("destroyed", "second")


def test_a_version_in_use_is_not_destroyed(yard: Yard) -> None:
    world, old = yard.world, yard.current()
    with pytest.raises(VersionInUse, match="current"):
        yard.destroy(old)
    yard.train()
    world.run("lethe_gateway", models.set_alias, "reader", "live", old, expected_etag=None, create=True, caller=world.caller, clock=CLOCK)
    with pytest.raises(VersionInUse, match="alias live"):
        yard.destroy(old)
    world.run("lethe_gateway", models.delete_alias, "reader", "live", expected_etag=1, caller=world.caller)
    job = world.ledger.job(world.tenant, world.model_id, base_version_id=yard.version(old).id)
    with pytest.raises(VersionInUse, match="open job"):
        yard.destroy(old)
    world.run("lethe_gateway", jobs.cancel, job, caller=world.caller, clock=CLOCK)

    asked = yard.destroy(old)
    assert yard.version(old).status == "quarantined"
    assert yard.destroy(old) == asked  # one job
    with pytest.raises(Conflict, match="legal hold"):
        world.run("lethe_gateway", jobs.cancel, asked, caller=world.caller, clock=CLOCK)
    assert yard.purge.turn() == 1
    document = yard.certificate(old).document
    assert (document["reason"], document["requested_by"], document["requests"]) == ("requested", "desk", [])
    with pytest.raises(CheckpointDestroyed):
        yard.destroy(old)


def test_what_came_into_use_before_the_first_byte_went_makes_the_purge_wait(yard: Yard) -> None:
    old = yard.train()
    yard.destroy(old)
    yard.world.ledger.job(yard.world.tenant, yard.world.model_id, base_version_id=yard.version(old).id, kind="reference")
    assert yard.purge.turn() == 1
    assert (yard.job(old).error["code"], yard.version(old).status) == ("version-in-use", "quarantined")


def test_the_certificate_waits_until_every_live_worker_has_looked_for_copies(yard: Yard) -> None:
    engine = yard.world.ledger.engine("lethe_worker")
    with unit_of_work(engine, tenant=None) as session:
        catalogue.introduce(session, worker="w1", queue="cpu", device={}, versions={})
    old = yard.train()
    yard.destroy(old)
    assert yard.purge.turn() == 1
    assert (yard.version(old).status, yard.stored(old)) == ("destroyed", [])
    with pytest.raises(CertificateNotReady):
        yard.certificate(old)

    with unit_of_work(engine, tenant=None) as session:
        catalogue.renew(session, worker="w1")
    yard.due()
    assert yard.purge.turn() == 1
    assert yard.certificate(old).document["proof"]["workers_asked"] == 1


def test_a_worker_drops_the_copies_of_what_was_destroyed_and_nothing_else(yard: Yard, tmp_path: Path) -> None:
    body, other = b"w" * 100, b"x" * 100
    dead = hashlib.sha256(body).hexdigest()
    yard.world.sql(text("INSERT INTO tombstone (digest, size_bytes, reason) VALUES (:d, 100, 'superseded')").bindparams(d=dead))
    (tmp_path / "job-1").mkdir()
    (tmp_path / "job-1" / "base.safetensors").write_bytes(body)
    (tmp_path / "job-1" / "other.safetensors").write_bytes(other)

    assert tombstones.drop(yard.world.ledger.engine("lethe_worker"), tmp_path) == 1
    assert [path.name for path in (tmp_path / "job-1").iterdir()] == ["other.safetensors"]
    assert tombstones.drop(yard.world.ledger.engine("lethe_worker"), tmp_path) == 0


def test_destroyed_weights_may_not_come_back(yard: Yard) -> None:
    old, world = yard.train(), yard.world
    bytes_of_old = yard.weights(old)

    def upload(path: str, sha256: str) -> Any:
        form = NewVersion((FileForm(path, 100, sha256), FileForm("notes.txt", 1, digest("notes"))))
        return world.run("lethe_gateway", models.create_version, "reader", form, caller=world.caller, clock=CLOCK)

    yard.destroy(old)
    with pytest.raises(ForgottenBytes):  # of a quarantined version
        upload("copy.safetensors", bytes_of_old)
    yard.purge.turn()
    with pytest.raises(ForgottenBytes):  # of a destroyed one
        upload("copy.safetensors", bytes_of_old)
    assert upload("config.json", bytes_of_old).status == "pending"  # weights are meant: small files are often alike
    job = world.ledger.job(world.tenant, world.model_id)
    with pytest.raises(BuriedBytes), unit_of_work(world.ledger.engine("lethe_worker"), tenant=world.tenant) as session:
        job_rows.pin(session, job_rows.job_row(session, job), "candidate.safetensors", bytes_of_old, 100)


def test_a_store_that_does_not_answer_is_asked_again_and_loses_nothing(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    old = yard.train()
    yard.destroy(old)
    with monkeypatch.context() as patch:
        patch.setattr(yard.store, "delete_version", lambda *_: (_ for _ in ()).throw(StoreUnavailable(detail="503")))
        assert yard.purge.turn() == 1
    assert (yard.job(old).state, yard.job(old).error["code"]) == ("queued", "storage-unavailable")
    yard.due()
    assert yard.purge.turn() == 1
    assert yard.version(old).status == "destroyed"


def outcome(yard: Yard, number: int) -> dict[str, Any]:
    """What is left of a version when its purge has ended, without the names of this run."""
    version = yard.version(number)
    document = {name: part for name, part in yard.certificate(number).document.items() if name in {"reason", "requested_by", "statement"}}
    files = [{name: part for name, part in file.items() if name != "sha256"} for file in yard.certificate(number).document["files"]]
    events = yard.rows(
        "SELECT e.type FROM audit_event e JOIN audit_payload p ON p.event_id = e.id WHERE p.object_id = :v ORDER BY e.id", v=version.id
    )
    weights = version.files[0].sha256
    return {
        "status": version.status,
        "document": document,
        "files": files,
        "stored": yard.stored(number),
        "object": [row.state for row in yard.rows("SELECT state FROM object WHERE digest = :d", d=weights)],
        "tombstones": len(yard.rows("SELECT 1 FROM tombstone WHERE digest = :d", d=weights)),
        "references": yard.rows("SELECT 1 FROM object_ref WHERE owner_id = :v", v=version.id),
        "events": [row.type for row in events],
        "jobs": [row.state for row in yard.rows("SELECT state FROM job WHERE kind = 'purge' AND base_version_id = :v", v=version.id)],
    }


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.soak)])
def test_a_purge_that_is_interrupted_at_any_point_ends_as_one_that_was_not(yard: Yard, monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    first = yard.train()
    yard.destroy(first)
    yard.purge.turn()
    undisturbed = outcome(yard, first)
    assert (undisturbed["status"], undisturbed["stored"], undisturbed["object"], undisturbed["tombstones"]) == ("destroyed", [], ["deleted"], 1)
    places: list[str] = []
    while len(places) < 60:
        number = yard.train()
        yard.destroy(number)
        place = killed_at(monkeypatch, len(places) * stride + 1, yard.purge.turn)
        if place is None:
            break
        places.append(place)
        yard.world.sql(text(LOST), "superuser")
        assert yard.purge.turn() in {0, 1}  # nothing is left to do where the last commit was the one it died after
        assert outcome(yard, number) == undisturbed, places[-1]
    assert len(places) * stride >= 24
    assert stride > 1 or {"before commit", "after commit", "after aborted uploads", "after a deleted store version"} <= set(places)


LAST_POINT = 48
"""More than a purge passes: a kill that does not come is an undisturbed purge."""
SURE_POINT = 24
"""Every purge passes as many: here the kill has to come."""


class Real(Yard):
    """The same over a real store with versions; a purge is a process of its own."""

    def __init__(self, ledger: Any, server: Any) -> None:
        super().__init__(ledger)
        parts = {"endpoint": server.endpoint, "public_endpoint": "", "region": "us-east-1", "bucket": "purge-tests"}
        self.store = S3Store.from_parts(**parts, access_key="testaccess", secret_key="testsecret", secure=False)
        self.store.ensure_bucket(versioned=True)
        self.arguments = purge_process(ledger, server, "purge-tests", KEYS.kek)
        self.fill()
        self.undisturbed = self.purged(0)

    def purged(self, point: int) -> dict[str, Any]:
        """Destroy a version by a process that is killed at a point (0: never), and by another one; return what is left."""
        number = self.train()
        assert len(self.stored(number)) == 2
        self.destroy(number)
        killed = killed_for_real(self.arguments, point or 10_000)
        assert killed in ({False} if point == 0 else {True} if point <= SURE_POINT else {True, False})
        if killed:
            self.world.sql(text(LOST), "superuser")
            subprocess.run(self.arguments, check=True, capture_output=True)
        return outcome(self, number)


@pytest.fixture(scope="module")
def real(postgres: Any, object_store_server: Any) -> Iterator[Real]:
    ledger = Ledger(postgres)
    yield Real(ledger, object_store_server)
    ledger.close()


@pytest.mark.soak
@pytest.mark.parametrize("point", range(1, LAST_POINT + 1))
def test_a_purge_killed_for_real_ends_as_one_that_was_not(real: Real, point: int) -> None:
    assert (real.undisturbed["status"], real.undisturbed["stored"]) == ("destroyed", [])
    assert real.purged(point) == real.undisturbed
