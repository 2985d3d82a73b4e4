"""The life of a deletion request, from its receipt to its end. Nothing here commits: the caller's unit of work does."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from services.clock import Clock
from services.requests.forms import Cancellation, Decision, Key, NewRequest, RequestFilters
from services.requests.views import DryRun, RequestView, TargetView
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing


def create(session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing) -> RequestView:
    """Record a request with its targets, audit events and outbox row; nothing is lost once the caller commits.

    The answer is `duplicate` where another request with the same scope is open, and `replayed` where this external_id and body were seen before.

    Raises:
        UnknownDataset, UnknownModel, RecordsNotFound, EmptyForgetSet, ForgetSetIsEverything: the scope does not hold.
        UnknownComponent, MethodNotApplicable, ParameterOutOfRange: the method does not.
        DuplicateExternalId: the external_id was used with another body.
        InvalidInput: a scope kind, an identity mode or a policy that this deployment does not have.
    """
    ...


def dry_run(session: Session, body: NewRequest, *, caller: Caller, clock: Clock, keys: KeyRing) -> DryRun:
    """Say what `create` would do, without a row."""
    ...


def read(session: Session, request_id: UUID, *, clock: Clock) -> RequestView:
    """Return one request. Raises NotFound."""
    ...


def listing(
    session: Session, filters: RequestFilters, *, clock: Clock, limit: int = 50, after: Key | None = None, newest_first: bool = True
) -> tuple[list[RequestView], Key | None]:
    """Return a page of requests by creation time, and the key to continue after (None on the last page)."""
    ...


def targets(session: Session, request_id: UUID) -> list[TargetView]:
    """Return the targets of a request with their jobs, newest job first. Raises NotFound."""
    ...


def target(session: Session, request_id: UUID, target_id: UUID) -> TargetView:
    """Return one target. Raises NotFound."""
    ...


def cancel(session: Session, request_id: UUID, form: Cancellation, *, caller: Caller, clock: Clock) -> RequestView:
    """Take a request back; its running job is asked to stop and shared targets are queued again.

    Raises: NotFound; IllegalTransition; TooLateToCancel once a target is being published or is published.
    """
    ...


def decide(session: Session, request_id: UUID, form: Decision, *, expected_version: int, caller: Caller, clock: Clock) -> RequestView:
    """Approve or deny a request that waits for review.

    Raises: NotFound; PreconditionFailed when `expected_version` is stale; IllegalTransition; FourEyesRequired.
    """
    ...


def advance(session: Session, request_id: UUID, clock: Clock) -> str:
    """Move a request on as far as it goes (start, finish, stuck) and return its state; safe to call at any time, any number of times."""
    ...


def due_soon(session: Session, before: datetime) -> list[UUID]:
    """Return the open requests due before a moment, earliest first."""
    ...
