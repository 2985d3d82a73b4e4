"""The one transaction by which a job's version becomes the model's current one."""

from sqlalchemy.orm import Session

from services.clock import Clock
from services.model_versions.forms import Publication, Published


def publish(session: Session, publication: Publication, *, clock: Clock) -> Published:
    """Publish a version. The caller holds the job row, locked on its epoch in state `publishing`, and commits afterwards.

    Raises:
        ParentMoved: the job's base is no longer the model's current version; roll back and rebase.
        Conflict: a verdict `passed` of this round is missing, or a target is no longer running.
    """
    ...
