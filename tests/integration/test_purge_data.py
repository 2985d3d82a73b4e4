"""Destroying dataset versions that hold forgotten records: when, what stands in the way, what is proved on a real store, and that nothing comes back."""

import hashlib
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import rfc8785
from sqlalchemy import text

from api import problems
from control.purge import Purge
from models_store.objects import blob_key
from models_store.s3 import S3Store
from services.audit import destruction as common
from services.clock import uuid7
from services.datasets import purge
from services.datasets import service as datasets
from services.datasets.forms import FileForm, NewDataset
from services.errors import CertificateNotReady, DatasetSuperseded, ForgottenFile, InvalidInput, VersionNotReady
from services.jobs import repository as job_rows
from services.jobs.steps.report import build_report
from services.model_versions import service as models
from services.model_versions.forms import NewModel, NewTrainingRun
from services.requests import holds, record
from tests.integration.conftest import Ledger
from tests.integration.crash_walk import killed_at, killed_for_real, purge_process
from tests.integration.test_ledger_requests import CLOCK, KEYS, digest, person
from tests.integration.test_purge import CLEAN, LOST, Yard


class DataYard(Yard):
    """The yard over a real store with versions, in which the files of datasets lie as well."""

    def __init__(self, ledger: Any, server: Any) -> None:
        super().__init__(ledger)
        self.bucket = f"data-{ledger.name.replace('_', '-')}"
        self.store = S3Store.from_parts(
            endpoint=server.endpoint, public_endpoint="", region="us-east-1", bucket=self.bucket,
            access_key="testaccess", secret_key="testsecret", secure=False,
        )  # fmt: skip
        self.store.ensure_bucket(versioned=True)
        self.purge = Purge(ledger.engine("lethe_control"), self.store, KEYS, clock=CLOCK)
        self.fill()

    def fill(self) -> None:
        live = "SELECT f.digest FROM {} f JOIN object o ON o.digest = f.digest AND o.state = 'live'"
        for row in self.rows(f"{live.format('model_file')} UNION {live.format('dataset_file')}"):
            if self.store.head(blob_key(row.digest)) is None:
                self.store.put_bytes(blob_key(row.digest), b"old", if_absent=False)
                self.store.put_bytes(blob_key(row.digest), b"new", if_absent=False)

    def data(self, number: int, dataset: str = "digits") -> Any:
        return self.world.run("lethe_gateway", datasets.read_version, dataset, number)

    def newest(self) -> int:
        return self.world.run("lethe_gateway", datasets.read_dataset, "digits").latest_version

    def data_job(self, number: int) -> Any:
        """The newest purge job of a dataset version."""
        of = "SELECT *, run_after > clock_timestamp() AS later FROM job WHERE kind = 'purge' AND dataset_version_id = :v ORDER BY id DESC LIMIT 1"
        return self.rows(of, v=self.data(number).id)[0]

    def data_certificate(self, number: int) -> Any:
        return self.world.run("lethe_gateway", purge.certificate, "digits", number)

    def bytes_of(self, number: int) -> list[str]:
        return [one.version_id for one in self.store.list_versions(blob_key(self.data(number).files[0].sha256))]

    def erase(self) -> tuple[UUID, int]:
        """Let the next person be forgotten; return the request and the number of the dataset version that knew them."""
        number = self.newest()
        request, _ = self.supersede()
        return request, number

    def report(self, request: UUID) -> Any:
        """Build the next revision of a report and return what it says of artifacts and of its next review."""
        self.world.run("lethe_control", build_report, request, tenant_id=self.world.tenant, keys=KEYS, clock=CLOCK)
        newest = "SELECT statement FROM audit_report WHERE request_id = :r ORDER BY revision DESC LIMIT 1"
        return self.rows(newest, r=request)[0].statement["predicate"]


@pytest.fixture(scope="module")
def whole(postgres: Any, object_store_server: Any) -> Iterator[DataYard]:
    ledger = Ledger(postgres)
    yield DataYard(ledger, object_store_server)
    ledger.close()


@pytest.fixture
def yard(whole: DataYard) -> Iterator[DataYard]:
    """The module's yard, in which nothing of the test before waits or holds."""
    yield whole
    for statement in CLEAN:
        whole.world.sql(text(statement), "superuser")


