"""What readiness asks of the database."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.db.durability import unsafe_settings

REVISION = "0001"
LIVE_S = 600


@dataclass(frozen=True, slots=True)
class Findings:
    """Whether commits are durable, the schema is the one this code knows, and a worker was seen in the last ten minutes."""

    durable: bool
    migrated: bool
    workers: bool


def findings(session: Session) -> Findings:
    """Ask the database."""
    workers = session.execute(
        text("SELECT EXISTS (SELECT 1 FROM catalogue_entry WHERE kind = 'method' AND seen_at > clock_timestamp() - make_interval(secs => :live))"),
        {"live": LIVE_S},
    ).scalar_one()
    revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return Findings(durable=not unsafe_settings(session), migrated=revision is not None and revision >= REVISION, workers=bool(workers))
