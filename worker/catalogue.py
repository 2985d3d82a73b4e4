"""What a worker is and what a runner found in its registries, published for the gateway to list, validate and admit from."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from services.catalogue import service
from services.catalogue.service import EntryIn
from services.db.session import unit_of_work
from services.jobs.messages import ReadyFrame


def publish(engine: Engine, ready: ReadyFrame, *, worker: str, queue: str, device: Mapping[str, Any]) -> None:
    """Write the catalogue of a warm runner, and the worker with its device. Raises DatabaseDown."""
    entries = [
        EntryIn(
            kind=item.kind,
            name=item.name,
            version=item.version,
            guarantee=item.guarantee,
            schema=item.parameters,
            needs=tuple(item.needs),
            facts=item.facts,
            error=item.error,
        )
        for item in ready.catalogue
    ]
    with unit_of_work(engine, tenant=None) as session:
        service.publish(session, entries, worker=worker, queue=queue)
        service.introduce(session, worker=worker, queue=queue, device=device, versions=ready.versions)


def renew(engine: Engine, *, worker: str) -> None:
    """Say that the worker still offers what it published. Raises DatabaseDown."""
    with unit_of_work(engine, tenant=None) as session:
        service.renew(session, worker=worker)
