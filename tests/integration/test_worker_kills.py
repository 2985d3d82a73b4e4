"""Whatever is killed, the job goes on: once, and only once. All of it is a soak; tests/faults holds the sample that always runs."""

import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.integration.worker_world import World, until, worlds

pytestmark = [pytest.mark.xdist_group("worker-kills"), pytest.mark.soak]
SEED = int(os.environ.get("LETHE_FAULT_SEED", "20261121"))
LONG = {"epochs": 1500}
MEDIUM = {"epochs": 250}


@pytest.fixture(scope="module")
def world(postgres: Any, redis_server: Any, object_store_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from worlds(postgres, redis_server, object_store_server, tmp_path_factory.mktemp("kills"))


def fresh_model(world: World) -> str:
    return world.model(f"m{random.randrange(10**9)}")


def versions_of(world: World, job_id: Any) -> int:
    return int(world.rows("SELECT count(*) AS n FROM model_version WHERE job_id = :id", id=job_id)[0]["n"])


def test_a_killed_runner_counts_a_crash_and_the_job_succeeds(world: World) -> None:
    job_id = world.train(fresh_model(world), "digits", **MEDIUM)
    until(lambda: world.in_step(job_id, "train"))
    busy = max(world.runners(), key=lambda process: sum(process.cpu_times()[:2]))
    busy.kill()
    job = world.wait_job(job_id)
    assert (job.state, job.crashes) == ("succeeded", 1), (job.error, world.logs())
    assert versions_of(world, job_id) == 1


def test_a_killed_pool_child_leaves_no_runner_and_the_job_is_claimed_again(world: World) -> None:
    job_id = world.train(fresh_model(world), "digits", **MEDIUM)
    until(lambda: world.in_step(job_id, "train"))
    runners = world.runners()
    world.pool_child().kill()
    until(lambda: not any(runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE for runner in runners))
    job = world.wait_job(job_id)
    assert (job.state, job.attempt) == ("succeeded", 2), (job.error, world.logs())
    assert versions_of(world, job_id) == 1


def test_a_killed_worker_takes_its_children_along_and_the_next_one_goes_on(world: World) -> None:
    job_id = world.train(fresh_model(world), "digits", **MEDIUM)
    until(lambda: world.in_step(job_id, "train"))
    family = psutil.Process(world.processes["worker"].pid).children(recursive=True)
    world.kill_worker()
    until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    world.start("worker")
    job = world.wait_job(job_id)
    assert job.state == "succeeded", (job.error, world.logs())
    assert versions_of(world, job_id) == 1


def test_a_worker_that_is_asked_to_stop_gives_its_job_back_without_a_crash(world: World) -> None:
    job_id = world.train(fresh_model(world), "digits", **LONG)
    until(lambda: world.in_step(job_id, "train"))
    world.processes["worker"].send_signal(signal.SIGTERM)
    world.processes["worker"].wait(timeout=40)
    job = world.job(job_id)
    assert (job.state, job.crashes) == ("queued", 0), world.logs()
    world.start("worker")
    with world.session() as session:
        from services.requests import jobs
        from tests.integration.worker_world import CLOCK

        until(lambda: world.in_step(job_id, "train"))
        jobs.cancel(session, job_id, caller=world.caller, clock=CLOCK)
    assert world.wait_job(job_id).state == "cancelled"
    assert versions_of(world, job_id) == 0


def test_a_worker_that_slept_past_its_lease_is_refused_by_the_row(world: World) -> None:
    job_id = world.train(fresh_model(world), "digits", **MEDIUM)
    until(lambda: world.in_step(job_id, "train"))
    child = world.pool_child()
    epoch = world.rows("SELECT lease_epoch FROM job WHERE id = :id", id=job_id)[0]["lease_epoch"]
    child.suspend()
    until(lambda: world.rows("SELECT 1 AS x FROM job WHERE id = :id AND lease_until < clock_timestamp()", id=job_id))
    child.resume()
    job = world.wait_job(job_id)
    assert job.state == "succeeded", (job.error, world.logs())
    assert world.rows("SELECT lease_epoch FROM job WHERE id = :id", id=job_id)[0]["lease_epoch"] > epoch
    assert versions_of(world, job_id) == 1


def test_without_redis_a_job_is_done_all_the_same(world: World) -> None:
    world.stop()
    world.start("control", LETHE_QUEUE__URL="redis://127.0.0.1:1/0")
    world.start("worker", LETHE_QUEUE__URL="redis://127.0.0.1:1/0")
    job = world.wait_job(world.train(fresh_model(world), "digits"))
    assert job.state == "succeeded", (job.error, world.logs())


POINTS = random.Random(SEED).sample(range(4, 30), 26)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_at_any_commit_or_call_loses_and_doubles_nothing(world: World, point: int) -> None:
    world.stop()
    world.start("control")
    world.start("worker", LETHE_CRASH_AT=str(point))
    job_id = world.train(fresh_model(world), "digits")
    marker = f"crash point {point}:"
    until(lambda: marker in (world.home / "worker.log").read_text(errors="replace") or world.job(job_id).done)
    world.kill_worker()
    world.start("worker")
    job = world.wait_job(job_id)
    assert job.state == "succeeded", (point, job.error, world.logs())
    assert versions_of(world, job_id) == 1
