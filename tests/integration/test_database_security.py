"""Row security, grants and immutability, read from the catalogue of the server and tried out."""

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError

from services.audit import log
from services.db.session import unit_of_work
from services.db.tables import AliasHistory, AuditEvent, Job, Model, Policy, StoredObject
from services.tenants import repository

SERVING = ("lethe_gateway", "lethe_worker", "lethe_control")
GUARDED = ("policy", "reading", "verdict", "verification_plan", "audit_event", "audit_report", "forget_ledger", "release", "audit_leaf", "tree_head")


def rows(ledger, sql):
    with ledger.engine("superuser").connect() as connection:
        return connection.execute(text(sql)).all()


def test_every_table_with_a_tenant_forces_row_security_and_has_a_policy(ledger):
    found = rows(
        ledger,
        "SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity, (SELECT count(*) FROM pg_policy p WHERE p.polrelid = c.oid"
        " AND pg_get_expr(p.polqual, p.polrelid) LIKE '%app.tenant%' AND pg_get_expr(p.polwithcheck, p.polrelid) LIKE '%app.tenant%')"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND a.attname = 'tenant_id'",
    )
    assert len(found) > 25
    assert [name for name, enabled, forced, policies in found if not (enabled and forced and policies == 1)] == []


def test_no_function_but_two_runs_with_the_rights_of_its_owner(ledger):
    found = rows(
        ledger,
        "SELECT p.proname, p.proconfig, r.rolname, r.rolcanlogin FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " JOIN pg_roles r ON r.oid = p.proowner WHERE n.nspname = 'public' AND p.prosecdef ORDER BY 1",
    )
    assert [(name, owner, login) for name, _, owner, login in found] == [
        ("lethe_claim", "lethe_scheduler", False),
        ("lethe_key", "lethe_scheduler", False),
    ]
    assert all(settings == ["search_path=pg_catalog, pg_temp"] for _, settings, _, _ in found)


def test_no_role_of_the_service_is_superuser_or_passes_row_security_and_views_ask_their_caller(ledger):
    assert rows(ledger, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'lethe%' AND (rolsuper OR rolbypassrls)") == []
    views = "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relkind = 'v'"
    assert rows(ledger, views + " AND NOT coalesce(c.reloptions, '{}') @> '{security_invoker=true}'") == []


def test_no_serving_role_owns_a_table_or_may_change_what_stands_still(ledger):
    assert rows(ledger, "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'lethe_owner'") == []
    for role in SERVING:
        for table in GUARDED:
            allowed = rows(ledger, f"SELECT has_table_privilege('{role}', '{table}', 'UPDATE, DELETE, TRUNCATE')")
            assert allowed == [(False,)], (role, table)


@pytest.mark.parametrize("role", SERVING)
def test_a_tenant_sees_nothing_of_another(ledger, role):
    ours, theirs = ledger.default_tenant(), ledger.tenant("other")
    ledger.model(ours)
    with unit_of_work(ledger.engine(role), tenant=ours) as session:
        assert len(session.scalars(select(Model)).all()) == 1
        assert len(session.scalars(select(Policy)).all()) == 2
    with unit_of_work(ledger.engine(role), tenant=theirs) as session:
        assert session.scalars(select(Model)).all() == []
        assert session.scalars(select(Policy)).all() == []
        assert session.execute(update(Model).values(name="taken")).rowcount == 0


def test_a_tenant_cannot_write_a_row_of_another(ledger):
    ours, theirs = ledger.default_tenant(), ledger.tenant("other")
    with pytest.raises(DBAPIError, match="row-level security"), unit_of_work(ledger.engine("lethe_gateway"), tenant=theirs) as session:
        log.record(session, tenant_id=ours, object_id=ours, type="request.received", body={})


def test_without_a_tenant_a_read_is_an_error_in_a_new_and_in_a_used_connection(ledger):
    tenant = ledger.default_tenant()
    ledger.model(tenant)
    engine = ledger.engine("lethe_gateway")
    for _ in range(2):
        with pytest.raises(DBAPIError, match=r"app\.tenant|invalid input syntax for type uuid"), unit_of_work(engine, tenant=None) as session:
            session.scalars(select(Model)).all()
        with unit_of_work(engine, tenant=tenant) as session:
            assert len(session.scalars(select(Model)).all()) == 1


def test_control_sees_jobs_of_all_tenants_and_the_owner_and_the_worker_do_not(ledger):
    for name in ("a", "b"):
        tenant = ledger.tenant(name)
        ledger.job(tenant, ledger.model(tenant))
    with unit_of_work(ledger.engine("lethe_control"), tenant=None) as session:
        assert len(session.scalars(select(Job)).all()) == 2
        assert log.record(session, tenant_id=tenant, object_id=tenant, type="job.swept", body={}) > 0
    for role in ("lethe_worker", "lethe_owner"):
        with pytest.raises(DBAPIError), unit_of_work(ledger.engine(role), tenant=None) as session:
            session.scalars(select(Job)).all()


def test_the_gateway_sees_no_blob_and_writes_no_evidence(ledger):
    tenant = ledger.default_tenant()
    with pytest.raises(DBAPIError, match="permission denied"), unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        session.scalars(select(StoredObject)).all()
    for table in ("reading", "verdict", "forget_ledger", "audit_report"):
        assert rows(ledger, f"SELECT has_table_privilege('lethe_gateway', '{table}', 'INSERT')") == [(False,)]


def test_rows_that_stand_still_stand_still_even_for_their_owner(ledger):
    tenant = ledger.default_tenant()
    owner = ledger.engine("lethe_owner")
    with unit_of_work(owner, tenant=tenant) as session:
        log.record(session, tenant_id=tenant, object_id=tenant, type="request.received", body={})
    for statement in (
        "UPDATE audit_event SET type = 'x'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event CASCADE",
        "UPDATE policy SET max_batch = 1",
        "DELETE FROM policy",
    ):
        with pytest.raises(DBAPIError, match="immutable"), unit_of_work(owner, tenant=tenant) as session:
            session.execute(text(statement))
    with unit_of_work(owner, tenant=tenant) as session:
        assert [row.type for row in session.scalars(select(AuditEvent)) if row.type.startswith("request")] == ["request.received"]


def test_the_end_of_an_alias_is_written_once_and_nothing_else_of_it(ledger):
    tenant = ledger.default_tenant()
    model = ledger.model(tenant)
    engine = ledger.engine("lethe_gateway")
    with unit_of_work(engine, tenant=tenant) as session:
        session.execute(insert(AliasHistory).values(id=tenant, tenant_id=tenant, model_id=model, alias="production", version_id=model, by="desk"))
    with pytest.raises(DBAPIError, match="immutable"), unit_of_work(engine, tenant=tenant) as session:
        session.execute(text("UPDATE alias_history SET alias = 'other', to_at = clock_timestamp()"))
    with unit_of_work(engine, tenant=tenant) as session:
        session.execute(text("UPDATE alias_history SET to_at = clock_timestamp()"))
    with pytest.raises(DBAPIError, match="immutable"), unit_of_work(engine, tenant=tenant) as session:
        session.execute(text("UPDATE alias_history SET to_at = clock_timestamp()"))


def test_a_key_is_found_by_the_gateway_alone_and_one_at_a_time(ledger):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=None) as session:
        assert repository.find_key(session, "nobody00") is None
    for role in ("lethe_worker", "lethe_control"):
        with pytest.raises(DBAPIError, match="permission denied"), unit_of_work(ledger.engine(role), tenant=None) as session:
            repository.find_key(session, "nobody00")