def test_a_dataset_version_that_holds_forgotten_records_is_retired_and_destroyed_on_its_date_with_a_certificate(yard: DataYard) -> None:
    request, old = yard.erase()
    retired = yard.data(old)
    assert (retired.status, retired.destroy_by is not None, retired.purged_at) == ("retired", True, None)
    assert (yard.newest(), yard.data(old + 1).status) == (old + 1, "ready")
    assert yard.purge.turn() == 0  # thirty days are not over
    with pytest.raises(CertificateNotReady):
        yard.data_certificate(old)
    waits = yard.report(request)
    assert [(one["version"], one["disposition"], one["certificate"]) for one in waits["artifacts"][0]["datasets"]] == [(old, "retired", None)]
    assert waits["next_review"] is not None
    assert len(yard.bytes_of(old)) == 2
    yard.due()

    assert yard.turns() == 2

    assert (yard.bytes_of(old), len(yard.bytes_of(old + 1))) == ([], 2)
    assert yard.store.head(blob_key(retired.files[0].sha256)) is None
    gone = yard.data(old)
    assert (gone.status, gone.purged_at is not None) == ("purged", True)
    found = yard.data_certificate(old)
    document = found.document
    assert found.digest == hashlib.sha256(rfc8785.dumps(document)).hexdigest()
    assert found.commitment == hashlib.sha256(rfc8785.dumps(found.opening)).hexdigest()
    assert (found.opening["type"], found.opening["body"]["certificate"]) == ("dataset_version.destruction_certified", found.digest)
    assert (document["dataset"], document["version"], document["reason"], document["requested_by"]) == ("digits", old, "superseded", "policy")
    (file,) = document["files"]
    assert (file["sha256"], file["disposition"], file["needed_by"]) == (retired.files[0].sha256, "destroyed", [])
    assert {name: document["proof"][name] for name in ("head", "listing")} == {"head": "absent", "listing": "empty"}
    assert (document["requests"], document["destroyed_at"]) == ([f"dr_{request.hex}"], gone.purged_at.isoformat())
    told = yard.report(request)
    assert [(one["version"], one["disposition"], one["certificate"]) for one in told["artifacts"][0]["datasets"]] == [(old, "purged", found.digest)]
    assert "storage_reclaim" in {one["code"] for one in told["limitations"]}


def test_the_record_of_processing_names_the_superseded_data_of_a_request(yard: DataYard) -> None:
    request, old = yard.erase()
    yard.due()
    yard.turns()
    month = record.Period(CLOCK.now().replace(day=1, month=1), CLOCK.now().replace(year=CLOCK.now().year + 1))
    items = yard.world.run("lethe_gateway", record.export, month, caller=yard.world.caller)["items"]
    (mine,) = [one for one in items if one["request"] == request]
    held = {one["version"]: one for one in mine["datasets"]}
    assert (held[old]["dataset"], held[old]["disposition"], held[old]["certificate"]) == ("digits", "purged", yard.data_certificate(old).digest)


def test_a_file_that_a_dataset_version_in_use_has_too_stays_and_the_certificate_says_for_whom(yard: DataYard) -> None:
    world, shared = yard.world, yard.data(yard.newest()).files[0]
    form = FileForm("copy.parquet", shared.size_bytes, shared.sha256)
    world.run("lethe_gateway", datasets.create_dataset, NewDataset("copy", "image"), caller=world.caller, clock=CLOCK)
    made = world.run("lethe_gateway", datasets.create_version, "copy", [form], caller=world.caller, clock=CLOCK)
    world.run("lethe_gateway", datasets.complete_version, "copy", made.number, caller=world.caller, clock=CLOCK)
    world.run("lethe_control", datasets.ingested, made.id, [("c1", "0")], manifest_digest=digest("c"), files=[form], clock=CLOCK)
    _, old = yard.erase()
    yard.due()

    assert yard.turns() == 2

    assert len(yard.bytes_of(old)) == 2
    (file,) = yard.data_certificate(old).document["files"]
    assert (file["disposition"], file["needed_by"]) == ("kept", ["dataset copy version 1"])
    assert yard.data(old).status == "purged"
    assert [one.state for one in yard.rows("SELECT state FROM object WHERE digest = :d", d=shared.sha256)] == ["live"]


@pytest.mark.parametrize("scope", ["dataset", "subject", "model"])
def test_a_legal_hold_keeps_a_dataset_version_until_it_is_released(yard: DataYard, scope: str) -> None:
    request, old = yard.erase()
    of = {
        "dataset": yard.data(old).dataset_id.bytes,
        "model": yard.world.model_id.bytes,
        "subject": bytes(yard.rows("SELECT subject_hmac AS h FROM subject_record ORDER BY record_id DESC LIMIT 1")[0].h),  # of one who stays
    }
    place = (
        "INSERT INTO legal_hold (id, tenant_id, scope, scope_ref, reason, placed_by) VALUES (gen_random_uuid(), :t, :s, :r, 'x', 'x') RETURNING id"
    )
    (row,) = yard.rows(place, t=yard.world.tenant, s=scope, r=of[scope])
    yard.due()
    assert yard.turns() == 2
    assert (yard.data_job(old).state, yard.data_job(old).error["code"], yard.data_job(old).later) == ("queued", "legal-hold", True)
    assert (yard.data(old).status, len(yard.bytes_of(old))) == ("retired", 2)
    assert yard.report(request)["artifacts"][0]["datasets"][-1]["holds"] == [f"hold_{row.id.hex}"]

    yard.world.run("lethe_gateway", holds.release, row.id, "over", expected_version=1, caller=yard.world.caller)
    assert not yard.data_job(old).later  # the release has made it due
    yard.turns()
    assert (yard.data(old).status, yard.bytes_of(old)) == ("purged", [])


