"""What readiness asks of the database."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from services.db import leaves
from services.db.durability import unsafe_settings

REVISION = "0010"
LIVE_S = 600
SIGNER_LIVE_S = 30.0


@dataclass(frozen=True, slots=True)
class Findings:
    """Whether commits are durable, the schema is the one this code knows, a worker was seen in the last ten minutes; `signer` is `ok` or why not."""

    durable: bool
    migrated: bool
    workers: bool
    signer: str


def findings(session: Session) -> Findings:
    """Ask the database."""
    workers = session.execute(
        text("SELECT EXISTS (SELECT 1 FROM catalogue_entry WHERE kind = 'method' AND seen_at > clock_timestamp() - make_interval(secs => :live))"),
        {"live": LIVE_S},
    ).scalar_one()
    revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    migrated = revision is not None and revision >= REVISION
    durable = not unsafe_settings(session)
    return Findings(durable=durable, migrated=migrated, workers=bool(workers), signer=signer_state(session) if migrated else "unknown")


def signer_state(session: Session) -> str:
    """Return `ok`, or what keeps reports from being signed: the signer's own word, or that it is not seen."""
    told = leaves.told(session, "signer")
    if told is None:
        return "no signer was seen"
    state, _, age_s = told
    if age_s > SIGNER_LIVE_S:
        return "the signer was not seen for half a minute"
    return state
