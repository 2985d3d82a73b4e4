"""The compliance record: destruction of versions with its certificate, legal holds, pauses and extensions of the clock, refusals, recipients.

Versions that were quarantined with a date before this migration get the purge job that publishing opens from now on.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE tombstone (
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  reason TEXT NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_tombstone PRIMARY KEY (digest)
);
CREATE INDEX ix_tombstone_size_bytes ON tombstone (size_bytes);
CREATE TABLE destruction_certificate (
  version_id UUID NOT NULL,
  digest TEXT NOT NULL,
  document JSONB NOT NULL,
  event_id BIGINT NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_destruction_certificate PRIMARY KEY (id),
  CONSTRAINT uq_destruction_certificate_tenant_id_version_id UNIQUE (tenant_id, version_id),
  CONSTRAINT fk_destruction_certificate_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_destruction_certificate_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id)
);
CREATE TABLE legal_hold (
  scope TEXT NOT NULL,
  scope_ref BYTEA NOT NULL,
  reason TEXT NOT NULL,
  placed_by TEXT NOT NULL,
  released_at TIMESTAMP WITH TIME ZONE,
  released_by TEXT,
  release_reason TEXT,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_legal_hold PRIMARY KEY (id),
  CONSTRAINT uq_legal_hold_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT ck_legal_hold_scope CHECK (scope IN ('subject', 'model', 'request', 'dataset')),
  CONSTRAINT ck_legal_hold_released CHECK ((released_at IS NULL) = (released_by IS NULL))
);
CREATE INDEX ix_legal_hold_standing ON legal_hold (tenant_id, scope, scope_ref) WHERE released_at IS NULL;
CREATE TABLE hold_record (
  tenant_id UUID NOT NULL,
  hold_id UUID NOT NULL,
  dataset_id UUID NOT NULL,
  record_hmac BYTEA NOT NULL,
  CONSTRAINT pk_hold_record PRIMARY KEY (tenant_id, hold_id, dataset_id, record_hmac),
  CONSTRAINT fk_hold_record_tenant_id_hold_id FOREIGN KEY(tenant_id, hold_id) REFERENCES legal_hold (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX ix_hold_record_tenant_id_record_hmac ON hold_record (tenant_id, record_hmac);
CREATE TABLE clock_pause (
  request_id UUID NOT NULL,
  from_at TIMESTAMP WITH TIME ZONE NOT NULL,
  to_at TIMESTAMP WITH TIME ZONE,
  reason TEXT NOT NULL,
  opened_by TEXT NOT NULL,
  closed_by TEXT,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_clock_pause PRIMARY KEY (id),
  CONSTRAINT fk_clock_pause_tenant_id_request_id FOREIGN KEY(tenant_id, request_id) REFERENCES deletion_request (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_clock_pause_order CHECK (to_at > from_at)
);
CREATE INDEX ix_clock_pause_tenant_id_request_id ON clock_pause (tenant_id, request_id);
CREATE UNIQUE INDEX uq_clock_pause_open ON clock_pause (tenant_id, request_id) WHERE to_at IS NULL;
CREATE TABLE recipient_notification (
  request_id UUID NOT NULL,
  version_id UUID NOT NULL,
  recipient TEXT NOT NULL,
  channel TEXT NOT NULL,
  sent_at TIMESTAMP WITH TIME ZONE NOT NULL,
  outcome TEXT NOT NULL,
  recorded_by TEXT NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_recipient_notification PRIMARY KEY (id),
  CONSTRAINT fk_recipient_notification_tenant_id_request_id FOREIGN KEY(tenant_id, request_id) REFERENCES deletion_request (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_recipient_notification_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_recipient_notification_outcome CHECK (outcome IN ('sent', 'confirmed', 'failed', 'not_possible'))
);
CREATE INDEX ix_recipient_notification_tenant_id_request_id ON recipient_notification (tenant_id, request_id);
ALTER TABLE deletion_request ADD COLUMN extended_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE deletion_request ADD COLUMN extended_by TEXT;
ALTER TABLE deletion_request ADD COLUMN extension_reason TEXT;
ALTER TABLE deletion_request ADD COLUMN complaint_told BOOLEAN;
ALTER TABLE deletion_request ADD COLUMN court_told BOOLEAN;
ALTER TABLE deletion_request ADD CONSTRAINT ck_deletion_request_extended CHECK ((extended_at IS NULL) = (extension_reason IS NULL));
ALTER TABLE model_version ADD COLUMN quarantined_for TEXT;
ALTER TABLE model_version ADD CONSTRAINT ck_model_version_quarantined_for CHECK (quarantined_for IN ('forgotten', 'requested'));
CREATE INDEX ix_model_file_tenant_id_digest ON model_file (tenant_id, digest);
CREATE UNIQUE INDEX uq_job_open_purge ON job (tenant_id, base_version_id) WHERE kind = 'purge' AND finished_at IS NULL;
"""
SERVING = "lethe_gateway, lethe_worker, lethe_control"
OWN = "tenant_id = current_setting('app.tenant')::uuid"
# what each role may do beyond reading, by table of a tenant
WRITERS = {
    "destruction_certificate": {"lethe_control": "INSERT"},
    "legal_hold": {"lethe_gateway": "INSERT, UPDATE"},
    "hold_record": {"lethe_gateway": "INSERT"},
    "clock_pause": {"lethe_gateway": "INSERT, UPDATE"},
    "recipient_notification": {"lethe_gateway": "INSERT"},
}
IMMUTABLE = ("tombstone", "destruction_certificate", "hold_record", "recipient_notification")
QUARANTINED = """
ALTER TABLE job NO FORCE ROW LEVEL SECURITY; ALTER TABLE model_version NO FORCE ROW LEVEL SECURITY;
UPDATE model_version SET quarantined_for = 'forgotten' WHERE status IN ('quarantined', 'destroyed');
INSERT INTO job (id, tenant_id, kind, state, model_id, base_version_id, params, seeds, queue, run_after, created_by)
SELECT gen_random_uuid(), v.tenant_id, 'purge', 'queued', v.model_id, v.id, '{"reason": "superseded", "by": "policy"}', '{}', 'purge', v.destroy_by,
       'migration' FROM model_version v WHERE v.status = 'quarantined' AND v.destroy_by IS NOT NULL;
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE job FORCE ROW LEVEL SECURITY; ALTER TABLE model_version FORCE ROW LEVEL SECURITY;
"""
WITHOUT_PURGES = """
ALTER TABLE job NO FORCE ROW LEVEL SECURITY; ALTER TABLE job_attempt NO FORCE ROW LEVEL SECURITY; ALTER TABLE job_step NO FORCE ROW LEVEL SECURITY;
DELETE FROM job_attempt a USING job j WHERE j.id = a.job_id AND j.kind = 'purge';
DELETE FROM job_step s USING job j WHERE j.id = s.job_id AND j.kind = 'purge';
DELETE FROM job WHERE kind = 'purge';
SET CONSTRAINTS ALL IMMEDIATE;
ALTER TABLE job FORCE ROW LEVEL SECURITY; ALTER TABLE job_attempt FORCE ROW LEVEL SECURITY; ALTER TABLE job_step FORCE ROW LEVEL SECURITY;
"""
CLAIM = "lethe_claim(text, text, double precision, uuid)"


