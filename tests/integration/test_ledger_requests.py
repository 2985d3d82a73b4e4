"""The ledger on a real database: datasets, models, requests, batches, publishing."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, text, update

from control.ingest import Ingest
from control.loops import BATCH, Control
from models_store.memory import MemoryStore
from services.catalogue.service import EntryIn
from services.catalogue.service import publish as publish_catalogue
from services.clock import FixedClock, SystemClock, uuid7
from services.datasets import service as datasets
from services.datasets.forms import FileForm, NewDataset, SubjectRow
from services.datasets.identifiers import Identifier
from services.db.session import unit_of_work
from services.db.tables import AuditReport, DatasetRecord, DeletionRequest, Job, JobTarget, ModelAlias, Outbox, Target, VerdictRow
from services.errors import (
    DuplicateExternalId,
    DuplicateName,
    EmptyForgetSet,
    EntityNotFound,
    ForgetSetIsEverything,
    FourEyesRequired,
    IllegalTransition,
    InvalidInput,
    MethodNotApplicable,
    MissingLabels,
    NotFound,
    ParameterOutOfRange,
    ParentMoved,
    PreconditionFailed,
    RecordsNotFound,
    Resurrection,
    TooLateToCancel,
    UnknownComponent,
    UnknownDataset,
    UnknownModel,
)
from services.model_versions import publication
from services.model_versions import repository as models_sql
from services.model_versions import service as models
from services.model_versions.forms import DatasetRef, NewModel, NewTrainingRun, NewVersion, Publication, PublishFile
from services.model_versions.forms import FileForm as WeightsForm
from services.requests import coalescing, jobs
from services.requests import service as requests
from services.requests.forms import (
    Cancellation,
    ClassScope,
    Decision,
    EntityScope,
    JobFilters,
    NewRequest,
    OtherScope,
    RecordsScope,
    RequestFilters,
    SubjectScope,
    TargetRangeScope,
)
from services.settings import Settings
from services.tenants.caller import SCOPES, Caller
from services.tenants.keys import KeyRing
from services.tenants.policies import seed_policies

KEYS = KeyRing(kek="11" * 32, pepper="22" * 32)
CLOCK = SystemClock()
PARAMETERS = {"type": "object", "properties": {"epochs": {"type": "integer", "minimum": 1}}, "additionalProperties": False}


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class World:
    """A tenant with dataset `digits` (20 records of each label 0..4), persons p0..p9 with two records each, and model `reader` at version 1."""

    def __init__(self, ledger: Any) -> None:
        self.rows = [(f"r{index:03}", str(index // 20)) for index in range(100)]
        ledger.settle("reader of digits", self._build)
        self._enter(ledger)
        self.model_id = self.run("lethe_gateway", models.read_model, "reader").id

    def _enter(self, ledger: Any) -> None:
        """Speak for the tenant of a database; a worker that lives offers there what it can run."""
        self.ledger = ledger
        self.tenant = ledger.default_tenant()
        self.caller = Caller(self.tenant, "desk", SCOPES)
        both = {"tasks": ["classification"], "granularities": ["class", "records"]}
        entries = [
            EntryIn("dataset_adapter", "image", facts={"tasks": ["classification"]}),
            EntryIn("task", "classification"),
            EntryIn("architecture", "mlp"),
            EntryIn("method", "retrain", guarantee="exact", needs=("retain_set", "recipe"), facts=both),
            EntryIn("method", "unsir", schema=PARAMETERS, needs=("retain_set",), facts={**both, "granularities": ["class"]}),
            EntryIn("method", "bad_teacher", needs=("retain_set",), facts=both),
        ]
        with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
            publish_catalogue(session, entries, worker="w1", queue="cpu")

    def _build(self, ledger: Any) -> None:
        self._enter(ledger)
        self.run("lethe_gateway", datasets.create_dataset, NewDataset("digits", "image"), caller=self.caller, clock=CLOCK)
        self.add_version(self.rows)
        subjects = [SubjectRow(f"r{index:03}", (Identifier("customer_id", f"p{index // 2}"),)) for index in range(20)]
        self.run("lethe_gateway", datasets.index_subjects, "digits", 1, subjects, caller=self.caller, keys=KEYS)
        self.run("lethe_gateway", models.create_model, NewModel("reader", "classification", "mlp"), caller=self.caller, clock=CLOCK)
        self.train("reader", 1)

    def run(self, role: str, call: Any, *args: Any, **named: Any) -> Any:
        with unit_of_work(self.ledger.engine(role), tenant=self.tenant) as session:
            return call(session, *args, **named)

    def sql(self, statement: Any, role: str = "lethe_control") -> Any:
        with unit_of_work(self.ledger.engine(role), tenant=self.tenant) as session:
            return session.execute(statement)

    def add_version(self, rows: list[tuple[str, str | None]]) -> Any:
        file = FileForm("records.parquet", 10, digest(f"data{len(rows)}{rows[0]}"))
        made = self.run("lethe_gateway", datasets.create_version, "digits", [file], caller=self.caller, clock=CLOCK)
        self.run("lethe_gateway", datasets.complete_version, "digits", made.number, caller=self.caller, clock=CLOCK)
        self.run("lethe_control", datasets.ingested, made.id, rows, manifest_digest=digest("m"), files=[file], clock=CLOCK)
        return made

    def hold(self, job_id: UUID, state: str) -> None:
        self.sql(update(Job).where(Job.id == job_id).values(state=state, lease_owner="w1", lease_until=datetime.now(UTC) + timedelta(hours=1)))

    def publication(self, job_id: UUID, learned: UUID, **more: Any) -> Publication:
        file = PublishFile("model.safetensors", digest(str(job_id)), 100)
        facts = {"fresh_start": False, "guarantee": "exact", "recipe": {"epochs": 1}, "seeds": {}} | more
        return Publication(job_id, (file,), {"files": []}, digest(f"manifest{job_id}"), ((learned, "train"),), **facts)

    def train(self, model: str, number: int, dataset: str = "digits") -> Any:
        form = NewTrainingRun(dataset, number, {"epochs": 1}, seed=7)
        job_id = self.run("lethe_gateway", models.training_run, model, form, caller=self.caller, clock=CLOCK)
        self.hold(job_id, "publishing")
        learned = self.run("lethe_gateway", datasets.read_version, dataset, number).id
        return self.run("lethe_worker", publication.publish, self.publication(job_id, learned), clock=CLOCK)

    def create(self, scope: Any, policy: str = "demo", **more: Any) -> Any:
        return self.run("lethe_gateway", requests.create, NewRequest(scope, policy=policy, **more), caller=self.caller, clock=CLOCK, keys=KEYS)

    def advance(self, request_id: UUID) -> str:
        """Move a request on and open the jobs that are due, as control does."""
        state = self.run("lethe_control", requests.advance, request_id, CLOCK)
        self.run("lethe_control", coalescing.coalesce, CLOCK, tenant_id=self.tenant)
        return state

    def read(self, request_id: UUID) -> Any:
        return self.run("lethe_gateway", requests.read, request_id, clock=CLOCK)

    def jobs(self, request_id: UUID | None = None) -> Any:
        return self.run("lethe_gateway", jobs.listing, JobFilters(request_id=request_id, kind="unlearn"))[0]

    def forget(self, job_id: UUID, record_ids: list[str], **more: Any) -> Any:
        """Publish a job as a worker does: erase from the dataset, then the model, in one transaction."""
        self.hold(job_id, "publishing")
        dataset = self.run("lethe_gateway", datasets.read_dataset, "digits")
        with unit_of_work(self.ledger.engine("lethe_worker"), tenant=self.tenant) as session:
            job = models_sql.job(session, job_id)
            assert job is not None
            targets = [target.id for target in models_sql.job_targets(session, job_id)]
            session.execute(update(Target).where(Target.id.in_(targets)).values(state="running"))
            session.execute(
                insert(VerdictRow).values(tenant_id=self.tenant, job_id=job_id, round=job.round, verdict="passed", codes=[], sentence="ok")
            )
            file = FileForm("records.parquet", 9, digest(f"erased{job_id}"))
            made = datasets.erase(session, dataset.id, record_ids, files=[file], manifest_digest=digest("e"), job_id=job_id, clock=CLOCK)
            told = self.publication(job_id, made.id, forgotten={dataset.id: tuple(record_ids)})
            return publication.publish(session, replace(told, **more), clock=CLOCK)

    def report(self, request_id: UUID) -> None:
        row = {"id": uuid7(CLOCK), "tenant_id": self.tenant, "request_id": request_id, "revision": 1, "digest": digest("report"), "statement": {}}
        row |= {"envelope": {}, "tlog_proof": "signed elsewhere"}
        with unit_of_work(self.ledger.engine("superuser"), tenant=self.tenant) as session:  # what only the signer may set is set here at once
            session.execute(insert(AuditReport).values(**row))

    def topics(self, ref: UUID) -> list[str]:
        with unit_of_work(self.ledger.engine("lethe_control"), tenant=self.tenant) as session:
            return list(session.scalars(select(Outbox.topic).where(Outbox.ref == ref).order_by(Outbox.id)))


def person(name: str) -> SubjectScope:
    return SubjectScope((Identifier("customer_id", name),))


@pytest.fixture
def world(ledger: Any) -> World:
    return World(ledger)


def test_a_request_for_a_person_goes_from_receipt_to_completed(world: World) -> None:
    view = world.create(person(" p3 "), external_id="dsr-1")
    assert (view.state, view.version, view.scope.records, view.done) == ("approved", 1, 2, False)
    assert [(one.model, one.base_version, one.records) for one in view.targets] == [("reader", 1, 2)]
    assert view.receipt.commitment
    assert world.topics(view.id) == ["request.advance"]
    assert world.advance(view.id) == "in_progress"
    (job,) = world.jobs(view.id)
    assert (job.method, job.state, job.queue, job.base_version, job.targets) == ("retrain", "queued", "cpu", 1, (view.targets[0].id,))
    assert job.choice["reason"].startswith("too few records for an equivalence test: 2, and within 0.05")
    assert world.topics(job.id) == ["job.ring"]
    assert world.advance(view.id) == "in_progress"
    assert len(world.jobs()) == 1
    published = world.forget(job.id, ["r006", "r007"])
    assert published.requests == (view.id,)
    assert world.topics(view.id)[-2:] == ["report.build", "request.advance"]
    assert world.advance(view.id) == "in_progress"
    world.report(view.id)
    assert world.advance(view.id) == "completed"
    done = world.read(view.id)
    assert (done.done, done.result.versions[0].version, done.result.datasets[0].version) == (True, 2, 2)
    assert [(one.version, one.disposition, one.destroy_by is not None) for one in done.result.superseded] == [(1, "quarantined", True)]
    model = world.run("lethe_gateway", models.read_model, "reader")
    assert model.current_version == 2


def test_what_was_forgotten_is_covered_for_the_next_request_and_never_comes_back(world: World) -> None:
    world.run("lethe_gateway", models.set_alias, "reader", "live", 1, expected_etag=None, create=True, caller=world.caller, clock=CLOCK)
    before = datetime.now(UTC)
    first = world.create(person("p3"))
    world.advance(first.id)
    world.forget(world.jobs(first.id)[0].id, ["r006", "r007"])
    world.report(first.id)
    assert world.advance(first.id) == "completed"
    alias = world.run("lethe_gateway", models.read_alias, "reader", "live")
    assert (alias.version, alias.etag) == (2, 2)
    assert world.run("lethe_gateway", models.at, "reader", before, "live").number == 1
    with pytest.raises(Resurrection):
        world.run("lethe_gateway", models.set_alias, "reader", "live", 1, expected_etag=2, create=False, caller=world.caller, clock=CLOCK)
    with pytest.raises(Resurrection):
        world.train("reader", 1)
    again = world.create(person("p3"))
    assert world.advance(again.id) == "approved"
    assert [(one.state, one.outcome) for one in world.read(again.id).targets] == [("published", "already_forgotten")]
    world.report(again.id)
    assert world.advance(again.id) == "completed"
    assert len(world.jobs()) == 1


class Sealed:
    """A model of whose training data nothing is held, with `digits` to judge it by and `gkt` in the catalogue."""

    def __init__(self, world: World) -> None:
        self.world = world
        facts = {"tasks": ["classification"], "granularities": ["class"]}
        with unit_of_work(world.ledger.engine("lethe_worker"), tenant=None) as session:
            publish_catalogue(session, [EntryIn("method", "gkt", guarantee="suppression", facts=facts)], worker="w2", queue="cpu")
        world.run("lethe_gateway", models.create_model, NewModel("sealed", "classification", "mlp"), caller=world.caller, clock=CLOCK)
        self.upload()

    def upload(self, parent: int | None = None) -> None:
        world, file = self.world, WeightsForm("model.safetensors", 10, digest(f"sealed{parent}"))
        form = NewVersion((file,), parent=parent, evaluated_on=DatasetRef("digits", 1))
        made = world.run("lethe_gateway", models.create_version, "sealed", form, caller=world.caller, clock=CLOCK)
        world.run("lethe_gateway", models.complete_version, "sealed", made.number, None, caller=world.caller, clock=CLOCK)
        world.run("lethe_control", models.ingested, made.id, manifest={}, manifest_digest=digest(f"upload{parent}"), clock=CLOCK)

    def ask(self, *labels: str) -> Any:
        """Ask for classes, and return the request after control has moved it on."""
        view = self.world.create(ClassScope(labels, model="sealed"))
        self.world.advance(view.id)
        return self.world.read(view.id)

    def suppress(self, request_id: UUID) -> None:
        """Publish the request's job as a worker does, and let the request end."""
        world = self.world
        (job,) = world.jobs(request_id)
        world.hold(job.id, "publishing")
        with unit_of_work(world.ledger.engine("lethe_worker"), tenant=world.tenant) as session:
            targets = [target.id for target in models_sql.job_targets(session, job.id)]
            session.execute(update(Target).where(Target.id.in_(targets)).values(state="running"))
            session.execute(insert(VerdictRow).values(tenant_id=world.tenant, job_id=job.id, round=1, verdict="passed", codes=[], sentence="ok"))
            told = world.publication(job.id, job.dataset_version_id, guarantee="suppression", recipe=None)
            publication.publish(session, replace(told, trained_on=((job.dataset_version_id, "evaluation"),)), clock=CLOCK)
        world.report(request_id)
        assert world.advance(request_id) == "completed"


