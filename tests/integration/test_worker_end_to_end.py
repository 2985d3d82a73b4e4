"""One world, its life in order: train, forget a person, forget a class; then what the rows say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.audit import report
from tests.integration.worker_world import World, until, worlds

pytestmark = pytest.mark.xdist_group("worker")


@pytest.fixture(scope="module")
def world(postgres: Any, redis_server: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(postgres, redis_server, object_store_server, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(world: World) -> Any:
    """The job of the first version."""
    job = world.wait_job(world.train("classifier", "digits"))
    assert job.state == "succeeded", (job.error, world.logs())
    return job


def test_a_training_job_publishes_the_first_version_with_its_accuracy(world: World, trained: Any) -> None:
    assert trained.result["version"] == 1
    assert float(trained.result["metrics"]["test"]["accuracy"]) > 0.7


def test_a_person_is_forgotten_by_retraining_and_the_request_completes_with_a_report(world: World, trained: Any) -> None:
    request = world.wait_request(world.forget_person(3))
    assert request.state == "completed", (request.attention, request.error, world.logs())
    statement = world.report(request.id)
    assert statement["predicate"]["verdict"] == "passed"
    processing = statement["predicate"]["processing"][-1]
    assert processing["method"] == "retrain"
    [job] = world.rows("SELECT id FROM job WHERE kind = 'unlearn' AND state = 'succeeded'")
    took = world.job(job["id"]).took
    assert took.reference_from == processing["reference_from"] == "trained"
    assert [took.method_seconds, took.reference_seconds, took.evaluation_seconds] == [
        processing[name] for name in ("method_seconds", "reference_seconds", "evaluation_seconds")
    ]
    assert float(took.reference_seconds) >= float(took.retrain_seconds) > 0
    assert request.audit_report.digest == report.digest(statement)
    figures = {row["name"]: row["reason"] for row in world.rows("SELECT name, reason FROM figure")}
    assert set(figures) == {"loss_histogram", "relearn_curve", "roc"}
    assert set(figures.values()) == {"fewer_than_16_forgotten_records"}
    pages = until(lambda: world.rows("SELECT form, digest, encode(sha256(body), 'hex') AS actual FROM rendering ORDER BY form"))
    assert [row["form"] for row in pages] == ["html", "pdf"]
    assert all(row["digest"] == row["actual"] for row in pages)


def test_records_that_no_training_saw_are_erased_and_the_version_stands(world: World, trained: Any) -> None:
    named = world.held_out(2)
    before = world.rows("SELECT current_version_id FROM model WHERE name = 'classifier'")
    request = world.wait_request(world.forget_records(named))
    assert request.state == "completed", (request.attention, request.error, world.logs())
    assert [target.outcome for target in request.targets] == ["not_learned"]
    assert world.rows("SELECT current_version_id FROM model WHERE name = 'classifier'") == before
    left = world.rows("SELECT count(*) AS n FROM dataset_record WHERE record_id = ANY(:ids) AND upper_inf(present)", ids=list(named))
    assert left[0]["n"] == 0
    predicate = world.report(request.id)["predicate"]
    assert predicate["verdict"] is None
    assert "held out of training" in predicate["sentence"]


@pytest.mark.soak
def test_a_class_is_forgotten_and_the_old_version_is_quarantined(world: World, trained: Any) -> None:
    request = world.wait_request(world.forget_class(4, method="retrain"))
    assert request.state == "completed", (request.attention, request.error, world.logs())
    versions = world.rows("SELECT number, status, job_id FROM model_version ORDER BY number")
    assert [row["status"] for row in versions] == ["quarantined"] * (len(versions) - 1) + ["ready"]
    readings = world.rows("SELECT name, split, before, after, reference, state FROM reading WHERE name = 'accuracy' AND split = 'forget_train'")
    assert readings
    erased = world.rows("SELECT count(*) AS n FROM dataset_record WHERE label = '4' AND upper_inf(present)")
    assert erased[0]["n"] == 0


def test_each_succeeded_job_has_exactly_one_version_and_no_pin_is_left(world: World, trained: Any) -> None:
    doubled = world.rows("SELECT job_id FROM model_version GROUP BY job_id HAVING count(*) > 1")
    missing = world.rows(
        "SELECT id FROM job WHERE state = 'succeeded' AND NOT result ? 'not_learned' AND id NOT IN (SELECT job_id FROM model_version)"
    )
    assert doubled == []
    assert missing == []
    put = world.rows("SELECT DISTINCT f.path FROM job_file f JOIN job j ON j.id = f.job_id WHERE j.kind = 'unlearn' AND j.state = 'succeeded'")
    assert {"candidate.safetensors", "readings.json", "next_records.parquet", "manifest.json"} <= {row["path"] for row in put}
    until(lambda: not list((world.home / "scratch").glob("*-[0-9]*")))


def test_the_runner_holds_no_secret_of_the_deployment(world: World) -> None:
    import psutil

    runners = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "worker.runner" in " ".join(process.info["cmdline"] or []) and str(world.home) == process.cwd()
    ]
    assert runners
    for runner in runners:
        assert not [name for name in runner.environ() if name.startswith("LETHE_") and name != "LETHE_CRASH_AT_RUNNER"]


def test_no_log_line_names_a_person(world: World) -> None:
    assert "person-" not in "".join(path.read_text(errors="replace") for path in Path(world.home).glob("*.log"))


def test_nothing_that_is_kept_of_a_job_names_or_holds_what_was_forgotten(world: World, trained: Any) -> None:
    root = world.home / "scratch" / "derived"
    kept = [json.loads(path.read_text()) for path in root.glob("*/*/*.json")]
    assert "reference" in {manifest["kind"] for manifest in kept}
    forgotten = {row["digest"][:32] for row in world.rows("SELECT encode(record_hmac, 'hex') AS digest FROM target_record")}
    assert forgotten
    assert not forgotten & {record for manifest in kept for record in manifest["records"] or ()}
    assert all(manifest["records"] is not None for manifest in kept)
    assert not any(b"r00" in path.read_bytes() for path in root.rglob("*") if path.suffix in {".json", ".forget"})
