"""The catalogue: what live workers can run, as they published it. The gateway lists and validates from here and never imports torch."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from services.catalogue import repository
from services.catalogue.applicability import Offer, offer_of
from services.catalogue.schema import problems, with_defaults
from services.db.tables import CatalogueEntry
from services.errors import ParameterOutOfRange, UnknownComponent
from services.memory import Capacity

Kind = Literal["method", "metric", "attack", "task", "architecture", "dataset_adapter"]
KINDS: tuple[Kind, ...] = ("method", "metric", "attack", "task", "architecture", "dataset_adapter")

REMEMBERED_S = 1.0

LIVE_S = 600.0
"""An entry is available if a worker offered it within this many seconds; workers renew theirs each minute."""


@dataclass(frozen=True, slots=True)
class EntryIn:
    """One component as a worker publishes it.

    Args:
        kind: what it is.
        name: its name in the registry.
        version: raised when its results change.
        schema: JSON Schema of its parameters.
        guarantee: methods only.
        needs: methods: `forget_set`, `retain_set`, `unseen_set`, `recipe`.
        facts: whatever else the kind says of itself (tasks, granularities, modalities, limits, splits, unit, bounds, cost); JSON.
        error: why it could not be loaded; such an entry is listed and never available.
    """

    kind: Kind
    name: str
    version: str = "1"
    schema: Mapping[str, Any] = field(default_factory=dict[str, Any])
    guarantee: str | None = None
    needs: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None


@dataclass(frozen=True, slots=True)
class EntryView:
    """One component as it is listed. `available` says that a live worker offers it."""

    kind: Kind
    name: str
    version: str
    guarantee: str | None
    schema: Mapping[str, Any]
    needs: tuple[str, ...]
    facts: Mapping[str, Any]
    error: str | None
    queue: str
    available: bool


_remembered: WeakKeyDictionary[Engine | Connection, dict[Kind, tuple[float, dict[str, EntryView]]]] = WeakKeyDictionary()
_capacities: WeakKeyDictionary[Engine | Connection, tuple[float, list[Capacity]]] = WeakKeyDictionary()


def publish(session: Session, entries: Sequence[EntryIn], *, worker: str, queue: str) -> None:
    """Write what a worker can run, and take back what it offered before and does not any more. For the worker's role."""
    rows: list[dict[str, Any]] = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "version": entry.version,
            "guarantee": entry.guarantee,
            "schema": dict(entry.schema),
            "needs": list(entry.needs),
            "facts": dict(entry.facts),
            "error": entry.error,
            "queue": queue,
            "published_by": worker,
        }
        for entry in entries
    ]
    repository.upsert(session, rows)
    repository.forget_versions(session, worker, {(entry.kind, entry.name, entry.version) for entry in entries})


def renew(session: Session, *, worker: str) -> int:
    """Say that a worker still lives; return how many entries are its."""
    repository.worker_seen(session, worker)
    return repository.seen(session, worker)


def introduce(session: Session, *, worker: str, queue: str, device: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Write what a worker is: `device` holds `device`, `capacity_bytes` (what a job may take on one device) and `devices`. For the worker's role."""
    repository.upsert_worker(session, {"name": worker, "queue": queue, "device": dict(device), "versions": dict(versions)})


def seen_since(session: Session, moment: str) -> tuple[list[str], list[str]]:
    """Return the names of the live workers that were seen after a moment (ISO 8601), and of those that were not."""
    since = datetime.fromisoformat(moment)
    live = [row for row, age_s in repository.workers(session) if age_s <= LIVE_S]
    return [row.name for row in live if row.seen_at > since], [row.name for row in live if row.seen_at <= since]


def capacities(session: Session) -> list[Capacity]:
    """Return what the live workers can give a job, as it was at most a second ago; nothing where one of them does not say."""
    engine = session.get_bind()
    known = _capacities.get(engine)
    if known is None or time.monotonic() - known[0] > REMEMBERED_S:
        live = [row.device for row, age_s in repository.workers(session) if age_s <= LIVE_S]
        said = all(one.get("capacity_bytes") for one in live)
        found = [Capacity(int(one["capacity_bytes"]), int(one.get("devices", 1)), str(one["device"])) for one in live] if said else []
        known = (time.monotonic(), found)
        _capacities[engine] = known
    return known[1]


def view(row: CatalogueEntry, age_s: float) -> EntryView:
    """Return a row as it is listed."""
    return EntryView(
        kind=row.kind,  # pyright: ignore[reportArgumentType]  the CHECK of the column holds it to the kinds
        name=row.name,
        version=row.version,
        guarantee=row.guarantee,
        schema=row.schema,
        needs=tuple(row.needs),
        facts=row.facts,
        error=row.error,
        queue=row.queue,
        available=row.error is None and age_s <= LIVE_S,
    )


def listing(session: Session, kind: Kind) -> list[EntryView]:
    """Return the components of a kind by name; of several versions of one name, the available one seen last."""
    chosen: dict[str, EntryView] = {}
    for row, age_s in repository.entries(session, kind):
        found = view(row, age_s)
        if found.name not in chosen or (found.available and not chosen[found.name].available):
            chosen[found.name] = found
    return list(chosen.values())


def entry(session: Session, kind: Kind, name: str) -> EntryView | None:
    """Return one component, or None where no worker ever published it."""
    found = [view(row, age_s) for row, age_s in repository.entries(session, kind, name)]
    return next((one for one in found if one.available), found[0] if found else None)


def require(session: Session, kind: Kind, name: str) -> EntryView:
    """Return one component. Raises UnknownComponent with the names there are."""
    found = entry(session, kind, name)
    if found is None:
        raise UnknownComponent(kind=kind, name=name, known=", ".join(one.name for one in listing(session, kind)) or "none")
    return found


def remembered(session: Session, kind: Kind) -> dict[str, EntryView]:
    """Return the components of a kind by name, as they were at most a second ago: planning asks at every request, and workers publish once a minute."""
    held = _remembered.setdefault(session.get_bind(), {})
    known = held.get(kind)
    if known is None or time.monotonic() - known[0] > REMEMBERED_S:
        known = held[kind] = (time.monotonic(), {one.name: one for one in listing(session, kind)})
    return known[1]


def methods(session: Session) -> dict[str, EntryView]:
    """Return the methods by name, as they were at most a second ago."""
    return remembered(session, "method")


def offers(session: Session) -> dict[str, Offer]:
    """Return every method as the router takes them."""
    return {one.name: offer_of(one.name, one.facts, one.needs, available=one.available) for one in methods(session).values() if one.error is None}


def validate_parameters(component: EntryView | CatalogueEntry, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the schema's defaults filled in.

    Raises:
        ParameterOutOfRange: with the facts `pointer` (JSON pointer inside the parameters), `name` and `detail` of the first problem, and
            `problems`, the list of all as (pointer, detail).
    """
    found = list(problems(component.schema, dict(params)))
    if found:
        pointer, detail = found[0]
        raise ParameterOutOfRange(name=pointer.lstrip("/") or component.name, detail=detail, pointer=pointer, problems=found)
    return with_defaults(component.schema, params)
