"""What control does every few seconds: find what fell, ring again for what waits. Each function is one short transaction of its caller."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import Session

from services.db.tables import Job
from services.errors import RunnerCrashed
from services.jobs import outcomes

RING_AFTER_S = 5.0

_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))")
_UNLOCK = text("SELECT pg_advisory_unlock(hashtextextended(:name, 0))")
_ALIVE = text("SELECT 1")

_SPENT = text(
    """SELECT id, tenant_id FROM job
        WHERE state IN ('running', 'verifying', 'publishing') AND lease_until < clock_timestamp() AND crashes + 1 >= max_crashes
        ORDER BY lease_until LIMIT 100"""
)
_UNRUNG = text(
    """SELECT id, queue FROM job WHERE state = 'queued' AND kind <> 'purge' AND run_after < clock_timestamp() - make_interval(secs => :after_s)
        ORDER BY priority, due_at NULLS LAST, run_after LIMIT 100"""
)
_EXPIRED = text(
    """SELECT id, queue FROM job WHERE state IN ('running', 'verifying', 'publishing') AND lease_until < clock_timestamp()
          AND kind <> 'purge' AND crashes + 1 < max_crashes LIMIT 100"""
)
_WINDOWS = text("SELECT DISTINCT tenant_id FROM target WHERE state = 'queued'")
_FORGOTTEN = text(
    """SELECT r.id, r.tenant_id FROM deletion_request r WHERE r.state IN ('approved', 'in_progress')
          AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.ref = r.id AND o.topic = 'request.advance' AND o.done_at IS NULL)
          AND NOT EXISTS (SELECT 1 FROM target t WHERE t.request_id = r.id AND t.state IN ('queued', 'running'))
        ORDER BY r.due_at LIMIT 200"""
)


def spent(session: Session) -> list[tuple[UUID, UUID]]:
    """Return (job, tenant) of jobs whose lease expired and whose crash budget is used up."""
    return [(row.id, row.tenant_id) for row in session.execute(_SPENT)]


def give_up(session: Session, job_id: UUID) -> bool:
    """Move a job over its crash budget to `needs_attention`; False when somebody was faster. The session is the tenant's."""
    job = session.scalars(select(Job).where(Job.id == job_id).with_for_update()).first()
    if job is None or job.lease_until is None or job.crashes + 1 < job.max_crashes or not _expired(session, job):
        return False
    facts: dict[str, Any] = outcomes.problem(RunnerCrashed(detail="the worker vanished"))
    outcomes.attention(session, job, "crash_limit", facts, crashes=job.crashes + 1)
    return True


def _expired(session: Session, job: Job) -> bool:
    return bool(session.scalar(select(Job.lease_until < text("clock_timestamp()")).where(Job.id == job.id)))


def unrung(session: Session, *, after_s: float = RING_AFTER_S) -> list[tuple[UUID, str]]:
    """Return (job, queue) of queued jobs that are due for some seconds, and of jobs whose lease expired within the budget.

    Nobody hears a bell for a purge: control looks for those itself.
    """
    rows = [*session.execute(_UNRUNG, {"after_s": after_s}), *session.execute(_EXPIRED)]
    return [(row.id, row.queue) for row in rows]


def open_windows(session: Session) -> list[UUID]:
    """Return the tenants that have queued targets, whose batch window may close."""
    return list(session.scalars(_WINDOWS))


def silent(session: Session) -> list[tuple[UUID, UUID]]:
    """Return (request, tenant) of requests under way for which no outbox row is open; advancing them again does no harm."""
    return [(row.id, row.tenant_id) for row in session.execute(_FORGOTTEN)]


class Sole:
    """The advisory lock of a loop, on a connection of its own that may listen for a bell."""

    def __init__(self, connection: Connection, *, mine: bool) -> None:
        self._connection, self._mine = connection, mine

    def held(self) -> bool:
        """Say whether this process holds the lock. Raises SQLAlchemyError where the connection is lost."""
        return self._mine and bool(self._connection.scalar(_ALIVE))

    def wait(self, seconds: float) -> None:
        """Wait until the bell rings, or has rung since the last wait, at most for some seconds. Raises psycopg.Error where the connection is lost."""
        driver: Any = self._connection.connection.driver_connection
        for _ in driver.notifies(timeout=seconds, stop_after=1):
            pass


@contextmanager
def sole(engine: Engine, name: str, *, bell: Literal["lethe_outbox"] | None = None) -> Generator[Sole]:
    """Wait for nothing: try to hold the advisory lock of a loop on a connection of its own, and yield what tells whether it is held.

    The server gives the lock back when the connection ends, so a process that died holds none. With a `bell` the connection listens for it.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        mine = bool(connection.scalar(_LOCK, {"name": f"lethe.control.{name}"}))
        if bell is not None:
            connection.execute(text(f"LISTEN {bell}"))
        try:
            yield Sole(connection, mine=mine)
        finally:
            if not connection.invalidated:
                connection.execute(text("UNLISTEN *"))
                if mine:
                    connection.scalar(_UNLOCK, {"name": f"lethe.control.{name}"})
