"""The loops of the control process. Each holds an advisory lock of its own, so that of several control processes one acts."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal
from uuid import UUID

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from control.ingest import Ingest
from control.render import NotRendered, Renderer
from services import queue
from services.clock import Clock
from services.db import outbox
from services.db.crash import crash_point
from services.db.session import unit_of_work
from services.errors import LetheError
from services.jobs import repository, sweeper
from services.jobs.steps.report import build_report, keep_renderings, material
from services.requests import coalescing
from services.requests import service as requests
from services.settings import Settings
from services.tenants.keys import KeyRing

log = structlog.get_logger()

BATCH = 64
SLOW = frozenset({"version.ingest", "dataset.ingest", "report.render"})
SLOW_AGAIN_S = 600.0
RETRY_CAP_S = 60.0


class Control:
    """What control does, without the loops around it: each method can be called at any time, any number of times."""

    def __init__(self, engine: Engine, settings: Settings, ingest: Ingest, *, clock: Clock) -> None:
        self.engine, self.settings, self.ingest, self.clock = engine, settings, ingest, clock
        self.keys = KeyRing(settings.keys.encryption.get_secret_value(), settings.keys.pepper.get_secret_value())
        self._broker = settings.queue.url.get_secret_value()
        self.renderer = Renderer(ingest.scratch)
        self._waiting: set[UUID] = set()
        self._slow = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ingest")
        self._handlers: dict[str, Callable[[UUID, UUID], None]] = {
            "request.advance": self.advance,
            "job.ring": self.ring,
            "report.build": self.report,
            "report.render": self.render,
            "version.ingest": self.ingest.model_version,
            "dataset.ingest": self.ingest.dataset,
        }

    def close(self) -> None:
        """Give up what is slow; its rows are due again in a moment, for whoever runs control then."""
        self._slow.shutdown(wait=False, cancel_futures=True)
        self.renderer.close()

    def drain(self) -> int:
        """Carry out the outbox rows that are due and return how many there were. A row whose work fails stays, and is due again later.

        Jobs are opened when every due row has been carried out: requests that came together share one job, whatever their number.
        """
        count = self._drain()
        if count < BATCH:
            for tenant_id in list(self._waiting):
                self.coalesce(tenant_id)
                self._waiting.discard(tenant_id)
        return count

    def _drain(self) -> int:
        with unit_of_work(self.engine, tenant=None) as session:
            rows = outbox.take(session, BATCH)
            for row in rows:
                if row.topic in SLOW:
                    outbox.postpone(session, row.id, SLOW_AGAIN_S)
                    self._slow.submit(self._slowly, row.id, row.topic, row.tenant_id, row.ref)
                elif self._handled(row.topic, row.tenant_id, row.ref):
                    outbox.done(session, row.id)
                else:
                    outbox.postpone(session, row.id, min(RETRY_CAP_S, 0.5 * 2 ** min(row.attempts, 10)))
            return len(rows)

    def _handled(self, topic: str, tenant_id: UUID, ref: UUID) -> bool:
        handler = self._handlers.get(topic)
        if handler is None:
            log.error("outbox.unknown", topic=topic)
            return True
        try:
            handler(tenant_id, ref)
        except LetheError as error:
            log.warning("outbox.postponed", topic=topic, code=error.code)
            return False
        except Exception:
            log.exception("outbox.failed", topic=topic)
            return False
        return True

    def _slowly(self, row_id: int, topic: str, tenant_id: UUID, ref: UUID) -> None:
        """Do a long piece of work outside the transaction that took its row."""
        handled = self._handled(topic, tenant_id, ref)
        try:
            with unit_of_work(self.engine, tenant=tenant_id) as session:
                if handled:
                    outbox.done(session, row_id)
                else:
                    outbox.postpone(session, row_id, 5.0)
        except LetheError as error:
            log.warning("outbox.unsettled", topic=topic, code=error.code)

    def advance(self, tenant_id: UUID, request_id: UUID) -> None:
        """Move a request on; the jobs whose batch window is closed are opened when the outbox is empty, or else by the sweep."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            requests.advance(session, request_id, self.clock)
        self._waiting.add(tenant_id)

    def coalesce(self, tenant_id: UUID) -> None:
        """Open one job for each model whose window is closed, and ring for it at once."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            opened = coalescing.coalesce(session, self.clock, tenant_id=tenant_id)
        for job_id in opened:
            self.ring(tenant_id, job_id)

    def ring(self, tenant_id: UUID, job_id: UUID) -> None:
        """Ring for a job that waits; a failed bell is no failure, since workers poll."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            job = repository.job_row(session, job_id)
        if job.state == "queued":
            queue.ring(job_id, job.queue, url=self._broker)
            crash_point("after ring")

    def report(self, tenant_id: UUID, request_id: UUID) -> None:
        """Build the report of a request."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            digest = build_report(session, request_id, tenant_id=tenant_id, keys=self.keys, clock=self.clock)
        if digest is not None:
            log.info("report.stored", deletion_request_id=str(request_id), digest=digest)

    def render(self, tenant_id: UUID, report_id: UUID) -> None:
        """Make the pages of a stored report, once. What cannot be rendered is logged and left: the JSON is the report."""
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            held = material(session, report_id)
        if held is None:
            return
        try:
            forms = self.renderer.render(held.statement, digest=held.digest, figures=held.figures)
        except NotRendered as error:
            log.warning("report.not_rendered", report_id=str(report_id), error=str(error))
            return
        with unit_of_work(self.engine, tenant=tenant_id) as session:
            keep_renderings(session, report_id, tenant_id=tenant_id, forms=forms)
        log.info("report.rendered", report_id=str(report_id))

    def sweep(self) -> int:
        """Find what fell and what waits; return how many things were moved."""
        with unit_of_work(self.engine, tenant=None) as session:
            spent, unrung = sweeper.spent(session), sweeper.unrung(session)
            windows, silent = sweeper.open_windows(session), sweeper.silent(session)
        for job_id, tenant_id in spent:
            with unit_of_work(self.engine, tenant=tenant_id) as session:
                if sweeper.give_up(session, job_id):
                    log.warning("job.given_up", job_id=str(job_id))
        for job_id, name in unrung:
            queue.ring(job_id, name, url=self._broker)
        for tenant_id in windows:
            self.coalesce(tenant_id)
        for request_id, tenant_id in silent:
            with unit_of_work(self.engine, tenant=tenant_id) as session:
                outbox.ring(session, tenant_id=tenant_id, topic="request.advance", ref=request_id)
        return len(spent) + len(unrung) + len(windows) + len(silent)


class Loop(threading.Thread):
    """Calls `work` again and again while this process holds the loop's lock; at once where there was work, else after `every_s` or at the `bell`."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        work: Callable[[], int],
        *,
        every_s: float,
        again: bool,
        stopping: threading.Event,
        bell: Literal["lethe_outbox"] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._engine, self._work, self._every_s, self._again, self._stopping = engine, work, every_s, again, stopping
        self._bell: Literal["lethe_outbox"] | None = bell

    def run(self) -> None:
        """Take the lock, loop, and begin anew whenever the connection that holds the lock is lost."""
        while not self._stopping.is_set():
            try:
                with sweeper.sole(self._engine, self.name, bell=self._bell) as lock:
                    while not self._stopping.is_set() and lock.held():
                        self._turn(lock.wait if self._bell else self._stopping.wait)
            except (SQLAlchemyError, psycopg.Error, LetheError) as error:
                log.warning("loop.interrupted", component=self.name, error=type(error).__name__)
            self._stopping.wait(1.0)

    def _turn(self, wait: Callable[[float], object]) -> None:
        try:
            done = self._work()
        except LetheError as error:
            log.warning("loop.failed", component=self.name, code=error.code)
            done = 0
        except Exception:
            log.exception("loop.failed", component=self.name)
            done = 0
        if not (done and self._again):
            wait(self._every_s)