def outcomes_of(view: Any) -> list[tuple[str, str | None]]:
    return [(one.state, one.outcome) for one in view.targets]


def test_a_class_that_was_suppressed_without_data_is_not_suppressed_again(world: World) -> None:
    # no record is held, so none is in the ledger; without a look at the classes themselves the same work would be done, and lose accuracy, again
    sealed = Sealed(world)
    first = sealed.ask("3")
    assert [job.method for job in world.jobs(first.id)] == ["gkt"]
    sealed.suppress(first.id)

    again = sealed.ask("3")
    assert outcomes_of(again) == [("published", "already_forgotten")]
    assert world.jobs(again.id) == []
    world.report(again.id)
    assert world.advance(again.id) == "completed"
    assert world.read(again.id).result.versions[0].version == 2

    other = sealed.ask("1")
    assert len(world.jobs(other.id)) == 1
    sealed.suppress(other.id)
    assert outcomes_of(sealed.ask("1", "3")) == [("published", "already_forgotten")]  # one class each by two versions of one line
    assert outcomes_of(sealed.ask("2", "3")) == [("queued", None)]  # one class of the two is still there


def test_a_class_is_suppressed_again_in_weights_that_somebody_uploaded_since(world: World) -> None:
    sealed = Sealed(world)
    sealed.suppress(sealed.ask("3").id)
    sealed.upload(parent=2)

    again = sealed.ask("3")

    assert world.run("lethe_gateway", models.read_model, "sealed").current_version == 3
    assert again.state == "in_progress"
    assert len(world.jobs(again.id)) == 1


