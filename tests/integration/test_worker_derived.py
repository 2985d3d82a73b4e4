"""What the worker keeps of what it derives from records, what it destroys, and the ledger that goes from version to version."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.requests import jobs as job_views
from tests.integration.worker_world import World, worlds

pytestmark = [pytest.mark.xdist_group("worker"), pytest.mark.soak]
BUDGET = {"epsilon": 5.0, "delta": 1e-4, "noise": 0.5, "l2": 1e-3}


@pytest.fixture(scope="module")
def world(postgres: Any, redis_server: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(postgres, redis_server, object_store_server, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world: World) -> Any:
    """The job of the first version of a linear model, beside the first one of the world."""
    world.model("linear", hidden=())
    job = world.wait_job(world.train("linear", "digits", epochs=30))
    assert job.state == "succeeded", (job.error, world.logs())
    return job


def kept(world: World) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (world.home / "scratch" / "derived").glob("*/*/*.json")]


def test_no_seed_of_a_certified_run_is_told_whatever_its_verdict(world: World, trained: Any) -> None:
    request = world.wait_request(world.forget_person(3, method="certified_removal", **BUDGET))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    jobs = world.rows("SELECT id, seeds, step_state FROM job WHERE method = 'certified_removal'")
    assert [set(job["step_state"]["steps"]["unlearn"]["run"]["notes"]["ledger"]) for job in jobs] == [{"l2", "scale", "fingerprint", "budget"}]
    statement = world.report(request.id)["predicate"]
    told = [entry for entry in statement["processing"] if entry["method"] == "certified_removal"]
    plans = [entry["plan"]["body"] for entry in statement["verification"] if entry["plan"]["body"]["method"] == "certified_removal"]
    assert [set(entry["seeds"]) for entry in (*told, *plans)] == [{"evaluate"}, {"evaluate", "reference"}]
    versions = world.rows("SELECT manifest, seeds FROM model_version")
    with world.session() as session:
        views = [job_views.read(session, job["id"]) for job in jobs]
    everything = json.dumps([statement, [dict(version) for version in versions]], default=str) + repr(views)
    assert all(str(job["seeds"]["unlearn"]) not in everything for job in jobs)


def test_references_outlive_the_verdict_and_what_the_forgotten_records_touched_does_not(world: World, trained: Any) -> None:
    sure = {"alpha": 1.0, "retain_drop": 1.0, "guard_factor": 100}  # it keeps its importances and ends, whatever the verdict will be
    request = world.wait_request(world.forget_class(4, method="ssd", **sure))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    derived = [entry for artifact in world.report(request.id)["predicate"]["artifacts"] for entry in artifact["derived"]]
    ended = [
        (job["method"], job["state"], job["detail"]) for job in world.rows("SELECT method, state, error->>'detail' AS detail FROM job ORDER BY id")
    ]
    assert ("importance", "destroyed") in {(entry["kind"], entry["disposition"]) for entry in derived}, "\n".join(map(str, ended))
    assert {entry["disposition"] for entry in derived if entry["kind"] == "reference"} >= {"kept"}
    assert "reference" in {manifest["kind"] for manifest in kept(world)}
    assert not {manifest["kind"] for manifest in kept(world)} & {"importance", "noise"}
    forgotten = {row["digest"][:32] for row in world.rows("SELECT encode(record_hmac, 'hex') AS digest FROM target_record")}
    assert forgotten
    assert not forgotten & {record for manifest in kept(world) for record in manifest["records"]}


def test_the_rungs_of_a_request_are_judged_against_one_reference_that_is_trained_once(world: World, trained: Any) -> None:
    idle = {"lr": 1e-7, "epochs": 1}  # a run that changes next to nothing is not passed, and the ladder goes on
    request = world.wait_request(world.forget_person(7, method="fine_tune", **idle))

    assert request.state == "completed", (request.attention, request.error, world.logs())
    sql = """SELECT j.rung, j.seeds, j.step_state, p.body FROM job j JOIN verification_plan p ON p.job_id = j.id
        JOIN model m ON m.id = j.model_id WHERE m.name = 'linear' AND j.id = ANY (SELECT job_id FROM job_target t JOIN target g ON g.id = t.target_id
        WHERE g.request_id = :request) ORDER BY j.rung"""
    rungs = world.rows(sql, request=request.id)
    found = [[entry["hit"] for entry in rung["step_state"]["steps"]["evaluate"]["run"]["derived"] if entry["kind"] == "reference"] for rung in rungs]
    assert len(rungs) >= 2
    assert found == [[False, False], *[[True, True]] * (len(rungs) - 1)]
    assert len({rung["body"]["seeds"]["reference"] for rung in rungs}) == 1
    assert all(len({rung["seeds"][name] for rung in rungs}) == len(rungs) for name in ("unlearn", "evaluate"))


def test_no_record_id_is_in_the_folder_and_every_tenant_and_dataset_has_its_own(world: World, trained: Any) -> None:
    root = world.home / "scratch" / "derived"
    dataset = world.rows("SELECT id FROM dataset WHERE name = 'digits'")[0]["id"]
    files = [path for path in root.rglob("*") if path.is_file()]

    assert {path.parent for path in files} == {root / world.tenant.hex / dataset.hex}
    assert not any(b"r00" in path.read_bytes() and path.suffix in {".json", ".forget"} for path in files)
    assert all(oct(Path(folder).stat().st_mode)[-3:] == "700" for folder in {path.parent for path in files})
