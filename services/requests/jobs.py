"""Jobs as a client sees them: read, list, cancel."""

from uuid import UUID

from sqlalchemy.orm import Session

from services.clock import Clock
from services.requests.forms import JobFilters, Key
from services.requests.views import AttemptView, JobView, StepView
from services.tenants.caller import Caller


def read(session: Session, job_id: UUID) -> JobView:
    """Return one job. Raises NotFound."""
    ...


def listing(
    session: Session, filters: JobFilters, *, limit: int = 50, after: Key | None = None, newest_first: bool = True
) -> tuple[list[JobView], Key | None]:
    """Return a page of jobs by creation time, and the key to continue after (None on the last page)."""
    ...


def attempts(session: Session, job_id: UUID) -> list[AttemptView]:
    """Return the claims of a job, oldest first. Raises NotFound."""
    ...


def steps(session: Session, job_id: UUID) -> list[StepView]:
    """Return the steps of a job, oldest first. Raises NotFound."""
    ...


def cancel(session: Session, job_id: UUID, *, caller: Caller, clock: Clock) -> JobView:
    """Ask a job to stop: a queued one is cancelled at once, a running one at its next check.

    Raises: NotFound; IllegalTransition on a finished job; TooLateToCancel while it publishes.
    """
    ...
