"""The pool child's work: claim a job, heartbeat it, drive a runner through its steps, and make every effect in SQL.

It never imports torch. One job at a time: the bell (Celery) and the poll thread both end in `poll`, and one lock keeps them apart.
"""

import os
import random
import shutil
import socket
import threading
import time
from pathlib import Path
from queue import Empty
from uuid import UUID

import structlog
from sqlalchemy import Engine

from models_store.objects import ObjectStore
from services.catalogue import service as catalogue
from services.clock import Clock, SystemClock
from services.db.session import unit_of_work
from services.derived import Limits, Root
from services.errors import Cancelled, DatabaseDown, DeadlineExceeded, LeaseLost, LetheError, RunnerCrashed, Stalled
from services.jobs import outcomes, pipeline, repository
from services.jobs.lease import Lease, claim
from services.jobs.messages import CancelFrame, DoneFrame, FailedFrame, FromRunner, JobFrame, ProgressFrame, ReadyFrame, StepFrame
from services.jobs.pipeline import Pipeline
from services.jobs.workshop import Workshop
from services.memory import Capacity
from services.settings import Settings
from services.tenants.keys import KeyRing
from worker import device, tombstones
from worker.catalogue import publish, renew
from worker.heartbeat import Heartbeat
from worker.runners import Runner, Spawner

log = structlog.get_logger()

READY_S = 180.0
GUARD_S = 0.1
STALL_S = 300.0
STUCK_S = 60.0
RENEW_S = 60.0
SUCCESSOR_S = 1.0
"""How long after a claim the next runner begins to warm up: its imports would take the processor from the job's first steps."""


class Stopping(Exception):
    """This worker was asked to stop; the job goes back to the queue."""


class FromFrame(LetheError):
    """{detail}"""

    def __init__(self, frame: FailedFrame) -> None:
        super().__init__(detail=frame.detail)
        self.code = frame.code  # pyright: ignore[reportAttributeAccessIssue]  # of this one error, as the runner named it
        self.retry_class = frame.retry_class  # pyright: ignore[reportAttributeAccessIssue]


class Session:
    """One job with its runner and its heartbeat: the guard that decides when to kill. It is the pipeline's `Compute`."""

    def __init__(self, runner: Runner, beat: Heartbeat, settings: Settings, stopping: threading.Event) -> None:
        self.runner, self.beat = runner, beat
        self._settings, self._stopping = settings, stopping
        self._started = time.monotonic()
        self._asked_to_cancel = False
        self.deadline_s = float("inf")
        self.stall_s = STALL_S

    def refuse_cancelled(self, asked: bool) -> None:  # noqa: FBT001  a fact of the row
        """Raise Cancelled when the job was taken back before this claim."""
        if asked:
            raise Cancelled

    def open(self, folder: Path) -> None:
        """Give the runner its job folder, once it is warm, and say how many devices share the job.

        Raises RunnerCrashed when it never was, HostMemoryShort where the job would not fit.
        """
        limit = time.monotonic() + READY_S
        while self.runner.wait_ready(GUARD_S) is None:
            self.runner.last_frame_at = time.monotonic()
            self._guard()
            if not self.runner.alive or time.monotonic() > limit:
                raise RunnerCrashed(detail=f"it was not ready, exit status {self.runner.kill()}")
        ranks = device.ranks_for(folder, capacity_of(self.runner.ready, self._settings))
        device.check_memory(folder, ranks)
        self._ask(JobFrame(folder=str(folder), ranks=ranks), "open")

    def step(self, name: str) -> float:
        """Run one compute step; return its seconds, or raise what ended it."""
        return self._ask(StepFrame(name=name), name)

    def _ask(self, command: JobFrame | StepFrame, name: str) -> float:
        self.runner.last_frame_at = time.monotonic()
        if not self.runner.send(command):
            raise RunnerCrashed(detail="its pipe is closed")
        while True:
            self._guard()
            try:
                frame = self.runner.next_frame(GUARD_S)
            except Empty:
                continue
            if frame is None:
                self._guard()
                raise RunnerCrashed(detail=f"in step {name}, exit status {self.runner.kill()}")
            seconds = self._answer(frame, name)
            if seconds is not None:
                return seconds

    def _answer(self, frame: FromRunner, name: str) -> float | None:
        if isinstance(frame, ProgressFrame):
            self.beat.tell(frame)
        elif isinstance(frame, FailedFrame):
            raise Cancelled if frame.retry_class == "cancel" else FromFrame(frame)
        elif isinstance(frame, DoneFrame) and frame.name == name:
            return frame.seconds
        return None

    def _guard(self) -> None:
        """Raise the reason to stop, if there is one; a polite cancel goes first."""
        now = time.monotonic()
        if self.beat.lost:
            raise LeaseLost(job="", epoch="")
        if self._stopping.is_set():
            raise Stopping
        if self.beat.cancelled_at is not None:
            if not self._asked_to_cancel:
                self._asked_to_cancel = True
                self.runner.send(CancelFrame())
            if now - self.beat.cancelled_at > self._settings.worker.cancel_grace_s:
                raise Cancelled
        if now - self._started > self.deadline_s:
            raise DeadlineExceeded(deadline_s=self.deadline_s)
        if now - self.runner.last_frame_at > self.stall_s:
            raise Stalled(stall_s=self.stall_s)