@pytest.mark.parametrize(("code", "nothing_follows"), [("diverged", True), ("verdict-not-passed", False)])
def test_without_data_a_person_is_told_why_a_run_stopped_and_that_nothing_follows(world: World, code: str, nothing_follows: bool) -> None:
    view = Sealed(world).ask("3")
    (job,) = world.jobs(view.id)
    told = "no checkpoint forgets: at best 0.4 is left of the class."
    world.run("lethe_gateway", jobs.cancel, job.id, caller=world.caller, clock=CLOCK)
    world.sql(update(Job).where(Job.id == job.id).values(error={"code": code, "detail": told}))

    assert world.advance(view.id) == "needs_attention"
    attention = world.read(view.id).attention
    assert attention["code"] == code
    assert attention["detail"].startswith(told)  # a verdict that was not passed says itself what comes behind it
    assert ("no other method follows and the model cannot be retrained; its version stands" in attention["detail"]) == nothing_follows


def test_an_unknown_person_is_recorded_and_ends_partially_completed(world: World) -> None:
    view = world.create(person("nobody"))
    assert [(one.model, one.outcome) for one in view.targets] == [(None, "not_identifiable")]
    assert world.advance(view.id) == "approved"
    assert world.topics(view.id)[-1] == "report.build"
    world.report(view.id)
    assert world.advance(view.id) == "partially_completed"


