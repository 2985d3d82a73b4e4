"""The spine: every table of the first release, with roles, grants, row security, immutability and the two functions across tenants.

The statements are in `0001_spine.sql` and stand still: `services/db/tables.py` may move on, this file may not.
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

DDL = Path(__file__).with_suffix(".sql")

LOGIN_ROLES = ("lethe_owner", "lethe_gateway", "lethe_worker", "lethe_control")
SCHEDULER = "lethe_scheduler"

GLOBAL_TABLES = ("tenant", "catalogue_entry", "object", "object_pin")
TENANT_TABLES = (
    "alias_history", "api_key", "audit_event", "audit_payload", "audit_report", "dataset", "dataset_file", "dataset_record", "dataset_version",
    "deletion_request", "forget_ledger", "idempotency", "job", "job_attempt", "job_step", "job_target", "model", "model_alias", "model_file",
    "model_version", "object_ref", "outbox", "policy", "reading", "release", "subject_record", "target", "target_record", "training_input",
    "verdict", "verification_plan",
)  # fmt: skip
TABLES = (*GLOBAL_TABLES, *TENANT_TABLES)
IMMUTABLE = ("policy", "alias_history", "forget_ledger", "verification_plan", "reading", "verdict", "release", "audit_report", "audit_event")

# What control sees of all tenants at once: a name of a table and the commands its policy is for.
ACROSS_TENANTS = {
    "job": ("ALL",),
    "outbox": ("ALL",),
    "target": ("ALL",),
    "deletion_request": ("ALL",),
    "audit_event": ("SELECT", "INSERT"),
    "audit_payload": ("INSERT",),
}

# Nobody but the owner may change what the triggers protect, and only the worker writes evidence.
ROWS = ("dataset", "dataset_file", "dataset_record", "dataset_version", "job", "job_target", "model", "model_alias", "model_file", "model_version")
LOGGED = ("audit_event", "audit_payload", "outbox", "alias_history", "training_input", "object_ref")
RIGHTS = {
    "lethe_gateway": {
        "SELECT": tuple(table for table in TABLES if table not in {"object", "object_pin", "object_ref"}),
        "INSERT": (
            *ROWS, "alias_history", "api_key", "audit_event", "audit_payload", "deletion_request", "idempotency", "outbox", "policy", "release",
            "subject_record", "target", "target_record", "training_input",
        ),
        "UPDATE": (*ROWS, "alias_history", "api_key", "deletion_request", "subject_record", "target"),
        "DELETE": ("idempotency", "model_alias", "subject_record"),
    },
    "lethe_worker": {
        "SELECT": TABLES,
        "INSERT": (
            *ROWS, *LOGGED, "catalogue_entry", "forget_ledger", "job_attempt", "job_step", "object", "object_pin", "reading", "target",
            "target_record", "verdict", "verification_plan",
        ),
        "UPDATE": (*ROWS, "alias_history", "catalogue_entry", "deletion_request", "job_attempt", "job_step", "object", "object_pin", "target"),
        "DELETE": ("catalogue_entry", "object_pin"),
    },
    "lethe_control": {
        "SELECT": TABLES,
        "INSERT": (
            *ROWS, *LOGGED, "audit_report", "deletion_request", "job_attempt", "object", "object_pin", "subject_record", "target", "target_record",
        ),
        "UPDATE": (*ROWS, "alias_history", "deletion_request", "job_attempt", "job_step", "object", "object_pin", "outbox", "target"),
        "DELETE": ("audit_payload", "idempotency", "model_alias", "object_pin", "object_ref", "outbox", "subject_record", "target_record"),
    },
}  # fmt: skip


def upgrade() -> None:
    """Make everything. Runs as lethe_owner with CREATEROLE, owner of the database, or as a superuser."""
    for role in LOGIN_ROLES:
        _make_role(role, "LOGIN")
    _make_role(SCHEDULER, "NOLOGIN")
    run(DDL.read_text(encoding="utf-8"))
    for table in IMMUTABLE:
        run(
            f"CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION lethe_immutable();"
            f"CREATE TRIGGER immutable_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION lethe_immutable()"
        )
    _secure_rows()
    _grant()
    _give_away()


def downgrade() -> None:
    """Drop everything but the roles: they belong to the whole server, and other databases may use them."""
    run("DROP FUNCTION lethe_claim(text, text, double precision, uuid), lethe_key(text)")
    run(f"DROP TABLE {', '.join(TABLES)} CASCADE")
    run("DROP FUNCTION lethe_immutable()")
    run(f"REVOKE ALL ON SCHEMA public FROM {', '.join(LOGIN_ROLES)}, {SCHEDULER}")
    run("REVOKE ALL ON alembic_version FROM lethe_gateway, lethe_worker, lethe_control")


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})


def _make_role(role: str, login: str) -> None:
    """Create a role of the server unless it is there; two migrations may meet here."""
    run(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN"
        f" CREATE ROLE {role} {login} NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE; END IF;"
        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )


def _secure_rows() -> None:
    """Put row security on each table of tenants: the row's tenant is the transaction's. An unset tenant is an error, not an empty answer."""
    own = "tenant_id = current_setting('app.tenant')::uuid"
    for table in TENANT_TABLES:
        across = ACROSS_TENANTS.get(table, ())
        run(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        bound = tuple(role for role in LOGIN_ROLES if not (role == "lethe_control" and "ALL" in across))
        run(f"CREATE POLICY own ON {table} TO {', '.join(bound)} USING ({own}) WITH CHECK ({own})")
        for command in across:
            seen = "WITH CHECK (true)" if command == "INSERT" else "USING (true)"
            run(f"CREATE POLICY control_{command.lower()} ON {table} FOR {command} TO lethe_control {seen}")
    run(f"CREATE POLICY scheduler ON job TO {SCHEDULER} USING (true) WITH CHECK (true)")
    run(f"CREATE POLICY scheduler ON api_key FOR SELECT TO {SCHEDULER} USING (true)")


def _grant() -> None:
    """Give each role what its process needs."""
    run(f"GRANT USAGE ON SCHEMA public TO {', '.join(LOGIN_ROLES)}, {SCHEDULER}; GRANT CREATE ON SCHEMA public TO lethe_owner")
    for role, rights in RIGHTS.items():
        for right, tables in rights.items():
            run(f"GRANT {right} ON {', '.join(tables)} TO {role}")
        run(f"GRANT SELECT ON alembic_version TO {role}")
    run(f"GRANT SELECT, UPDATE ON job TO {SCHEDULER}; GRANT SELECT ON api_key TO {SCHEDULER}")
    run("REVOKE EXECUTE ON FUNCTION lethe_claim(text, text, double precision, uuid), lethe_key(text) FROM PUBLIC")
    run("GRANT EXECUTE ON FUNCTION lethe_claim(text, text, double precision, uuid) TO lethe_worker")
    run("GRANT EXECUTE ON FUNCTION lethe_key(text) TO lethe_gateway")


def _give_away() -> None:
    """Make lethe_owner the owner of the tables and lethe_scheduler that of the two functions, whoever runs this migration."""
    for table in (*TABLES, "alembic_version"):
        run(f"ALTER TABLE {table} OWNER TO lethe_owner")
    run("ALTER FUNCTION lethe_immutable() OWNER TO lethe_owner")
    run(
        f"DO $$ BEGIN IF NOT pg_has_role(current_user, '{SCHEDULER}', 'SET') THEN"
        f" GRANT {SCHEDULER} TO lethe_owner WITH SET TRUE, INHERIT FALSE; END IF; END $$"
    )
    run(f"GRANT CREATE ON SCHEMA public TO {SCHEDULER}")
    run(f"ALTER FUNCTION lethe_claim(text, text, double precision, uuid) OWNER TO {SCHEDULER}")
    run(f"ALTER FUNCTION lethe_key(text) OWNER TO {SCHEDULER}")
    run(f"REVOKE CREATE ON SCHEMA public FROM {SCHEDULER}")
