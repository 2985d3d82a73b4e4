"""Databases of their own for tests that commit, and rows to start from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, insert

from services.clock import SystemClock, uuid7
from services.db.session import make_engine, unit_of_work
from services.db.tables import Job, Model
from services.tenants import repository
from services.tenants.keys import KeyRing
from services.tenants.service import create_tenant

KEYS = KeyRing(kek="11" * 32, pepper="22" * 32)
CLOCK = SystemClock()


@dataclass
class Ledger:
    """A copy of the migrated database with an engine for each role, made when it is first used; `held` is its name from then on."""

    server: Any
    held: str = ""
    engines: dict[str, Engine] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the name of the database."""
        self.held = self.held or self.server.fresh_database()
        return self.held

    def settle(self, world: str, build: Callable[["Ledger"], None]) -> None:
        """Let `build` put a world into the database; one that is not used yet becomes a copy of where `build` was done before under that name."""
        if self.held:
            build(self)
            return
        if world not in self.server.settled:
            first = Ledger(self.server)
            build(first)
            first.close()
            self.server.settled[world] = first.name
        self.held = self.server.fresh_database(self.server.settled[world])

    def close(self) -> None:
        """Close what is open to the database."""
        for engine in self.engines.values():
            engine.dispose()

    def url(self, role: str) -> str:
        """Return the URL for a role."""
        return self.server.url(role, self.name)

    def engine(self, role: str) -> Engine:
        """Return the engine of a role (`lethe_gateway`, ..., `superuser`)."""
        if role not in self.engines:
            self.engines[role] = make_engine(self.url(role), pool_size=4)
        return self.engines[role]

    def default_tenant(self) -> UUID:
        """Return the id of the tenant that bootstrap made."""
        with unit_of_work(self.engine("lethe_owner"), tenant=None) as session:
            found = repository.tenant_by_name(session, "default")
            assert found is not None
            return found.id

    def tenant(self, name: str) -> UUID:
        """Return the id of a new tenant."""
        with unit_of_work(self.engine("lethe_owner"), tenant=None) as session:
            return create_tenant(session, name=name, keys=KEYS)

    def model(self, tenant: UUID, name: str = "faces") -> UUID:
        """Return the id of a new model without versions."""
        model_id = uuid7(CLOCK)
        with unit_of_work(self.engine("lethe_gateway"), tenant=tenant) as session:
            session.execute(
                insert(Model).values(id=model_id, tenant_id=tenant, name=name, task="classification", architecture="mlp", architecture_params={})
            )
        return model_id

    def job(self, tenant: UUID, model: UUID, **columns: Any) -> UUID:
        """Return the id of a new queued job of kind train on queue cpu; columns may say otherwise."""
        row = {"id": uuid7(CLOCK), "kind": "train", "state": "queued", "params": {}, "seeds": {}, "queue": "cpu", "created_by": "test"}
        row |= {"tenant_id": tenant, "model_id": model, **columns}
        with unit_of_work(self.engine("lethe_gateway"), tenant=tenant) as session:
            session.execute(insert(Job).values(**row))
        return row["id"]


@pytest.fixture
def ledger(postgres: Any) -> Iterator[Ledger]:
    """A database of its own for one test."""
    made = Ledger(postgres)
    yield made
    made.close()
