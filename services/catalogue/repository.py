"""SQL of the catalogue."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from services.db.tables import CatalogueEntry, Worker


def upsert(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Insert entries or replace what is known of them; `seen_at` becomes now. Rows are written by key order, so that two workers cannot deadlock."""
    for row in sorted(rows, key=lambda row: (row["kind"], row["name"], row["version"])):
        facts = {column: value for column, value in row.items() if column not in {"kind", "name", "version"}}
        session.execute(
            insert(CatalogueEntry)
            .values(**row)
            .on_conflict_do_update(index_elements=["kind", "name", "version"], set_={**facts, "seen_at": func.clock_timestamp()})
        )


def forget_versions(session: Session, worker: str, kept: Collection[tuple[str, str, str]]) -> None:
    """Delete what this worker published before and does not offer any more."""
    held = session.execute(
        select(CatalogueEntry.kind, CatalogueEntry.name, CatalogueEntry.version).where(CatalogueEntry.published_by == worker)
    ).all()
    for kind, name, version in held:
        if (kind, name, version) not in kept:
            session.execute(
                delete(CatalogueEntry).where(
                    CatalogueEntry.kind == kind,
                    CatalogueEntry.name == name,
                    CatalogueEntry.version == version,
                    CatalogueEntry.published_by == worker,
                )
            )


def seen(session: Session, worker: str) -> int:
    """Note that a worker lives: its entries are available. Return how many there are."""
    rows = select(CatalogueEntry).where(CatalogueEntry.published_by == worker).with_for_update(skip_locked=True)
    entries = session.scalars(rows).all()
    for entry in entries:
        entry.seen_at = func.clock_timestamp()
    session.flush()
    return len(entries)


def entries(session: Session, kind: str, name: str | None = None) -> Sequence[tuple[CatalogueEntry, float]]:
    """Return the entries of a kind (of one name) with the seconds since a worker offered them, by name, the newest sighting first."""
    age = func.extract("epoch", func.clock_timestamp() - CatalogueEntry.seen_at)
    query = select(CatalogueEntry, age).where(CatalogueEntry.kind == kind)
    if name is not None:
        query = query.where(CatalogueEntry.name == name)
    return [(entry, float(seconds)) for entry, seconds in session.execute(query.order_by(CatalogueEntry.name, CatalogueEntry.seen_at.desc()))]


def upsert_worker(session: Session, row: dict[str, Any]) -> None:
    """Insert a worker or replace what is known of it; `seen_at` becomes now."""
    facts = {column: value for column, value in row.items() if column != "name"}
    statement = insert(Worker).values(**row)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={**facts, "seen_at": func.clock_timestamp()}))


def worker_seen(session: Session, name: str) -> None:
    """Note that a worker lives."""
    session.execute(update(Worker).where(Worker.name == name).values(seen_at=func.clock_timestamp()))


def workers(session: Session) -> Sequence[tuple[Worker, float]]:
    """Return every worker with the seconds since it was seen, by name."""
    age = func.extract("epoch", func.clock_timestamp() - Worker.seen_at)
    return [(worker, float(seconds)) for worker, seconds in session.execute(select(Worker, age).order_by(Worker.name))]
