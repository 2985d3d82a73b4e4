"""The migrations make the schema that the tables describe, and take it back."""

from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from services.db.session import driver_url
from services.db.tables import IMMUTABLE, TENANT_TABLES, Base

ROOT = Path(__file__).resolve().parents[2]


def migrations(url):
    config = Config(ROOT / "migrations" / "alembic.ini")
    config.attributes["url"] = url
    return config


@pytest.fixture
def bare(postgres):
    url = postgres.url("lethe_owner", postgres.empty_database())
    engine = create_engine(driver_url(url))
    yield url, engine
    engine.dispose()


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)


def test_upgrade_downgrade_upgrade_ends_in_the_schema_of_the_tables(bare):
    url, engine = bare
    command.upgrade(migrations(url), "head")
    assert differences(engine) == []
    command.downgrade(migrations(url), "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    with engine.connect() as connection:
        left = connection.scalar(text("SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'public'"))
    assert left == 0
    command.upgrade(migrations(url), "head")
    assert differences(engine) == []


def test_the_migrated_schema_has_the_checks_and_partial_indexes_of_the_tables(ledger):
    inspector = inspect(ledger.engine("lethe_owner"))
    for table in Base.metadata.sorted_tables:
        declared = {str(check.name) for check in table.constraints if check.__class__.__name__ == "CheckConstraint"}
        assert declared == {check["name"] for check in inspector.get_check_constraints(table.name)}, table.name
        partial = {str(index.name) for index in table.indexes if index.dialect_options["postgresql"]["where"] is not None}
        held = {index["name"] for index in inspector.get_indexes(table.name) if "postgresql_where" in index.get("dialect_options", {})}
        assert partial == held, table.name


def test_the_migration_and_the_tables_agree_on_which_rows_belong_to_tenants_and_which_stand_still(ledger):
    with ledger.engine("lethe_owner").connect() as connection:
        secured = connection.scalars(text("SELECT relname FROM pg_class WHERE relrowsecurity AND relkind = 'r' ORDER BY relname")).all()
        guarded = connection.scalars(
            text("SELECT DISTINCT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE t.tgname = 'immutable'")
        ).all()
    assert tuple(secured) == TENANT_TABLES
    assert sorted(guarded) == sorted(IMMUTABLE)
