"""What reports draw: the data of a job's figures, and the HTML and PDF that were made of a revision."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE figure (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  round INTEGER NOT NULL,
  name TEXT NOT NULL,
  data JSONB,
  digest TEXT,
  reason TEXT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_figure PRIMARY KEY (tenant_id, job_id, round, name),
  CONSTRAINT fk_figure_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_figure_drawn CHECK ((data IS NULL) = (digest IS NULL) AND (data IS NULL) = (reason IS NOT NULL))
);
CREATE TABLE rendering (
  tenant_id UUID NOT NULL,
  report_id UUID NOT NULL,
  form TEXT NOT NULL,
  digest TEXT NOT NULL,
  body BYTEA NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_rendering PRIMARY KEY (tenant_id, report_id, form),
  CONSTRAINT fk_rendering_tenant_id_report_id FOREIGN KEY(tenant_id, report_id) REFERENCES audit_report (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_rendering_form CHECK (form IN ('html', 'pdf'))
);
"""
WRITERS = {"figure": "lethe_worker", "rendering": "lethe_control"}
READERS = "lethe_gateway, lethe_worker, lethe_control"
OWN = "tenant_id = current_setting('app.tenant')::uuid"


def upgrade() -> None:
    """Make both tables: of their tenant alone, written by one role each, never changed."""
    run(TABLES)
    for table, writer in WRITERS.items():
        run(
            f"CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION lethe_immutable();"
            f"CREATE TRIGGER immutable_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION lethe_immutable();"
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
            f"CREATE POLICY own ON {table} TO lethe_owner, {READERS} USING ({OWN}) WITH CHECK ({OWN});"
            f"GRANT SELECT ON {table} TO {READERS}; GRANT INSERT ON {table} TO {writer};"
            f"ALTER TABLE {table} OWNER TO lethe_owner"
        )


def downgrade() -> None:
    """Drop both; renderings can be made again from the reports, figures cannot."""
    run("DROP TABLE rendering; DROP TABLE figure")


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
