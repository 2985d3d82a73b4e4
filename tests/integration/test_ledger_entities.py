"""Requests for an entity: which records they find, and what becomes of the names."""

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select, text

from services.catalogue.service import EntryIn
from services.catalogue.service import publish as publish_catalogue
from services.clock import uuid7
from services.datasets import service as datasets
from services.datasets.forms import SubjectRow
from services.datasets.identifiers import Identifier
from services.db.session import unit_of_work
from services.db.tables import DeletionRequest
from services.errors import EntityNotFound, IntegrityBroken, MethodNotApplicable, ParameterOutOfRange
from services.requests import names
from services.requests import service as requests
from services.requests.forms import Cancellation, EntityScope, RecordsScope
from services.tenants.keys import tenant_key
from tests.integration.test_ledger_requests import CLOCK, KEYS, World

NAME = "Ada Byron-King"


@pytest.fixture
def named(ledger: Any) -> World:
    """A world in which records r020 to r022 speak of a named person."""
    world = World(ledger)
    spoken = [SubjectRow(f"r{index:03}", (Identifier("entity", NAME),)) for index in (20, 21, 22)]
    world.run("lethe_gateway", datasets.index_subjects, "digits", 1, spoken, caller=world.caller, keys=KEYS)
    return world


def sealed(world: World, request_id: UUID) -> bytes | None:
    return world.sql(select(DeletionRequest.names_sealed).where(DeletionRequest.id == request_id)).scalar_one()


@pytest.mark.parametrize("scope", [{"dataset": "digits"}, {"model": "reader"}])
def test_a_request_for_an_entity_finds_the_records_that_speak_of_it_however_it_is_written(named: World, scope: dict[str, str]) -> None:
    view = named.create(EntityScope(("ADA  byron king",), **scope))

    assert (view.scope.kind, view.scope.records) == ("entity", 3)
    assert [(one.model, one.records) for one in view.targets] == [("reader", 3)]


def test_the_names_of_an_entity_are_sealed_while_the_request_is_open_and_gone_when_it_closes(named: World) -> None:
    view = named.create(EntityScope((NAME,), dataset="digits"))

    box = sealed(named, view.id)
    assert box is not None
    assert b"Byron" not in box
    with unit_of_work(named.ledger.engine("lethe_worker"), tenant=named.tenant) as session:
        key = tenant_key(session, named.tenant, KEYS.kek)
    assert names.opened(box, key, named.tenant, view.id) == (NAME,)
    with pytest.raises(IntegrityBroken):
        names.opened(box, key, named.tenant, uuid7(CLOCK))
    cancelled = Cancellation(by="operator", reason="a test")
    named.run("lethe_gateway", requests.cancel, view.id, cancelled, caller=named.caller, clock=CLOCK)
    assert sealed(named, view.id) is None


def test_no_table_holds_the_name_of_an_entity(named: World) -> None:
    view = named.create(EntityScope((NAME,), dataset="digits"))
    named.advance(view.id)

    with named.ledger.engine("superuser").connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        held = {table: connection.scalars(text(f"SELECT to_jsonb(t)::text FROM {table} t")).all() for table in tables}

    rows = [row for each in held.values() for row in each]
    assert len(rows) > 100
    assert not [table for table, each in held.items() if any("byron" in row.lower() for row in each)]


def test_a_name_that_no_record_has_is_refused_without_being_told(named: World) -> None:
    with pytest.raises(EntityNotFound, match=r"^1 of the names") as refused:
        named.create(EntityScope((NAME, "Charles Babbage"), dataset="digits"))

    assert "Babbage" not in str(refused.value)


def test_a_method_that_takes_names_as_parameters_does_not_take_them_from_a_request(named: World) -> None:
    schema = {"type": "object", "properties": {"entities": {"type": "array", "x-personal": True, "default": []}}}
    facts = {"tasks": ["classification"], "granularities": ["concept"]}
    with unit_of_work(named.ledger.engine("lethe_worker"), tenant=None) as session:
        publish_catalogue(session, [EntryIn("method", "masker", schema=schema, guarantee="suppression", facts=facts)], worker="w3", queue="cpu")

    with pytest.raises(ParameterOutOfRange, match="scope of kind entity"):
        named.create(EntityScope((NAME,), dataset="digits"), method="masker", parameters={"entities": [NAME]})
    view = named.create(EntityScope((NAME,), dataset="digits"), method="masker")
    named.advance(view.id)
    assert named.jobs(view.id)[0].method == "masker"
    with pytest.raises(MethodNotApplicable, match="does not forget records"):
        named.create(RecordsScope("digits", ("r050",)), method="masker")
