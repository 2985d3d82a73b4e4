"""The bell: a message is a job id, and a job id is a hint to look at the database now."""

from uuid import UUID

import structlog

from services.queue import TASK
from worker.celery_app import app
from worker.pool_child import supervisor

log = structlog.get_logger()


@app.task(name=TASK, ignore_result=True)  # pyright: ignore[reportUntypedFunctionDecorator]  celery ships no types
def run_job(job_id: str) -> None:
    """Claim the job if it is still to be had, or the best due one; a garbled or late bell changes nothing."""
    try:
        wanted = UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        log.warning("bell.garbled")
        return
    supervisor().poll(wanted)