def test_a_dataset_version_serves_the_model_that_has_yet_to_forget_and_goes_when_it_has(ledger: Ledger, object_store_server: Any) -> None:
    yard = DataYard(ledger, object_store_server)
    world, old = yard.world, yard.newest()
    world.run("lethe_gateway", models.create_model, NewModel("second", "classification", "mlp"), caller=world.caller, clock=CLOCK)
    world.train("second", old)
    number = next(yard.persons)
    ids = [f"r{2 * number:03}", f"r{2 * number + 1:03}"]
    view = world.create(person(f"p{number}"))
    world.advance(view.id)
    first, later = sorted(world.jobs(view.id), key=lambda job: job.model)
    world.sql(text("DELETE FROM job_target WHERE job_id = :j").bindparams(j=later.id), "superuser")  # as if its job were not open yet
    world.sql(text("DELETE FROM job WHERE id = :j").bindparams(j=later.id), "superuser")
    assert (first.model, later.model) == ("reader", "second")
    world.forget(first.id, ids)
    yard.due()
    yard.turns()
    assert (yard.data(old).status, yard.data_job(old).error["code"]) == ("retired", "version-in-use")
    assert yard.data_job(old).error["detail"] == "1 targets of open requests have no other version with their records"

    world.advance(view.id)
    (again,) = [job for job in world.jobs(view.id) if job.model == "second"]
    assert again.dataset_version_id == yard.data(old).id
    world.run("lethe_worker", job_rows.load, again.id)  # what is retired may be read to forget it
    yard.due()
    yard.turns()
    assert yard.data_job(old).error["detail"].startswith(f"job job_{again.id.hex} works on it; 1 targets")

    world.forget(again.id, ids)
    yard.due()
    yard.turns()
    assert (yard.data(old).status, yard.bytes_of(old)) == ("purged", [])


def test_nothing_learns_from_a_superseded_dataset_version_and_the_problem_says_why(yard: DataYard) -> None:
    _, old = yard.erase()
    world = yard.world
    form = NewTrainingRun("digits", old, {"epochs": 1}, seed=7)
    waiting = world.ledger.job(world.tenant, world.model_id, dataset_version_id=yard.data(old).id)
    with pytest.raises(DatasetSuperseded, match=f"Version {old} of dataset digits holds records that were forgotten and is retired") as caught:
        world.run("lethe_gateway", models.training_run, "reader", form, caller=world.caller, clock=CLOCK)
    assert (problems.status_of(caught.value), caught.value.code) == (409, "forgotten-data-resurrection")
    assert f"Version {old}" in problems.sentence(caught.value)
    with pytest.raises(DatasetSuperseded):  # a run that was queued before
        world.run("lethe_worker", job_rows.load, waiting)
    with pytest.raises(DatasetSuperseded):
        world.run("lethe_gateway", datasets.index_subjects, "digits", old, [], caller=world.caller, keys=KEYS)


def test_the_bytes_of_a_destroyed_dataset_version_do_not_come_back(yard: DataYard) -> None:
    _, old = yard.erase()
    held = yard.data(old).files[0]
    file = FileForm("again.parquet", held.size_bytes, held.sha256)
    world = yard.world
    world.run("lethe_gateway", datasets.create_dataset, NewDataset("other", "image"), caller=world.caller, clock=CLOCK)

    def upload(dataset: str) -> Any:
        return world.run("lethe_gateway", datasets.create_version, dataset, [file], caller=world.caller, clock=CLOCK)

    with pytest.raises(ForgottenFile, match=f"version {old} of dataset digits"):
        upload("other")
    yard.due()
    yard.turns()
    assert yard.data(old).status == "purged"
    with pytest.raises(ForgottenFile):
        upload("other")
    made = upload("digits")  # there its record ids say it
    world.run("lethe_gateway", datasets.complete_version, "digits", made.number, caller=world.caller, clock=CLOCK)
    with pytest.raises(InvalidInput, match="ended there"):
        world.run("lethe_control", datasets.ingested, made.id, world.rows, manifest_digest=digest("m"), files=[file], clock=CLOCK)
    with pytest.raises(VersionNotReady):
        world.run("lethe_control", purge.plan, yard.data(old).id)


