"""What the signer adds to requests and reports: signed receipts, revocations of its keys, and the evidence of reports signed anew after one.

A receipt is a compact JWS, made once the event of a request's receipt is below a signed head. A renewal is envelope and proof of a report under
a key that was not revoked; the report itself stands. An epoch says where the log went on, under another name, after the database was put back; to
keep the journal of erasures the signer reads keyed digests and ids of the ledger.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SIGNER = "lethe_signer"
READERS = "lethe_gateway, lethe_worker, lethe_control"
OWN = "tenant_id = current_setting('app.tenant')::uuid"

TABLES = """
CREATE TABLE receipt (
  event_id BIGINT NOT NULL,
  tenant_id UUID NOT NULL,
  leaf_seq BIGINT NOT NULL,
  head_size BIGINT NOT NULL,
  jws TEXT NOT NULL,
  signed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_receipt PRIMARY KEY (event_id),
  CONSTRAINT uq_receipt_leaf_seq UNIQUE (leaf_seq),
  CONSTRAINT fk_receipt_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id),
  CONSTRAINT fk_receipt_head_size FOREIGN KEY(head_size) REFERENCES tree_head (size)
);
CREATE TABLE key_revocation (
  key_id TEXT NOT NULL,
  event_id BIGINT NOT NULL,
  salt BYTEA NOT NULL,
  body JSONB NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_key_revocation PRIMARY KEY (key_id),
  CONSTRAINT fk_key_revocation_key_id FOREIGN KEY(key_id) REFERENCES signing_key (key_id),
  CONSTRAINT fk_key_revocation_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id)
);
CREATE TABLE report_renewal (
  report_id UUID NOT NULL,
  key_id TEXT NOT NULL,
  tenant_id UUID NOT NULL,
  envelope JSONB NOT NULL,
  tlog_proof TEXT NOT NULL,
  signed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_report_renewal PRIMARY KEY (report_id, key_id),
  CONSTRAINT fk_report_renewal_tenant_id_report_id FOREIGN KEY(tenant_id, report_id) REFERENCES audit_report (tenant_id, id)
    DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_report_renewal_key_id FOREIGN KEY(key_id) REFERENCES signing_key (key_id)
);
CREATE TABLE log_epoch (
  number INTEGER NOT NULL,
  origin TEXT NOT NULL,
  after_size BIGINT NOT NULL,
  after_note TEXT NOT NULL,
  held_size BIGINT NOT NULL,
  replayed INTEGER NOT NULL,
  told_event BIGINT,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_log_epoch PRIMARY KEY (number),
  CONSTRAINT uq_log_epoch_origin UNIQUE (origin),
  CONSTRAINT fk_log_epoch_told_event FOREIGN KEY(told_event) REFERENCES audit_event (id)
);
CREATE INDEX ix_audit_event_received ON audit_event (seq) WHERE type = 'request.received' AND seq IS NOT NULL;
"""
GUARD = """
CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION lethe_immutable();
CREATE TRIGGER immutable_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION lethe_immutable();
"""


def upgrade() -> None:
    """Make the tables: each tenant reads its own rows, revocations are of no tenant, and the signer alone writes any."""
    run(TABLES)
    for table in ("receipt", "report_renewal"):
        run(
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
            f"CREATE POLICY own ON {table} TO lethe_owner, {READERS} USING ({OWN}) WITH CHECK ({OWN});"
            f"CREATE POLICY signer_select ON {table} FOR SELECT TO {SIGNER} USING (true);"
            f"CREATE POLICY signer_insert ON {table} FOR INSERT TO {SIGNER} WITH CHECK (true)"
        )
    run(
        f"GRANT SELECT ON log_epoch TO {SIGNER}, {READERS}; GRANT UPDATE (told_event) ON log_epoch TO {SIGNER}; ALTER TABLE log_epoch OWNER TO lethe_owner;"
        f"GRANT SELECT (tenant_id, model_id, dataset_id, record_hmac, target_id, version_id) ON forget_ledger TO {SIGNER};"
        f"GRANT SELECT (tenant_id, id, request_id) ON target TO {SIGNER};"
        f"CREATE POLICY signer_select ON forget_ledger FOR SELECT TO {SIGNER} USING (true);"
        f"CREATE POLICY signer_select ON target FOR SELECT TO {SIGNER} USING (true)"
    )
    for table in ("receipt", "report_renewal", "key_revocation"):
        run(GUARD.format(table=table))
        run(f"GRANT SELECT ON {table} TO {READERS}, {SIGNER}; GRANT INSERT ON {table} TO {SIGNER}; ALTER TABLE {table} OWNER TO lethe_owner")


def downgrade() -> None:
    """Drop what was made; receipts are signed anew after the next upgrade, with a later head. The events of revocations stay in the log."""
    for table in ("forget_ledger", "target"):
        run(f"DROP POLICY signer_select ON {table}; REVOKE ALL ON {table} FROM {SIGNER}")
    run("DROP TABLE log_epoch; DROP TABLE report_renewal; DROP TABLE key_revocation; DROP TABLE receipt; DROP INDEX ix_audit_event_received")


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
