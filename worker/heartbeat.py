"""The heartbeat of one job: prolongs the lease, stores progress, and tells why the job must stop.

It runs in a thread of its own and touches the database alone. The thread of the job asks `reason` and does the killing.
"""

import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Engine

from services.db.session import unit_of_work
from services.errors import LeaseLost, LetheError
from services.jobs.lease import Lease, heartbeat
from services.jobs.messages import ProgressFrame
from services.settings import WorkerSettings

log = structlog.get_logger()

PROGRESS_EVERY_S = 1.0


class Heartbeat(threading.Thread):
    """Beats every `heartbeat_s`, and at most once a second when progress came.

    `cancelled_at` is the moment (monotonic) at which a cancellation was first seen, `lost` says that the lease is gone, or that no heartbeat
    succeeded for `fence_s`, after which another worker may soon own the job.
    """

    def __init__(self, engine: Engine, lease: Lease, settings: WorkerSettings) -> None:
        super().__init__(name=f"heartbeat-{lease.job_id.hex[:8]}", daemon=True)
        self._engine, self._lease, self._settings = engine, lease, settings
        self._progress: dict[str, Any] | None = None
        self._wake = threading.Condition()
        self._stopped = False
        self._lost = False
        self._succeeded_at = time.monotonic()
        self.cancelled_at: float | None = None

    def tell(self, frame: ProgressFrame) -> None:
        """Keep the newest progress for the next beat."""
        loss = next((value for name, value in frame.values.items() if "loss" in name and value is not None), None)
        with self._wake:
            self._progress = {
                "step": frame.name,
                "stage": frame.stage,
                "done": frame.step,
                "total": frame.of,
                "loss": None if loss is None else f"{loss:.4f}",
                "updated_at": datetime.fromtimestamp(time.time(), tz=UTC).isoformat(),
            }
            self._wake.notify()

    @property
    def lost(self) -> bool:
        """Whether this worker must regard the job as another's."""
        return self._lost or time.monotonic() - self._succeeded_at > self._settings.fence_s

    def stop(self) -> None:
        """End the thread; a beat under way is waited for."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self.join(timeout=self._settings.heartbeat_s)

    def run(self) -> None:
        """Beat until stopped or lost."""
        while not self._lost:
            self._wait()
            if self._stopped:
                return
            self._beat()

    def _wait(self) -> None:
        started = time.monotonic()
        with self._wake:
            while not self._stopped:
                waited = time.monotonic() - started
                due_s = PROGRESS_EVERY_S if self._progress is not None else self._settings.heartbeat_s
                if waited >= due_s:
                    return
                self._wake.wait(due_s - waited)

    def _beat(self) -> None:
        with self._wake:
            progress, self._progress = self._progress, None
        try:
            with unit_of_work(self._engine, tenant=self._lease.tenant_id) as session:
                asked = heartbeat(
                    session,
                    job_id=self._lease.job_id,
                    epoch=self._lease.epoch,
                    lease_s=self._settings.lease_s,
                    progress=None if progress is None else json.dumps(progress),
                )
        except LeaseLost:
            self._lost = True
            log.info("lease.gone", job_id=str(self._lease.job_id), epoch=self._lease.epoch)
            return
        except LetheError as error:
            log.warning("heartbeat.failed", job_id=str(self._lease.job_id), code=error.code)
            return
        self._succeeded_at = time.monotonic()
        if asked is not None and self.cancelled_at is None:
            self.cancelled_at = time.monotonic()