def test_a_policy_that_never_purges_retires_a_dataset_version_for_good(yard: DataYard) -> None:
    def rule(said: str) -> None:
        for statement in (
            "ALTER TABLE policy DISABLE TRIGGER immutable",
            f"""UPDATE policy SET flags = flags || '{{"purge_superseded": "{said}"}}' WHERE key = 'demo'""",
            "ALTER TABLE policy ENABLE TRIGGER immutable",
        ):
            yard.world.sql(text(statement), "superuser")

    rule("never")
    try:
        _, old = yard.erase()
    finally:
        rule("after:30")
    assert (yard.data(old).status, yard.data(old).destroy_by) == ("retired", None)
    assert yard.rows("SELECT 1 FROM job WHERE kind = 'purge' AND dataset_version_id = :v", v=yard.data(old).id) == []


def outcome_of_data(yard: DataYard, number: int) -> dict[str, Any]:
    """What is left of a dataset version when its purge has ended, without the names of this run."""
    version, certificate = yard.data(number), yard.data_certificate(number)
    of = {"v": version.id}
    events = yard.rows("SELECT e.type FROM audit_event e JOIN audit_payload p ON p.event_id = e.id WHERE p.object_id = :v ORDER BY e.id", **of)
    return {
        "status": version.status,
        "document": {name: certificate.document[name] for name in ("reason", "requested_by", "statement")},
        "files": [{name: part for name, part in file.items() if name != "sha256"} for file in certificate.document["files"]],
        "stored": yard.bytes_of(number),
        "object": [row.state for row in yard.rows("SELECT state FROM object WHERE digest = :d", d=version.files[0].sha256)],
        "references": yard.rows("SELECT 1 FROM object_ref WHERE owner_id = :v", **of),
        "events": [row.type for row in events],
        "jobs": [row.state for row in yard.rows("SELECT state FROM job WHERE kind = 'purge' AND dataset_version_id = :v", **of)],
    }


STRIDE = 2
"""Every second crash point is one at which a process is killed."""
RETIRE = """UPDATE dataset_version SET status = 'retired', destroy_by = clock_timestamp() WHERE id = :v"""


def superseded(yard: DataYard, turn: int) -> int:
    """Upload a further version of the dataset and retire the one before, due at once, without a request for each; return its number."""
    number = yard.newest()
    rows = yard.rows("SELECT record_id, label FROM dataset_record WHERE upper_inf(present) ORDER BY record_id")
    yard.world.add_version([(f"t{turn:03}", "0"), *((row.record_id, row.label) for row in rows)])
    yard.fill()
    yard.world.sql(text(RETIRE).bindparams(v=yard.data(number).id), "superuser")
    values = {"id": None, "tenant_id": yard.world.tenant, "model_id": yard.world.model_id, "dataset_version_id": yard.data(number).id}
    params = {"reason": "superseded", "by": "policy"}
    yard.world.run("lethe_control", common.open_job, {**values, "id": uuid7(CLOCK)}, due=CLOCK.now(), params=params, by="control")
    return number


@pytest.mark.parametrize("stride", [12, pytest.param(1, marks=pytest.mark.soak)])
def test_a_purge_of_data_that_is_interrupted_at_any_point_ends_as_one_that_was_not(
    ledger: Ledger, object_store_server: Any, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    yard = DataYard(ledger, object_store_server)
    first = superseded(yard, 0)
    yard.turns()
    undisturbed = outcome_of_data(yard, first)
    assert (undisturbed["status"], undisturbed["stored"], undisturbed["object"], undisturbed["references"]) == ("purged", [], ["deleted"], [])
    assert undisturbed["events"][-2:] == ["dataset_version.destroyed", "dataset_version.destruction_certified"]
    places: list[str] = []
    while len(places) < 60:
        number = superseded(yard, len(places) + 1)
        place = killed_at(monkeypatch, len(places) * stride + 1, yard.turns)
        if place is None:
            break
        places.append(place)
        yard.world.sql(text(LOST), "superuser")
        yard.turns()
        assert outcome_of_data(yard, number) == undisturbed, places[-1]
    assert len(places) * stride >= 24
    assert stride > 1 or {"before commit", "after commit", "after aborted uploads", "after a deleted store version"} <= set(places)


@pytest.mark.soak
def test_a_purge_of_data_killed_for_real_ends_as_one_that_was_not(ledger: Ledger, object_store_server: Any) -> None:
    yard = DataYard(ledger, object_store_server)
    arguments = purge_process(ledger, object_store_server, yard.bucket, KEYS.kek)
    first = superseded(yard, 0)
    yard.turns()
    undisturbed = outcome_of_data(yard, first)
    kills = 0

    for point in range(1, 60, STRIDE):
        number = superseded(yard, point)
        if not killed_for_real(arguments, point):
            break
        kills += 1
        yard.world.sql(text(LOST), "superuser")
        subprocess.run(arguments, check=True, capture_output=True)
        assert outcome_of_data(yard, number) == undisturbed, point
    assert kills * STRIDE >= 24