def upgrade() -> None:
    """Make the tables of their tenant alone, let control claim purge jobs and see who needs a blob, and open the jobs that are missing."""
    run(TABLES)
    for table, writers in WRITERS.items():
        run(
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
            f"CREATE POLICY own ON {table} TO lethe_owner, {SERVING} USING ({OWN}) WITH CHECK ({OWN});"
            f"GRANT SELECT ON {table} TO {SERVING};" + "".join(f"GRANT {rights} ON {table} TO {role};" for role, rights in writers.items())
        )
    run("GRANT INSERT ON job_step TO lethe_control")
    run("GRANT SELECT ON tombstone TO lethe_worker, lethe_control; GRANT INSERT ON tombstone TO lethe_control")
    for table in IMMUTABLE:
        run(
            f"CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION lethe_immutable();"
            f"CREATE TRIGGER immutable_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION lethe_immutable()"
        )
    for table in ("tombstone", *WRITERS):
        run(f"ALTER TABLE {table} OWNER TO lethe_owner")
    run("CREATE POLICY control_select ON object_ref FOR SELECT TO lethe_control USING (true)")
    run(f"SET ROLE lethe_scheduler; GRANT EXECUTE ON FUNCTION {CLAIM} TO lethe_control; RESET ROLE")
    run(QUARANTINED)


def downgrade() -> None:
    """Take it back. What was destroyed stays destroyed; its certificates and every hold are lost."""
    run(WITHOUT_PURGES)
    run(f"SET ROLE lethe_scheduler; REVOKE EXECUTE ON FUNCTION {CLAIM} FROM lethe_control; RESET ROLE")
    run("REVOKE INSERT ON job_step FROM lethe_control")
    run("DROP POLICY control_select ON object_ref")
    run("DROP INDEX uq_job_open_purge; DROP INDEX ix_model_file_tenant_id_digest; ALTER TABLE model_version DROP COLUMN quarantined_for")
    run(
        "ALTER TABLE deletion_request DROP COLUMN extended_at, DROP COLUMN extended_by, DROP COLUMN extension_reason, DROP COLUMN complaint_told,"
        " DROP COLUMN court_told"
    )
    run(f"DROP TABLE {', '.join(('tombstone', *WRITERS))} CASCADE")


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
