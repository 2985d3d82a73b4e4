"""The migrations make the schema that the tables describe, and take it back."""

from pathlib import Path
from uuid import uuid4

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


BEFORE = """
INSERT INTO tenant (id, name, key_wrapped) VALUES ({t}, 'old', 'x');
INSERT INTO dataset (id, tenant_id, name, adapter, adapter_params, subject_types) VALUES ({d}, {t}, 'digits', 'image', '{{}}', '{{}}');
INSERT INTO model (id, tenant_id, name, task, architecture, architecture_params) VALUES ({m}, {t}, 'reader', 'classification', 'mlp', '{{}}');
INSERT INTO policy (id, tenant_id, key, version, regulation, ladder, verification, limits, flags, retention, batch_window)
VALUES ({p}, {t}, 'p', 1, 'gdpr', '[]', '{{}}', '{{}}', '{{"purge_superseded": "{rule}"}}', '{{}}', '1 s');
INSERT INTO job (id, tenant_id, kind, state, model_id, policy_id, params, seeds, queue, created_by, finished_at)
VALUES ({j}, {t}, 'unlearn', 'succeeded', {m}, {p}, '{{}}', '{{}}', 'cpu', 'control', now());
INSERT INTO job (id, tenant_id, kind, state, model_id, policy_id, params, seeds, queue, created_by, finished_at, step_state)
VALUES ({f}, {t}, 'unlearn', 'failed', {m}, {p}, '{{}}', '{{}}', 'cpu', 'control', now(),
        '{{"steps": {{"unlearn": {{"candidate": {{"digest": "ab", "size_bytes": 7}}}}}}}}');
INSERT INTO dataset_version (id, tenant_id, dataset_id, number, status) VALUES ({v}, {t}, {d}, 1, 'ready');
INSERT INTO dataset_version (id, tenant_id, dataset_id, number, status, parent_id, produced_by_job_id) VALUES ({w}, {t}, {d}, 2, 'ready', {v}, {j});
INSERT INTO dataset_record (tenant_id, dataset_id, record_id, present) VALUES ({t}, {d}, 'gone', '[1,2)'), ({t}, {d}, 'here', '[1,)');
"""


@pytest.mark.parametrize(("rule", "due"), [("after:30", True), ("never", False)])
def test_data_that_was_superseded_before_is_retired_by_the_migration_and_ready_again_when_it_is_taken_back(postgres, rule, due):
    database = postgres.empty_database()
    command.upgrade(migrations(postgres.url("lethe_owner", database)), "0009")
    ids = {name: f"'{uuid4()}'" for name in "tdmpjfvw"}
    engine = create_engine(driver_url(postgres.url("superuser", database)))
    with engine.begin() as connection:
        connection.exec_driver_sql(BEFORE.format(rule=rule, **ids), execution_options={"no_parameters": True})
    versions = text("SELECT number, status FROM dataset_version ORDER BY number")
    jobs = text("SELECT count(*) FROM job WHERE kind = 'purge'")
    waits = text("SELECT count(*) FROM job WHERE kind = 'purge' AND dataset_version_id IS NOT NULL AND run_after > now() + interval '29 days'")
    for _ in range(2):
        command.upgrade(migrations(postgres.url("lethe_owner", database)), "head")
        with engine.connect() as connection:
            assert connection.execute(versions).all() == [(1, "retired"), (2, "ready")]
            assert (connection.scalar(jobs), connection.scalar(waits)) == (int(due), int(due))
            assert connection.execute(text("SELECT digest, path, size_bytes FROM job_file")).all() == [("ab", "candidate.safetensors", 7)]
        command.downgrade(migrations(postgres.url("lethe_owner", database)), "0009")
        with engine.connect() as connection:
            assert connection.execute(versions).all() == [(1, "ready"), (2, "ready")]
            assert connection.scalar(jobs) == 0
    engine.dispose()