def capacity_of(ready: ReadyFrame | None, settings: Settings) -> Capacity | None:
    """Return what a job may take on each device of this worker; None before a runner is warm, or where it could not tell."""
    if ready is None:
        return None
    return device.capacity_of(ready.device, limit_bytes=settings.worker.memory_bytes, ranks=settings.worker.ranks)


class Supervisor:
    """Owns the runners of one pool child. `stopping` is set when the worker shuts down."""

    def __init__(self, engine: Engine, store: ObjectStore, settings: Settings, *, clock: Clock | None = None) -> None:
        self.engine, self.store, self.settings = engine, store, settings
        self.clock = clock or SystemClock()
        self.keys = KeyRing(settings.keys.encryption.get_secret_value(), settings.keys.pepper.get_secret_value())
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.offered_by = f"{socket.gethostname()}-{settings.worker.queue}"
        self.derived = Root(settings.worker.scratch.absolute() / "derived", Limits(settings.worker.cache_bytes, settings.worker.cache_ttl_s))
        self.device = device.choose(settings.worker.device)
        self.stopping = threading.Event()
        self._busy = threading.Lock()
        self._polled_at = time.monotonic()
        limit = settings.worker.memory_bytes if self.device == "cpu" else 0  # CUDA maps far more addresses than it uses memory
        self._spawner = Spawner(device=self.device, allowed=settings.plugins.allowed, memory_bytes=limit)

    def start(self) -> None:
        """Spawn and warm the first runner, publish what it can run, and begin to poll."""
        self.settings.worker.scratch.mkdir(parents=True, exist_ok=True)
        self._sweep(touched=True)
        self._spawner.start()
        for target, name in ((self._publish, "catalogue"), (self._poll_forever, "poll"), (self._watch, "watchdog")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def stop(self) -> None:
        """Give a running job back and end the runners; a second call finds nothing to do."""
        self.stopping.set()
        if self._busy.acquire(timeout=20.0):
            try:
                self._spawner.stop()
            finally:
                self._busy.release()

    def poll(self, job_id: UUID | None = None) -> int:
        """Do the job that was rung for, or else the best due one, then every further due job; return how many. None if this child is busy."""
        if self.stopping.is_set() or not self._busy.acquire(blocking=False):
            return 0
        try:
            jobs = 0
            lease = self._claim(job_id) or (self._claim(None) if job_id is not None else None)
            while lease is not None:
                self._do(lease)
                jobs += 1
                lease = None if self.stopping.is_set() else self._claim(None)
            self._polled_at = time.monotonic()
            return jobs
        finally:
            self._busy.release()

    def _claim(self, job_id: UUID | None) -> Lease | None:
        worker = self.settings.worker
        try:
            with unit_of_work(self.engine, tenant=None) as session:
                return claim(session, queue=worker.queue, owner=self.name, lease_s=worker.lease_s, job_id=job_id)
        except DatabaseDown:
            log.warning("claim.failed", code="database-unavailable")
            return None

    def _do(self, lease: Lease) -> None:
        """Work on a claimed job to its end or its next state. Nothing that happens here may end the pool child."""
        log.info("job.claimed", job_id=str(lease.job_id), epoch=lease.epoch, worker=self.name)
        beat = Heartbeat(self.engine, lease, self.settings.worker)
        beat.start()
        runner = self._spawner.take()
        successor = threading.Timer(SUCCESSOR_S, self._spawner.warm)
        successor.daemon = True
        successor.start()
        folder = self.settings.worker.scratch.absolute() / f"{lease.job_id.hex}-{lease.epoch}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        compute = Session(runner, beat, self.settings, self.stopping)
        shop = Workshop(
            self.engine, self.store, self.keys, self.clock, lease, folder, compute, self.device, self.derived, self.settings.worker.larger_queue
        )
        try:
            self._run(shop, compute)
        except LeaseLost:
            log.warning("job.lost", job_id=str(lease.job_id), epoch=lease.epoch)
        except DatabaseDown as error:
            runner.kill()
            self._give_back(shop, error)
        except LetheError as error:
            log.warning("job.unsettled", job_id=str(lease.job_id), code=error.code)
        finally:
            successor.cancel()
            runner.kill()
            beat.stop()
            shutil.rmtree(folder, ignore_errors=True)
            if not self.stopping.is_set():
                self._spawner.warm()

    def _run(self, shop: Workshop, compute: Session) -> None:
        try:
            with shop.effect() as session:
                job = repository.job_row(session, shop.lease.job_id)
                repository.start_attempt(session, job, worker=self.name, device=device.describe(self.device, self.settings.worker.scratch))
                compute.deadline_s = float(job.deadline_s)
                entry = catalogue.entry(session, "method", job.method) if job.method else None
                compute.stall_s = float(entry.facts.get("stall_s", STALL_S)) if entry is not None else STALL_S
                compute.refuse_cancelled(job.cancel_requested_at is not None)
            state = Pipeline(shop).run()
            log.info("job.ended", job_id=str(shop.lease.job_id), state=state)
        except (LeaseLost, DatabaseDown):
            raise
        except Stopping:
            compute.runner.kill()
            with shop.effect() as session:
                outcomes.interrupt(session, repository.job_row(session, shop.lease.job_id))
        except Exception as error:
            if not isinstance(error, LetheError):
                log.exception("job.crashed", job_id=str(shop.lease.job_id))
            compute.runner.kill()
            pipeline.settle(shop, error)

    def _give_back(self, shop: Workshop, error: DatabaseDown) -> None:
        """Queue the job again as soon as the database answers; once the lease is over, its expiry does that, and counts a crash."""
        limit = time.monotonic() + self.settings.worker.lease_s
        while time.monotonic() < limit and not self.stopping.is_set():
            try:
                pipeline.settle(shop, error)
            except DatabaseDown:
                self.stopping.wait(0.5)
            except LetheError:
                break
            else:
                return
        log.warning("job.left", job_id=str(shop.lease.job_id), epoch=shop.lease.epoch, code=error.code)

    def _publish(self) -> None:
        """Wait for the warm runner and publish its catalogue, then renew it; again after a while where the database does not answer."""
        published = False
        while not self.stopping.is_set():
            ready = None if published else self._spawner.warm().wait_ready(READY_S)
            try:
                if ready is not None:
                    tombstones.drop(self.engine, self.settings.worker.scratch)
                    publish(self.engine, ready, worker=self.offered_by, queue=self.settings.worker.queue, device=self._described(ready))
                    published = True
                    log.info("catalogue.published", count=len(ready.catalogue))
                elif published:
                    tombstones.drop(self.engine, self.settings.worker.scratch)  # before it says that it lives: certificates rely on that
                    renew(self.engine, worker=self.offered_by)
                    self._sweep(touched=False)
            except DatabaseDown as error:
                log.warning("catalogue.unpublished", code=error.code)
            except OSError:
                log.exception("copies.undropped")
            self.stopping.wait(RENEW_S if published else self.settings.worker.poll_s)

    def _described(self, ready: ReadyFrame) -> dict[str, object]:
        """Return what the worker says of its device: what its runner found, and what a job may take."""
        found = capacity_of(ready, self.settings)
        return {**ready.device, "capacity_bytes": found.memory_bytes if found else None, "devices": found.devices if found else 1}

    def _sweep(self, *, touched: bool) -> None:
        """Remove what is kept too long or is too much; after a start also what the records of jobs that did not end have touched."""
        try:
            self.derived.sweep(touched=touched)
        except OSError:
            log.exception("derived.unswept")

    def _poll_forever(self) -> None:
        while not self.stopping.wait(self.settings.worker.poll_s * random.uniform(0.8, 1.2)):  # noqa: S311  spreads polls, protects nothing
            try:
                self.poll()
            except Exception:
                log.exception("poll.failed")

    def _watch(self) -> None:
        """End the pool child when it idles and yet has not looked for work for a minute: its successor starts afresh."""
        while not self.stopping.wait(STUCK_S / 4):
            if not self._busy.locked() and time.monotonic() - self._polled_at > STUCK_S + self.settings.worker.poll_s:
                log.error("worker.stuck")
                os._exit(1)