def test_a_class_request_takes_the_first_rung_that_serves_classes(world: World) -> None:
    view = world.create(ClassScope(("1", "2", "3"), dataset="digits"))
    assert (view.scope.labels, view.scope.records) == (("1", "2", "3"), 60)
    world.advance(view.id)
    (job,) = world.jobs(view.id)
    assert (job.method, [rung["method"] for rung in job.choice["rungs"]]) == ("bad_teacher", ["bad_teacher", "retrain"])


def test_a_class_too_small_to_be_judged_is_retrained_at_once_and_the_choice_says_so(world: World) -> None:
    view = world.create(ClassScope(("3",), dataset="digits"))
    world.advance(view.id)
    (job,) = world.jobs(view.id)
    assert (job.method, [rung["method"] for rung in job.choice["rungs"]]) == ("retrain", ["retrain"])
    assert "20, and within 0.05 of a retrained model at level 0.9 it takes 52" in job.choice["reason"]


@pytest.fixture
def homes(world: World) -> World:
    """The world with dataset `homes`, whose 50 records h000 to h049 have the targets 0.5, 1.5, ... 49.5, and model `valuer` that learned from it."""
    both = {"tasks": ["classification", "regression"], "granularities": ["class", "records"]}
    entries = [
        EntryIn("dataset_adapter", "tabular", facts={"tasks": ["classification", "regression"]}),
        EntryIn("task", "regression"),
        EntryIn("method", "retrain", guarantee="exact", needs=("retain_set", "recipe"), facts=both),
        EntryIn("method", "blindspot", needs=("forget_set", "retain_set"), facts={"tasks": ["regression"], "granularities": ["records"]}),
    ]
    with unit_of_work(world.ledger.engine("lethe_worker"), tenant=None) as session:
        publish_catalogue(session, entries, worker="w2", queue="cpu")
    form = NewDataset("homes", "tabular", {"target": "number", "label_column": "price", "numeric": [{"name": "rooms"}]})
    world.run("lethe_gateway", datasets.create_dataset, form, caller=world.caller, clock=CLOCK)
    file = FileForm("records.parquet", 10, digest("homes"))
    made = world.run("lethe_gateway", datasets.create_version, "homes", [file], caller=world.caller, clock=CLOCK)
    world.run("lethe_gateway", datasets.complete_version, "homes", made.number, caller=world.caller, clock=CLOCK)
    rows = [(f"h{index:03}", str(index + 0.5)) for index in range(50)]
    world.run("lethe_control", datasets.ingested, made.id, rows, manifest_digest=digest("h"), files=[file], clock=CLOCK)
    world.run("lethe_gateway", models.create_model, NewModel("valuer", "regression", "mlp"), caller=world.caller, clock=CLOCK)
    world.train("valuer", 1, dataset="homes")
    return world


