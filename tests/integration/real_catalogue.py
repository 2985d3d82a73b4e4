"""The methods and architectures as a worker publishes them, for tests of what the gateway refuses by them."""

from functools import cache
from typing import Any

from services.catalogue.service import EntryIn
from services.catalogue.service import publish as publish_catalogue
from services.db.session import unit_of_work
from services.jobs.compute import plugins


@cache
def entries() -> list[EntryIn]:
    """Return every method and architecture of the package, as the runner describes them."""
    plugins.load(())
    return [
        EntryIn(item.kind, item.name, item.version, item.parameters, item.guarantee, tuple(item.needs), item.facts, item.error)
        for item in plugins.catalogue()
        if item.kind in {"method", "architecture"}
    ]


def publish_real(ledger: Any, *more: EntryIn) -> None:
    """Publish them, and `more`, in the name of another worker than the world's."""
    with unit_of_work(ledger.engine("lethe_worker"), tenant=None) as session:
        publish_catalogue(session, [*entries(), *more], worker="real", queue="cpu")
