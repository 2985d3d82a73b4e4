"""The claim: who gets which job, and how a lost lease is taken over."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from services.clock import SystemClock
from services.db.session import unit_of_work
from services.errors import DeviceOutOfMemory
from services.jobs import outcomes, repository


def claim(ledger, *, queue="cpu", owner="w1", lease_s=60.0, job=None):
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
        rows = session.execute(text("SELECT * FROM lethe_claim(:q, :o, :l, :j)"), {"q": queue, "o": owner, "l": lease_s, "j": job}).all()
        return rows[0] if rows else None


def set_job(ledger, job, assignments):
    with unit_of_work(ledger.engine("lethe_control"), tenant=None) as session:
        session.execute(text(f"UPDATE job SET {assignments} WHERE id = :j"), {"j": job})


def read_job(ledger, job):
    with unit_of_work(ledger.engine("lethe_control"), tenant=None) as session:
        return session.execute(text("SELECT * FROM job WHERE id = :j"), {"j": job}).one()


@pytest.fixture
def tenant(ledger):
    return ledger.default_tenant()


def test_a_claim_takes_the_lease_and_raises_the_epoch(ledger, tenant):
    job = ledger.job(tenant, ledger.model(tenant))
    found = claim(ledger, lease_s=30)
    assert (found.id, found.tenant_id, found.lease_epoch, found.step, found.step_state) == (job, tenant, 1, None, None)
    row = read_job(ledger, job)
    assert (row.state, row.lease_owner, row.attempt, row.crashes) == ("running", "w1", 1, 0)
    with unit_of_work(ledger.engine("lethe_control"), tenant=None) as session:
        left = session.scalar(text("SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM job"))
    assert 0 < float(left) <= 30
    assert claim(ledger, owner="w2") is None


def test_the_best_due_job_comes_first_and_the_bell_may_name_another(ledger, tenant):
    due = datetime.now(UTC) + timedelta(days=1)
    later = ledger.job(tenant, ledger.model(tenant, "a"), due_at=due + timedelta(days=9))
    sooner = ledger.job(tenant, ledger.model(tenant, "b"), due_at=due)
    whenever = ledger.job(tenant, ledger.model(tenant, "c"))
    urgent = ledger.job(tenant, ledger.model(tenant, "d"), priority=1)
    ledger.job(tenant, ledger.model(tenant, "e"), run_after=due)
    ledger.job(tenant, ledger.model(tenant, "f"), queue="gpu")
    assert claim(ledger, job=whenever).id == whenever
    assert [claim(ledger).id for _ in range(3)] == [urgent, sooner, later]
    assert claim(ledger) is None


def test_an_expired_lease_is_taken_over_with_a_new_epoch_and_the_step_kept(ledger, tenant):
    job = ledger.job(tenant, ledger.model(tenant))
    claim(ledger)
    set_job(ledger, job, "step = 'evaluate', step_state = '{\"x\": 1}', state = 'verifying', lease_until = clock_timestamp() - interval '1 s'")
    again = claim(ledger, owner="w2")
    assert (again.lease_epoch, again.step, again.step_state) == (2, "evaluate", {"x": 1})
    assert read_job(ledger, job).crashes == 1


def test_a_job_that_used_its_crashes_up_is_left_to_the_sweeper(ledger, tenant):
    job = ledger.job(tenant, ledger.model(tenant))
    for crashes in (0, 1, 2):
        assert claim(ledger).id == job
        assert read_job(ledger, job).crashes == crashes
        set_job(ledger, job, "lease_until = clock_timestamp() - interval '1 s'")
    assert claim(ledger) is None


def test_one_model_is_changed_by_one_job_at_a_time_while_references_run_beside_it(ledger, tenant):
    model = ledger.model(tenant)
    first = ledger.job(tenant, model)
    second = ledger.job(tenant, model)
    reference = ledger.job(tenant, model, kind="reference", priority=200)
    assert claim(ledger, job=first).id == first
    assert claim(ledger, job=second) is None
    assert claim(ledger).id == reference
    set_job(ledger, first, "state = 'needs_attention', attention = 'awaiting_release', lease_owner = NULL, lease_until = NULL")
    assert claim(ledger) is None
    set_job(ledger, first, "state = 'succeeded', attention = NULL")
    assert claim(ledger).id == second


def test_many_workers_share_out_the_jobs_without_a_double(ledger, tenant):
    jobs = {ledger.job(tenant, ledger.model(tenant, f"m{number}")) for number in range(6)}
    jobs |= {ledger.job(tenant, ledger.model(tenant, f"m{number}-again")) for number in range(2)}
    with ThreadPoolExecutor(4) as pool:
        found = [claimed.id for claimed in pool.map(lambda owner: claim(ledger, owner=f"w{owner}"), range(12)) if claimed is not None]
    assert len(found) == len(set(found)) == len(jobs)


def test_of_two_claims_on_one_model_at_one_time_one_wins_and_the_other_finds_nothing(ledger, tenant):
    model = ledger.model(tenant)
    jobs = [ledger.job(tenant, model) for _ in range(2)]
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session, ThreadPoolExecutor(1) as pool:
        statement = text("SELECT * FROM lethe_claim('cpu', 'w1', 60, :j)")
        assert session.execute(statement, {"j": jobs[0]}).one().id == jobs[0]
        waiting = pool.submit(claim, ledger, owner="w2", job=jobs[1])  # meets the uncommitted row in the unique index, and waits for it
        with unit_of_work(ledger.engine("superuser"), tenant=None) as watch:
            blocked = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
            while watch.scalar(blocked) == 0 and not waiting.done():
                watch.execute(text("SELECT pg_stat_clear_snapshot()"))
        session.commit()
        assert waiting.result(timeout=10) is None


@pytest.mark.parametrize(
    ("larger", "expected"),
    [
        ("", [("queued", "cpu", True), ("needs_attention", "cpu", True)]),
        ("cpu", [("queued", "cpu", True), ("needs_attention", "cpu", True)]),
        ("gpu", [("queued", "cpu", True), ("queued", "gpu", False), ("needs_attention", "gpu", True)]),
    ],
)
def test_what_runs_out_of_memory_is_halved_then_moved_to_the_larger_queue_then_shown_to_a_person(ledger, tenant, larger, expected):
    job = ledger.job(tenant, ledger.model(tenant))
    seen = []
    for _ in expected:
        lease = claim(ledger, queue=read_job(ledger, job).queue)
        assert lease is not None
        with unit_of_work(ledger.engine("lethe_worker"), tenant=tenant) as session:
            row = repository.job_row(session, job)
            repository.start_attempt(session, row, worker="w1", device={})
            outcomes.settle(session, row, DeviceOutOfMemory(detail="x"), clock=SystemClock(), larger_queue=larger)
        after = read_job(ledger, job)
        seen.append((after.state, after.queue, after.step_state["halved"]))
    assert seen == expected
    assert read_job(ledger, job).attention == "out_of_memory"