@pytest.mark.parametrize(
    ("bounds", "first", "count", "rungs"),
    [
        ({"below": 20.0}, 0, 20, ["blindspot", "retrain"]),
        ({"above": 29.5}, 30, 20, ["blindspot", "retrain"]),
        ({"above": 9.5, "below": 3e1}, 10, 20, ["blindspot", "retrain"]),
        ({"below": 5.0}, 0, 5, ["retrain"]),
    ],
)
def test_a_range_of_targets_is_located_planned_by_the_router_and_told(
    homes: World, bounds: dict[str, float], first: int, count: int, rungs: list[str]
) -> None:
    view = homes.create(TargetRangeScope("homes", **bounds))
    assert (view.scope.kind, view.scope.records) == ("target_range", count)
    assert {name: getattr(view.scope, name) for name in bounds} == bounds
    homes.advance(view.id)
    (job,) = homes.jobs(view.id)
    assert (job.method, [rung["method"] for rung in job.choice["rungs"]]) == (rungs[0], rungs)
    same = homes.create(RecordsScope("homes", tuple(f"h{first + index:03}" for index in range(count))))
    assert same.scope.records_commitment == view.scope.records_commitment
    assert homes.create(TargetRangeScope("homes", **bounds)).state == "duplicate"


def test_a_target_that_only_looks_like_a_number_breaks_no_request_for_a_range(homes: World) -> None:
    homes.sql(update(DatasetRecord).where(DatasetRecord.record_id == "h049").values(label="1e999"), role="superuser")
    assert homes.create(TargetRangeScope("homes", above=29.5)).scope.records == 19


@pytest.mark.parametrize(
    ("scope", "more", "error", "told"),
    [
        (TargetRangeScope("homes", below=0.5), {}, EmptyForgetSet, "homes"),
        (TargetRangeScope("homes", above=49.5), {}, EmptyForgetSet, "homes"),
        (TargetRangeScope("homes", above=0.0), {}, ForgetSetIsEverything, "homes"),
        (TargetRangeScope("homes", above=-1.0, below=100.0), {}, ForgetSetIsEverything, "homes"),
        (TargetRangeScope("digits", below=2.0), {}, InvalidInput, "no real-valued targets"),
        (TargetRangeScope("homes", below=5.0), {"method": "unsir"}, MethodNotApplicable, "blindspot"),
        (ClassScope(("0.5",), dataset="homes"), {}, InvalidInput, "target_range"),
        (ClassScope(("0.5",), model="valuer"), {}, InvalidInput, "target_range"),
    ],
)
def test_a_range_that_cannot_be_forgotten_and_a_class_of_a_regression_model_are_refused(
    homes: World, scope: Any, more: dict[str, Any], error: Any, told: str
) -> None:
    with pytest.raises(error, match=told):
        homes.create(scope, **more)
    form = NewRequest(scope, policy="demo", **more)
    tried = homes.run("lethe_gateway", requests.dry_run, form, caller=homes.caller, clock=CLOCK, keys=KEYS)
    assert (tried.would_accept, tried.problems[0].code) == (False, error.code)


