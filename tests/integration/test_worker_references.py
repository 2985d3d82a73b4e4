"""What the worker does ahead of a run: reference models that are trained when a version is published, and methods that are not tried in vain."""

from collections.abc import Iterator
from typing import Any

import pytest

from services.clock import uuid7
from services.tenants.policies import DEMO, PolicyBody, ReadingSpec, write_policy
from tests.integration.worker_world import CLOCK, World, until, worlds

pytestmark = [pytest.mark.xdist_group("worker"), pytest.mark.soak]


def with_lira() -> PolicyBody:
    """The policy of the demo, which also reads the likelihood-ratio attack with four models."""
    lira = ReadingSpec(kind="attack", name="lira", split="forget_train", parameters={"models": 4})
    body = DEMO.verification.model_copy(
        update={"for_class": (*DEMO.verification.for_class, lira), "for_records": (*DEMO.verification.for_records, lira)}
    )
    return DEMO.model_copy(update={"verification": body})


@pytest.fixture(scope="module")
def world(postgres: Any, redis_server: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(postgres, redis_server, object_store_server, tmp_path_factory.mktemp("world"))


def references(world: World) -> list[Any]:
    return world.rows("SELECT id, state, step_state, error, params FROM job WHERE kind = 'reference' ORDER BY created_at")


def test_no_policy_that_asks_for_them_no_job(world: World) -> None:
    job = world.wait_job(world.train("classifier", "digits"))

    assert job.state == "succeeded", (job.error, world.logs())
    assert references(world) == []


def shadows_of(world: World) -> list[bool]:
    """Whether the newest published job found its reference models, or trained them."""
    newest = world.rows("SELECT step_state FROM job WHERE kind = 'unlearn' AND state = 'succeeded' ORDER BY finished_at DESC LIMIT 1")[0]
    used = newest["step_state"]["steps"]["evaluate"]["run"]["derived"]
    return [entry["hit"] for entry in used if entry["kind"] == "shadow"]


def test_models_are_trained_when_a_version_is_published_and_the_request_after_that_finds_them(world: World) -> None:
    with world.session("superuser") as session:
        write_policy(session, tenant_id=world.tenant, policy_id=uuid7(CLOCK), key="demo", body=with_lira())
    first = world.wait_request(world.forget_class(1, method="retrain"))
    assert first.state == "completed", (first.attention, first.error, world.logs())
    assert shadows_of(world) == [False]
    [ahead] = until(lambda: [row for row in references(world) if row["state"] == "succeeded"])
    assert ahead["params"] == {"models": [4]}
    kept = ahead["step_state"]["steps"]["reference"]["run"]["derived"]
    assert [(entry["kind"], entry["hit"]) for entry in kept] == [("shadow", False)]

    request = world.wait_request(world.forget_class(2, method="retrain"))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    assert shadows_of(world) == [True]
    assert world.rows("SELECT after FROM reading WHERE name = 'lira' AND after IS NOT NULL")
    assert until(lambda: [row for row in references(world) if row["state"] == "succeeded"][1:])


def test_a_request_whose_references_are_missing_trains_them_itself_and_ends_well(world: World) -> None:
    until(lambda: all(row["state"] in {"succeeded", "cancelled"} for row in references(world)))
    for path in (world.home / "scratch" / "derived").glob("*/*/*.json"):
        path.unlink()

    request = world.wait_request(world.forget_class(3, method="retrain"))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    assert shadows_of(world) == [False]


def test_a_method_that_could_not_pass_its_plan_is_not_tried_and_the_class_is_retrained(world: World) -> None:
    request = world.wait_request(world.forget_class(6))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    jobs = world.rows(
        "SELECT method, state, error ->> 'code' AS code, step_state -> 'steps' ? 'unlearn' AS ran FROM job WHERE id IN"
        " (SELECT job_id FROM job_target t JOIN target g ON g.id = t.target_id WHERE g.request_id = :request) ORDER BY rung",
        request=request.id,
    )
    assert [(job["method"], job["state"], job["code"], bool(job["ran"])) for job in jobs] == [
        ("unsir", "failed", "cannot-pass", False),
        ("retrain", "succeeded", None, True),
    ]
    told = world.report(request.id)["predicate"]
    assert told["verdict"] == "passed"
    assert told["verification"][-1]["plan"]["body"]["power"]["cannot_pass"] is True
