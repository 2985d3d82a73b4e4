"""Requests under a policy whose readings are held against models that had not seen the record, through worker, control and report."""

from collections.abc import Iterator
from typing import Any

import pytest

from cli.verifier import allowed_verdicts, gates_of
from services.clock import uuid7
from services.requests.forms import RecordsScope
from services.tenants.policies import DEMO, write_policy
from tests.integration.worker_world import CLOCK, World, until, worlds

pytestmark = [pytest.mark.xdist_group("worker"), pytest.mark.soak]
RECORDS = 60


@pytest.fixture(scope="module")
def world(postgres: Any, redis_server: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    for made in worlds(postgres, redis_server, object_store_server, tmp_path_factory.mktemp("world")):
        body = DEMO.model_copy(update={"verification": DEMO.verification.model_copy(update={"reference": "shadow-band"})})
        with made.session("superuser") as session:
            write_policy(session, tenant_id=made.tenant, policy_id=uuid7(CLOCK), key="demo", body=body)
        yield made


@pytest.fixture(scope="module")
def records_report(world: World) -> dict[str, Any]:
    """The report of a request for records by a method that the caller named: it does not pass, and the ladder ends in retraining."""
    job = world.wait_job(world.train("classifier", "digits"))
    assert job.state == "succeeded", (job.error, world.logs())
    held_out = set(world.held_out(200))
    named = [row["record_id"] for row in world.rows("SELECT record_id FROM dataset_record ORDER BY record_id") if row["record_id"] not in held_out]
    asked = world._ask(RecordsScope("digits", tuple(named[:RECORDS])), "bad_teacher")
    request = world.wait_request(asked, timeout_s=240)
    assert request.state == "completed", (request.attention, request.error, world.logs())
    return world.report(request.id)["predicate"]


def test_models_are_trained_ahead_when_the_first_version_is_published(world: World, records_report: dict[str, Any]) -> None:
    ahead = until(lambda: world.rows("SELECT params FROM job WHERE kind = 'reference' ORDER BY created_at"))

    assert ahead[0]["params"] == {"models": [8]}


def test_an_approximate_method_is_held_against_models_that_had_not_seen_the_records(records_report: dict[str, Any]) -> None:
    first = records_report["verification"][0]
    gates = [row for row in (*first["metrics"], *first["attacks"]) if row["detail"]["gate"] and row["split"] == "forget_train"]

    assert first["reference"]["mode"] == "shadow-band"
    assert first["reference"]["models"] == 8
    assert first["reference"]["sentence"] == "compared with models that had not seen the record, not with a retrain"
    assert first["reference"]["seeds"] == [str(first["plan"]["body"]["seeds"]["shadows"])]
    assert {row["name"] for row in gates} >= {"accuracy", "mia_v2"}
    assert all(row["reference"] is not None and row["detail"]["paired"]["models"] == 8 for row in gates)
    assert records_report["limitations"][0]["code"] == "models_on_halves"
    assert {first["verdict"]} == allowed_verdicts(gates_of(first), first, "approximate")


def test_the_exact_method_at_the_end_is_held_against_retrained_models_and_the_report_says_why(records_report: dict[str, Any]) -> None:
    last = records_report["verification"][-1]

    assert records_report["processing"][-1]["method"] == "retrain"
    assert last["reference"]["mode"].startswith("retrained")
    assert last["reference"]["in_stead_of"]["why"] == "exact"
    assert records_report["verdict"] == "passed"


def test_models_that_learned_from_a_forgotten_record_do_not_outlive_the_verdict(records_report: dict[str, Any]) -> None:
    fates = {entry["kind"]: entry["disposition"] for entry in records_report["artifacts"][0]["derived"] if entry["kind"] == "shadow"}

    assert fates == {"shadow": "destroyed"}


def test_a_class_is_held_against_retrained_models_and_the_report_says_why(world: World, records_report: dict[str, Any]) -> None:
    request = world.wait_request(world.forget_class(4, method="retrain"), timeout_s=240)

    assert request.state == "completed", (request.attention, request.error, world.logs())
    told = world.report(request.id)["predicate"]
    assert told["verification"][-1]["reference"]["in_stead_of"]["why"] == "class"
    assert "models_on_halves" not in {one["code"] for one in told["limitations"]}
