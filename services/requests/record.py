"""The record of processing, for an authority that asks: counts of a period, and each request with its clock, decision, outcome and versions.

It holds no identifier of a person, no record id, and no text that somebody wrote.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from services.db import record as rows
from services.db.objects import now
from services.errors import InvalidInput
from services.tenants.caller import Caller

MOST = 10_000


@dataclass(frozen=True, slots=True)
class Period:
    """Requests received from `since` on and before `until`, of one regulation or of all."""

    since: datetime
    until: datetime
    regulation: str | None = None


def metrics(session: Session, period: Period, *, caller: Caller) -> dict[str, Any]:
    """Return how many requests were received and how they ended; days as decimal strings. Raises InvalidInput for an empty period."""
    _check(period)
    row = rows.counts(session, caller.tenant_id, period.since, period.until, period.regulation)
    days = {name: None if row[name] is None else f"{float(row[name]):.2f}" for name in ("median_days", "mean_days")}
    return {**row, **days, **_named(period)}


def export(session: Session, period: Period, *, caller: Caller) -> dict[str, Any]:
    """Return the record of a period, oldest request first. Raises InvalidInput for an empty period, and one with more than ten thousand requests."""
    _check(period)
    found = rows.requests(session, caller.tenant_id, period.since, period.until, period.regulation, MOST + 1)
    if len(found) > MOST:
        raise InvalidInput(detail=f"the period has more than {MOST} requests; ask for shorter ones.", pointer="/query/from")
    ids = [row["id"] for row in found]
    versions, data, reports = rows.versions(session, ids), rows.datasets(session, ids), rows.reports(session, ids)
    items: list[dict[str, Any]] = []
    for row in found:
        revision, digest = reports.get(row["id"], (None, None))
        facts = {name: value for name, value in row.items() if name != "id"}
        facts |= {"request": row["id"], "paused_s": round(float(row["paused_s"])), "versions": [dict(one) for one in versions[row["id"]]]}
        facts |= {"datasets": [dict(one) for one in data[row["id"]]]}
        items.append({**facts, "audit_report": digest, "audit_report_revision": revision})
    return {**_named(period), "made_at": now(session), "items": items}


def _named(period: Period) -> dict[str, Any]:
    return {"since": period.since, "until": period.until, "regulation": period.regulation}


def _check(period: Period) -> None:
    if period.since >= period.until:
        raise InvalidInput(detail="the period ends before it begins.", pointer="/query/to")
