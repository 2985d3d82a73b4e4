"""What the database tells of a model before a run: the shares that its training was measured by, and what earlier verdicts read."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
from sqlalchemy import text

from services.clock import SystemClock, uuid7
from services.db.session import unit_of_work
from services.jobs import repository, rungs
from services.jobs.power import earlier_of

CLOCK = SystemClock()
METRICS = {"train": {"n": 80, "loss": "0.0100", "accuracy": "0.9900"}, "test": {"n": 10, "loss": "0.3000", "accuracy": "0.9100"}}


def published(ledger, **told):
    """A model trained by the service, a version that another job made of it, and readings of that job and of one that did not succeed."""
    tenant = ledger.default_tenant()
    model = ledger.model(tenant)
    trained = ledger.job(tenant, model, state="succeeded", result={"metrics": METRICS})
    erased, failed = (ledger.job(tenant, model, kind="unlearn", method="ssd", state=state) for state in ("succeeded", "failed"))
    first, second, upload = (uuid7(CLOCK) for _ in range(3))
    with unit_of_work(ledger.engine("superuser"), tenant=tenant) as session:
        for number, (version, parent, job) in enumerate(((first, None, trained), (second, first, erased), (upload, None, None)), start=1):
            session.execute(
                text(
                    "INSERT INTO model_version (id, tenant_id, model_id, number, status, parent_id, job_id, fresh_start)"
                    " VALUES (:id, :tenant, :model, :number, 'ready', :parent, :job, :fresh)"
                ),
                {"id": version, "tenant": tenant, "model": model, "number": number, "parent": parent, "job": job, "fresh": parent is None},
            )
        for job in (erased, failed):
            body = {"request_kind": "records", "reference": "retrained", **told}
            repository.save_plan(session, repository.job_row(session, job), body, "ab" * 32)
            repository.save_readings(session, repository.job_row(session, job), [reading("forget_train"), reading("retain_test")])
    return tenant, model, second, upload


@pytest.fixture
def line(ledger):
    return published(ledger)


def reading(split):
    return {
        "kind": "attack", "name": "mia_v2", "split": split, "before": "0.8000", "after": "0.5100", "reference": "0.5000", "ci_low": "0.4900",
        "ci_high": "0.5300", "level": "0.9000", "direction": "band", "band": {"floor": "0.0200"}, "n": 100, "seeds": {},
        "detail": {"paired": {"value": "0.0100", "low": "-0.0100", "high": "0.0229"}}, "state": "inside", "reason": None,
    }  # fmt: skip


def as_worker(ledger, tenant):
    return unit_of_work(ledger.engine("lethe_worker"), tenant=tenant)


def test_the_shares_are_those_of_the_training_at_the_beginning_of_the_line(ledger, line):
    tenant, _, version, upload = line

    with as_worker(ledger, tenant) as session:
        assert repository.measured_shares(session, version) == (0.99, 0.91)
        assert repository.measured_shares(session, upload) == (None, None)
        assert repository.measured_shares(session, UUID(int=1)) == (None, None)


def test_readings_of_published_jobs_for_the_same_kind_of_request_are_found(ledger, line):
    tenant, model, _, _ = line

    with as_worker(ledger, tenant) as session:
        found = repository.earlier_readings(session, model, about="records")
        others = [repository.earlier_readings(session, model, about=other) for other in ("class", "range")]

    assert [(row["name"], row["split"], row["n"]) for row in found] == [("mia_v2", "forget_train", 100)]
    assert others == [[], []]
    assert earlier_of(json.loads(json.dumps(found)))["mia_v2", "forget_train"].floor == 0.02


@pytest.mark.parametrize(
    ("told", "about"), [({"about": "range"}, "range"), ({"about": "range"}, "records"), ({"reference": "shadow-band"}, "records")]
)
def test_a_range_says_nothing_of_records_nor_do_models_on_halves_of_a_retrained_one(ledger, told, about):
    tenant, model, _, _ = published(ledger, **told)

    with as_worker(ledger, tenant) as session:
        found = repository.earlier_readings(session, model, about=about)

    assert bool(found) is (told.get("about") == about)


def test_a_plan_counts_the_rungs_before_it_that_had_a_verdict_and_itself(ledger):
    tenant = ledger.default_tenant()
    model = ledger.model(tenant)
    first = ledger.job(tenant, model, kind="unlearn", method="unsir", state="failed")
    diverged = ledger.job(tenant, model, kind="unlearn", method="ssd", state="failed", escalated_from=first)
    last = ledger.job(tenant, model, kind="unlearn", method="retrain", state="failed", escalated_from=diverged)
    with unit_of_work(ledger.engine("superuser"), tenant=tenant) as session:
        for verdict_round in (1, 2):  # a rung that was judged again on another base is one rung
            session.execute(
                text(
                    "INSERT INTO verdict (tenant_id, job_id, round, verdict, codes, sentence) VALUES (:tenant, :job, :round, 'failed', '{leak}', 's')"
                ),
                {"tenant": tenant, "job": first, "round": verdict_round},
            )

    with as_worker(ledger, tenant) as session:
        assert [repository.looks(session, job) for job in (first, diverged, last)] == [1, 2, 2]


def test_a_ledger_began_with_the_training_that_its_line_goes_back_to(ledger, line):
    tenant, _, second, upload = line

    with unit_of_work(ledger.engine("lethe_control"), tenant=tenant) as session:
        first = session.scalar(text("SELECT created_at FROM model_version WHERE number = 1"))
        assert repository._exact_since(session, second) == first
        assert repository._exact_since(session, upload) is None


@pytest.mark.parametrize(("left_s", "late"), [(100, {"ssd"}), (160, set())])
def test_what_is_left_of_the_time_is_told_by_the_database(ledger, left_s, late):
    tenant = ledger.default_tenant()
    model = ledger.model(tenant)
    job = ledger.job(tenant, model, kind="unlearn", method="unsir", due_at=datetime.now(UTC) + timedelta(seconds=left_s))

    with as_worker(ledger, tenant) as session:
        work = SimpleNamespace(
            job=repository.job_row(session, job), model=SimpleNamespace(id=model), base=SimpleNamespace(recipe={}), policy=None, zero_shot=False,
            labels=frozenset(), targets=[],
        )  # fmt: skip
        assert set(rungs.too_late(session, work, ["ssd", "retrain"])) == late  # with nothing known, each is taken to last a minute