@pytest.mark.parametrize(
    ("scope", "more", "error"),
    [
        (RecordsScope("digits", ()), {}, EmptyForgetSet),
        (RecordsScope("digits", ("r001", "nope")), {}, RecordsNotFound),
        (RecordsScope("nowhere", ("r001",)), {}, UnknownDataset),
        (RecordsScope("digits", tuple(f"r{index:03}" for index in range(100))), {}, ForgetSetIsEverything),
        (ClassScope(("9",), dataset="digits"), {}, RecordsNotFound),
        (ClassScope(("0", "1", "2", "3", "4"), model="reader"), {}, ForgetSetIsEverything),
        (ClassScope(("0",), model="nobody"), {}, UnknownModel),
        (TargetRangeScope("digits", below=1.0), {}, InvalidInput),
        (TargetRangeScope("nowhere", below=1.0), {}, UnknownDataset),
        (OtherScope("manifest"), {}, InvalidInput),
        (EntityScope(("nobody",), dataset="digits"), {}, EntityNotFound),
        (RecordsScope("digits", ("r001",)), {"models": ("nobody",), "note": "only this"}, UnknownModel),
        (RecordsScope("digits", ("r001",)), {"models": ("reader",)}, InvalidInput),
        (RecordsScope("digits", ("r001",)), {"method": "magic"}, UnknownComponent),
        (RecordsScope("digits", ("r001",)), {"method": "unsir"}, MethodNotApplicable),
        (ClassScope(("1",), dataset="digits"), {"method": "unsir", "parameters": {"epochs": 0}}, ParameterOutOfRange),
        (RecordsScope("digits", ("r001",)), {"parameters": {"epochs": 1}}, InvalidInput),
        (RecordsScope("digits", ("r001",)), {"metadata": {"who": "ann@example.org"}}, InvalidInput),
        (RecordsScope("digits", ("r001",)), {"policy": "none"}, InvalidInput),
        (SubjectScope((Identifier("email", "no address"),)), {}, InvalidInput),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_and_leaves_no_row(world: World, scope: Any, more: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        world.create(scope, **more)
    form = {"policy": "demo", **more}
    tried = world.run("lethe_gateway", requests.dry_run, NewRequest(scope, **form), caller=world.caller, clock=CLOCK, keys=KEYS)
    assert (tried.would_accept, tried.problems[0].code) == (False, error.code)
    assert world.run("lethe_gateway", requests.listing, RequestFilters(), clock=CLOCK)[0] == []


def test_a_dry_run_says_what_would_happen_and_writes_nothing(world: World) -> None:
    form = NewRequest(person("p1"), policy="demo")
    told = world.run("lethe_gateway", requests.dry_run, form, caller=world.caller, clock=CLOCK, keys=KEYS)
    assert (told.would_accept, told.records, told.models[0].method, told.models[0].would_purge) == (True, 2, "retrain", (1,))
    assert world.run("lethe_gateway", requests.listing, RequestFilters(), clock=CLOCK)[0] == []


def test_two_open_requests_with_one_scope_are_one_and_its_duplicate_even_in_a_race(world: World) -> None:
    barrier, made = Barrier(4), []

    def ask() -> None:
        barrier.wait()
        made.append(world.create(person("p5")))

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(view.state for view in made) == ["approved", "duplicate", "duplicate", "duplicate"]
    (leading,) = [view for view in made if view.state == "approved"]
    assert {view.duplicate_of for view in made if view.state == "duplicate"} == {leading.id}


def test_an_external_id_finds_its_request_again_and_refuses_another_body(world: World) -> None:
    first = world.create(person("p1"), external_id="dsr-7")
    again = world.create(person("p1"), external_id="dsr-7")
    assert (again.id, again.replayed, first.replayed) == (first.id, True, False)
    with pytest.raises(DuplicateExternalId):
        world.create(person("p2"), external_id="dsr-7")


def test_a_policy_with_review_waits_for_another_person(world: World) -> None:
    view = world.create(person("p1"), policy="gdpr-default")
    assert (view.state, "approve" in view.allowed) == ("pending_review", True)
    other = Caller(world.tenant, "lawyer", SCOPES)
    approve = Decision("approve", ground="consent_withdrawn")
    with pytest.raises(FourEyesRequired):
        world.run("lethe_gateway", requests.decide, view.id, approve, expected_version=1, caller=world.caller, clock=CLOCK)
    with pytest.raises(PreconditionFailed):
        world.run("lethe_gateway", requests.decide, view.id, approve, expected_version=9, caller=other, clock=CLOCK)
    decided = world.run("lethe_gateway", requests.decide, view.id, approve, expected_version=1, caller=other, clock=CLOCK)
    assert (decided.state, decided.version, decided.decided_by) == ("approved", 2, "lawyer")
    assert world.advance(view.id) == "in_progress"
    assert world.jobs(view.id) == []
    with pytest.raises(IllegalTransition):
        world.run("lethe_gateway", requests.decide, view.id, approve, expected_version=3, caller=other, clock=CLOCK)


def test_a_request_is_answered_as_it_is_read_back(world: World) -> None:
    scopes = [person("p1"), person("nobody"), ClassScope(("2",), dataset="digits"), RecordsScope("digits", ("r050", "r051"))]
    made = [world.create(scope) for scope in scopes] + [world.create(person("p2"), policy="gdpr-default", external_id="dsr-7")]
    assert [view.state for view in made] == ["approved", "approved", "approved", "approved", "pending_review"]
    for view in made:
        assert view == world.read(view.id)


def test_requests_that_wait_together_share_one_job_whatever_their_number(world: World, tmp_path: Path) -> None:
    engine, keys = world.ledger.engine("lethe_control"), {"encryption": KEYS.kek, "pepper": KEYS.pepper, "cursor": "33" * 32}
    settings = Settings(embedded=True, database={"url": world.ledger.url("lethe_control")}, keys=keys)
    control = Control(engine, settings, Ingest(engine, MemoryStore(), CLOCK, tmp_path), clock=CLOCK)
    views = [world.create(RecordsScope("digits", (f"r{number:03}",))) for number in range(BATCH + 6)]
    while control.drain():
        pass
    (job,) = world.jobs()
    assert set(job.requests) == {view.id for view in views}


def test_a_denied_request_is_closed_and_its_scope_is_free_again(world: World) -> None:
    view = world.create(person("p1"), policy="gdpr-default")
    other = Caller(world.tenant, "lawyer", SCOPES)
    with pytest.raises(InvalidInput):
        world.run("lethe_gateway", requests.decide, view.id, Decision("deny"), expected_version=1, caller=other, clock=CLOCK)
    bare = Decision("deny", exemption="17(3)(b)")
    with pytest.raises(InvalidInput, match="the person was told"):
        world.run("lethe_gateway", requests.decide, view.id, bare, expected_version=1, caller=other, clock=CLOCK)
    deny = replace(bare, note="kept by a duty of tax law", complaint_told=True, court_told=True)
    denied = world.run("lethe_gateway", requests.decide, view.id, deny, expected_version=1, caller=other, clock=CLOCK)
    assert (denied.state, denied.done, denied.error["code"]) == ("denied", True, "denied")
    kept = world.sql(select(DeletionRequest.decision_note, DeletionRequest.complaint_told, DeletionRequest.court_told)).one()
    assert tuple(kept) == ("kept by a duty of tax law", True, True)
    assert world.create(person("p1")).state == "approved"


def test_a_cancelled_request_leaves_the_batch_and_the_last_one_takes_the_job_with_it(world: World) -> None:
    views = [world.create(person(f"p{index}")) for index in range(3)]
    with unit_of_work(world.ledger.engine("lethe_control"), tenant=world.tenant) as session:
        session.execute(update(DeletionRequest).values(state="in_progress"))
        session.execute(update(Target).values(state="queued", queued_at=datetime.now(UTC)))
    (job_id,) = world.run("lethe_control", coalescing.coalesce, CLOCK, tenant_id=world.tenant)
    assert len(world.jobs()[0].targets) == 3
    for view in views[:2]:
        gone = world.run("lethe_gateway", requests.cancel, view.id, Cancellation("subject"), caller=world.caller, clock=CLOCK)
        assert (gone.state, gone.targets[0].state) == ("cancelled", "cancelled")
    assert world.run("lethe_gateway", jobs.read, job_id).state == "queued"
    world.run("lethe_gateway", requests.cancel, views[2].id, Cancellation("operator"), caller=world.caller, clock=CLOCK)
    assert world.run("lethe_gateway", jobs.read, job_id).state == "cancelled"
    with pytest.raises(IllegalTransition):
        world.run("lethe_gateway", requests.cancel, views[2].id, Cancellation("operator"), caller=world.caller, clock=CLOCK)


def test_a_request_whose_job_runs_is_stopped_and_one_that_publishes_is_too_late(world: World) -> None:
    view = world.create(person("p1"))
    world.advance(view.id)
    job_id = world.jobs(view.id)[0].id
    world.hold(job_id, "publishing")
    with pytest.raises(TooLateToCancel):
        world.run("lethe_gateway", requests.cancel, view.id, Cancellation("subject"), caller=world.caller, clock=CLOCK)
    with pytest.raises(TooLateToCancel):
        world.run("lethe_gateway", jobs.cancel, job_id, caller=world.caller, clock=CLOCK)
    world.hold(job_id, "running")
    world.run("lethe_gateway", requests.cancel, view.id, Cancellation("subject"), caller=world.caller, clock=CLOCK)
    assert world.run("lethe_gateway", jobs.read, job_id).cancel_requested_at is not None


def test_control_coalesces_every_tenant_without_entering_one_first(world: World) -> None:
    views = [world.create(RecordsScope("digits", (f"r{index:03}",))) for index in range(20, 30)]
    with unit_of_work(world.ledger.engine("lethe_control"), tenant=None) as session:
        session.execute(update(DeletionRequest).values(state="in_progress"))
        session.execute(update(Target).values(state="queued", queued_at=datetime.now(UTC)))
    with unit_of_work(world.ledger.engine("lethe_control"), tenant=None) as session:
        opened = coalescing.coalesce(session, CLOCK)
    assert len(opened) == 1
    job = world.run("lethe_gateway", jobs.read, opened[0])
    assert set(job.targets) == {view.targets[0].id for view in views}
    with unit_of_work(world.ledger.engine("lethe_control"), tenant=None) as session:
        assert coalescing.coalesce(session, CLOCK) == []


def test_a_job_whose_base_moved_publishes_nothing(world: World) -> None:
    view = world.create(person("p1"))
    world.advance(view.id)
    job_id = world.jobs(view.id)[0].id
    world.sql(update(Job).where(Job.id == job_id).values(state="cancelled"))
    world.train("reader", 1)
    world.sql(update(Job).where(Job.id == job_id).values(state="queued"))
    with pytest.raises(ParentMoved):
        world.forget(job_id, ["r002", "r003"])
    assert world.run("lethe_gateway", models.read_model, "reader").current_version == 2
    assert world.run("lethe_gateway", datasets.read_dataset, "digits").latest_version == 1


def test_a_stuck_target_hands_the_request_to_a_person(world: World) -> None:
    view = world.create(person("p1"))
    world.advance(view.id)
    job_id = world.jobs(view.id)[0].id
    world.run("lethe_gateway", jobs.cancel, job_id, caller=world.caller, clock=CLOCK)
    assert world.advance(view.id) == "needs_attention"
    shown = world.read(view.id)
    assert (shown.done, shown.error, shown.attention["rung"]) == (False, None, 1)


def test_one_query_finds_every_version_that_learned_from_a_person(world: World) -> None:
    from services.datasets.identifiers import subject_digest
    from services.tenants.keys import tenant_key

    world.train("reader", 1)
    with unit_of_work(world.ledger.engine("lethe_gateway"), tenant=world.tenant) as session:
        key = tenant_key(session, world.tenant, KEYS.kek)
        (row,) = models_sql.tainted_by_subject(session, [subject_digest(key, Identifier("customer_id", "p3"))])
        assert (row.model, row.numbers) == ("reader", [1, 2])
        assert models_sql.tainted_by_subject(session, [b"x" * 32]) == []


def test_listing_goes_page_by_page_in_both_directions(world: World) -> None:
    made = [world.create(RecordsScope("digits", (f"r{index:03}",))).id for index in range(5)]
    for newest_first in (True, False):
        seen, after = [], None
        while True:
            rows, after = world.run(
                "lethe_gateway", requests.listing, RequestFilters(model="reader"), clock=CLOCK, limit=2, after=after, newest_first=newest_first
            )
            seen += [row.id for row in rows]
            if after is None:
                break
        assert seen == (made[::-1] if newest_first else made)
    late = FixedClock(datetime.now(UTC) + timedelta(days=40))
    assert world.run("lethe_gateway", requests.listing, RequestFilters(overdue=False), clock=late)[0][0].days_left < 0


def test_another_tenant_sees_nothing(world: World) -> None:
    view = world.create(person("p1"))
    stranger = world.ledger.tenant("stranger")
    with unit_of_work(world.ledger.engine("lethe_gateway"), tenant=stranger) as session:
        with pytest.raises(NotFound):
            requests.read(session, view.id, clock=CLOCK)
        with pytest.raises(NotFound):
            models.read_model(session, "reader")
        caller = Caller(stranger, "x", SCOPES)
        form = NewRequest(RecordsScope("digits", ("r001",)), policy="gdpr-default")
        seed_policies(session, tenant_id=stranger, clock=CLOCK)
        with pytest.raises(UnknownDataset):
            requests.create(session, form, caller=caller, clock=CLOCK, keys=KEYS)


def test_fifty_thousand_records_are_ingested_and_a_class_of_them_is_located(world: World) -> None:
    rows: list[tuple[str, str | None]] = [(f"big{index}", str(index % 10)) for index in range(50_000)]
    world.run("lethe_gateway", datasets.create_dataset, NewDataset("big", "image"), caller=world.caller, clock=CLOCK)
    file = FileForm("a.parquet", 1, digest("big"))
    made = world.run("lethe_gateway", datasets.create_version, "big", [file], caller=world.caller, clock=CLOCK)
    assert made.uploads[0].key == f"uploads/{made.id}/a.parquet"
    world.run("lethe_gateway", datasets.complete_version, "big", 1, caller=world.caller, clock=CLOCK)
    count = world.run("lethe_control", datasets.ingested, made.id, rows, manifest_digest=digest("m"), files=[file], clock=CLOCK)
    assert count == 50_000
    view = world.create(ClassScope(("4",), dataset="big"))
    assert (view.scope.records, view.targets[0].outcome) == (5000, "no_model_learned")


def test_a_dataset_version_ends_absent_records_and_refuses_their_ids_afterwards(world: World) -> None:
    world.add_version(world.rows[:90])
    with unit_of_work(world.ledger.engine("lethe_gateway"), tenant=world.tenant) as session:
        present = text("SELECT present::text FROM dataset_record WHERE record_id = :id")
        assert session.scalar(present, {"id": "r095"}) == "[1,2)"
        assert session.scalar(present, {"id": "r001"}) == "[1,)"
    with pytest.raises(InvalidInput):
        world.add_version(world.rows)
    with pytest.raises(InvalidInput):
        world.add_version([("same", "1"), ("same", "1")])


def test_names_are_unique_and_labels_are_needed(world: World) -> None:
    with pytest.raises(DuplicateName):
        world.run("lethe_gateway", models.create_model, NewModel("reader", "classification", "mlp"), caller=world.caller, clock=CLOCK)
    with pytest.raises(DuplicateName):
        world.run("lethe_gateway", datasets.create_dataset, NewDataset("digits", "image"), caller=world.caller, clock=CLOCK)
    with pytest.raises(UnknownComponent):
        world.run("lethe_gateway", datasets.create_dataset, NewDataset("other", "smells"), caller=world.caller, clock=CLOCK)
    world.add_version([("u1", None), ("u2", "1")])
    with pytest.raises(MissingLabels):
        world.run("lethe_gateway", models.training_run, "reader", NewTrainingRun("digits", 2), caller=world.caller, clock=CLOCK)


def test_a_target_is_in_one_open_job_only(world: World) -> None:
    view = world.create(person("p1"))
    world.advance(view.id)
    with unit_of_work(world.ledger.engine("lethe_control"), tenant=world.tenant) as session:
        active = session.scalars(select(JobTarget).where(JobTarget.target_id == view.targets[0].id, JobTarget.active)).all()
        assert len(active) == 1
        assert session.scalars(select(ModelAlias)).all() == []
