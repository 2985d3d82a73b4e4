"""Units of work, the outbox, idempotency, crash points and a database that goes away."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import UniqueViolation
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from services.clock import SystemClock, uuid7
from services.db import durability, idempotency, outbox
from services.db.session import async_unit_of_work, make_async_engine, make_engine, unit_of_work
from services.db.tables import Outbox
from services.errors import DatabaseDown, KeyInProgress, KeyReused

FIRST = b"a" * 32
CALL = {"route": "POST /v1/deletion-requests", "key": "k-1"}
ANSWER = {"status": 202, "headers": {"Location": "/v1/x"}, "body": {"id": "x"}}


@pytest.fixture
def tenant(ledger):
    return ledger.default_tenant()


def bell(session, tenant, **more):
    ref = uuid7(SystemClock())
    outbox.ring(session, tenant_id=tenant, topic="job.ring", ref=ref, **more)
    return ref


def test_what_an_error_interrupts_is_not_there_and_what_ends_well_is(ledger, tenant):
    engine = ledger.engine("lethe_gateway")

    def interrupted():
        with unit_of_work(engine, tenant=tenant) as session:
            bell(session, tenant)
            1 / 0  # noqa: B018

    with pytest.raises(ZeroDivisionError):
        interrupted()
    with unit_of_work(engine, tenant=tenant) as session:
        ref = bell(session, tenant)
    with unit_of_work(engine, tenant=tenant) as session:
        assert session.scalars(select(Outbox.ref)).all() == [ref]


def test_the_asynchronous_unit_of_work_runs_the_same_functions(ledger, tenant):
    async def interrupted(engine):
        async with async_unit_of_work(engine, tenant=tenant) as session:
            await session.run_sync(bell, tenant)
            1 / 0  # noqa: B018

    async def work():
        engine = make_async_engine(ledger.url("lethe_gateway"))
        try:
            async with async_unit_of_work(engine, tenant=tenant) as session:
                ref = await session.run_sync(bell, tenant)
            with pytest.raises(ZeroDivisionError):
                await interrupted(engine)
            async with async_unit_of_work(engine, tenant=tenant) as session:
                assert (await session.scalars(select(Outbox.ref))).all() == [ref]
        finally:
            await engine.dispose()

    asyncio.run(work())


def test_a_database_that_does_not_answer_is_an_error_of_its_own(ledger, tenant):
    engine = make_engine("postgresql://lethe_gateway@127.0.0.1:1/none")
    with pytest.raises(DatabaseDown), unit_of_work(engine, tenant=tenant):
        pass

    async def work():
        async with async_unit_of_work(make_async_engine("postgresql://lethe_gateway@127.0.0.1:1/none"), tenant=tenant):
            pass

    with pytest.raises(DatabaseDown):
        asyncio.run(work())


def test_a_connection_cut_inside_a_transaction_is_the_same_error_and_the_next_transaction_works(ledger, tenant):
    engine = ledger.engine("lethe_gateway")

    def cut():
        with unit_of_work(engine, tenant=tenant) as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            with unit_of_work(ledger.engine("superuser"), tenant=None) as killer:
                killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            bell(session, tenant)

    with pytest.raises(DatabaseDown):
        cut()
    with unit_of_work(engine, tenant=tenant) as session:
        assert session.scalars(select(Outbox)).all() == []


def test_an_empty_pool_is_the_same_error(ledger, tenant):
    engine = make_engine(ledger.url("lethe_gateway"), pool_size=1, pool_wait_s=0.05)
    with unit_of_work(engine, tenant=tenant), pytest.raises(DatabaseDown), unit_of_work(engine, tenant=tenant):
        pass
    engine.dispose()


def test_the_outbox_gives_due_rows_oldest_first_and_each_to_one_taker(ledger, tenant):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        first, second = bell(session, tenant), bell(session, tenant)
        bell(session, tenant, delay_s=60)
    control = ledger.engine("lethe_control")
    with unit_of_work(control, tenant=None) as one, unit_of_work(control, tenant=None) as two:
        assert [row.ref for row in outbox.take(one, 1)] == [first]
        assert [row.ref for row in outbox.take(two, 5)] == [second]


def test_a_row_that_is_done_is_gone_and_a_postponed_one_comes_again(ledger, tenant):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        bell(session, tenant)
        again = bell(session, tenant)
    control = ledger.engine("lethe_control")
    with unit_of_work(control, tenant=None) as session:
        done, postponed = outbox.take(session, 5)
        outbox.done(session, done.id)
        outbox.postpone(session, postponed.id, 60)
        assert outbox.take(session, 5) == []
        outbox.postpone(session, postponed.id, -1)
    with unit_of_work(control, tenant=None) as session:
        (row,) = outbox.take(session, 5)
        assert (row.ref, row.attempts) == (again, 2)


def test_a_call_is_answered_twice_and_done_once(ledger, tenant):
    engine = ledger.engine("lethe_gateway")
    with unit_of_work(engine, tenant=tenant) as session:
        assert idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, **CALL) is None
        idempotency.store(session, tenant_id=tenant, fingerprint=FIRST, **CALL, **ANSWER)
    with unit_of_work(engine, tenant=tenant) as session:
        stored = idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, **CALL)
        assert (stored.status, stored.headers, stored.body) == (202, ANSWER["headers"], ANSWER["body"])
        with pytest.raises(KeyReused):
            idempotency.begin(session, tenant_id=tenant, fingerprint=b"b" * 32, **CALL)
        assert idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, route="POST /v1/models", key="k-1") is None


def test_a_key_in_use_is_refused_and_free_again_when_its_call_failed(ledger, tenant):
    engine = ledger.engine("lethe_gateway")
    other = ledger.tenant("other")
    with unit_of_work(engine, tenant=tenant) as session:
        idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, **CALL)
        with pytest.raises(KeyInProgress), unit_of_work(engine, tenant=tenant) as second:
            idempotency.begin(second, tenant_id=tenant, fingerprint=FIRST, **CALL)
        with unit_of_work(engine, tenant=other) as third:
            assert idempotency.begin(third, tenant_id=other, fingerprint=FIRST, **CALL) is None
    with unit_of_work(engine, tenant=tenant) as session:
        assert idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, **CALL) is None


def test_an_answer_older_than_its_time_is_forgotten(ledger, tenant):
    engine = ledger.engine("lethe_gateway")
    with unit_of_work(engine, tenant=tenant) as session:
        idempotency.store(session, tenant_id=tenant, fingerprint=FIRST, **CALL, **ANSWER)
    with unit_of_work(ledger.engine("superuser"), tenant=None) as session:
        session.execute(text("UPDATE idempotency SET expires_at = clock_timestamp() - interval '1 s'"))
    with unit_of_work(engine, tenant=tenant) as session:
        assert idempotency.begin(session, tenant_id=tenant, fingerprint=b"b" * 32, **CALL) is None
        idempotency.store(session, tenant_id=tenant, fingerprint=b"b" * 32, **CALL, **ANSWER)


def test_of_eight_calls_with_one_key_at_once_one_has_the_effect(ledger, tenant):
    engine = ledger.engine("lethe_gateway")

    def call(_):
        try:
            with unit_of_work(engine, tenant=tenant) as session:
                if idempotency.begin(session, tenant_id=tenant, fingerprint=FIRST, **CALL) is not None:
                    return "replayed"
                bell(session, tenant)
                idempotency.store(session, tenant_id=tenant, fingerprint=FIRST, **CALL, **ANSWER)
                return "done"
        except KeyInProgress:
            return "busy"
        except IntegrityError as error:
            if not isinstance(error.orig, UniqueViolation):
                raise
            # a look older than another's commit: the transaction runs again, as the gateway runs it
            return call(_)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, range(8)))
    assert answers.count("done") == 1
    with unit_of_work(engine, tenant=tenant) as session:
        assert len(session.scalars(select(Outbox)).all()) == 1


@pytest.mark.parametrize(("at", "written"), [("1", 0), ("2", 1), ("3", 1)])
def test_a_crash_point_kills_before_or_after_the_commit(ledger, tenant, at, written):
    code = (
        "import sys, uuid\n"
        "from services.db import outbox\nfrom services.db.session import make_engine, unit_of_work\n"
        "t = uuid.UUID(sys.argv[2])\n"
        "with unit_of_work(make_engine(sys.argv[1]), tenant=t) as s:\n"
        "    outbox.ring(s, tenant_id=t, topic='job.ring', ref=t)\n"
    )
    env = {**os.environ, "LETHE_CRASH_AT": at}
    done = subprocess.run([sys.executable, "-c", code, ledger.url("lethe_gateway"), str(tenant)], env=env, capture_output=True, check=False)
    assert done.returncode == (0 if at == "3" else 137), done.stderr.decode()
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        assert len(session.scalars(select(Outbox)).all()) == written


def test_the_server_of_the_embedded_stack_keeps_what_it_acknowledges_and_an_unsafe_setting_is_named(ledger):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        assert durability.unsafe_settings(session) == []
        assert durability.checksums_off(session) is False
        assert durability.too_old(session) is False
        session.execute(text("SET LOCAL synchronous_commit = off"))
        assert durability.unsafe_settings(session) == ["synchronous_commit=off"]
