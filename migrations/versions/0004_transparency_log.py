"""The audit log becomes a Merkle tree: leaves, nodes, signed heads, the signing keys, and the envelope of a report.

The role lethe_signer sequences and signs. The service still writes events and reports, now without the columns that are the signer's to set.
A report of before gets its envelope from the signer too: its event is found by the digest it committed to.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SIGNER = "lethe_signer"
READERS = ("lethe_gateway", "lethe_worker", "lethe_control")
NEW_TABLES = ("audit_leaf", "tree_node", "tree_head", "cosignature", "signing_key", "signer_state")
IMMUTABLE = ("audit_leaf", "tree_node", "tree_head", "cosignature", "signing_key")

TABLES = """
CREATE TABLE audit_leaf (
  seq BIGINT NOT NULL,
  event_id BIGINT NOT NULL,
  leaf_hash BYTEA NOT NULL,
  CONSTRAINT pk_audit_leaf PRIMARY KEY (seq),
  CONSTRAINT uq_audit_leaf_event_id UNIQUE (event_id),
  CONSTRAINT fk_audit_leaf_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id)
);
CREATE TABLE tree_node (
  level INTEGER NOT NULL,
  index BIGINT NOT NULL,
  hash BYTEA NOT NULL,
  CONSTRAINT pk_tree_node PRIMARY KEY (level, index)
);
CREATE TABLE tree_head (
  size BIGINT NOT NULL,
  root BYTEA NOT NULL,
  note TEXT NOT NULL,
  signed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_tree_head PRIMARY KEY (size)
);
CREATE TABLE cosignature (
  size BIGINT NOT NULL,
  witness TEXT NOT NULL,
  line TEXT NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_cosignature PRIMARY KEY (size, witness),
  CONSTRAINT fk_cosignature_size FOREIGN KEY(size) REFERENCES tree_head (size)
);
CREATE TABLE signing_key (
  key_id TEXT NOT NULL,
  name TEXT NOT NULL,
  public_key BYTEA NOT NULL,
  valid_from TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  valid_to TIMESTAMP WITH TIME ZONE,
  event_id BIGINT NOT NULL,
  salt BYTEA NOT NULL,
  body JSONB NOT NULL,
  CONSTRAINT pk_signing_key PRIMARY KEY (key_id),
  CONSTRAINT fk_signing_key_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id)
);
CREATE UNIQUE INDEX uq_signing_key_current ON signing_key ((valid_to IS NULL)) WHERE valid_to IS NULL;
CREATE TABLE signer_state (
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_signer_state PRIMARY KEY (name)
);
ALTER TABLE audit_event ADD COLUMN seq BIGINT;
ALTER TABLE audit_event ALTER COLUMN tenant_id DROP NOT NULL;
CREATE UNIQUE INDEX uq_audit_event_seq ON audit_event (seq) WHERE seq IS NOT NULL;
CREATE INDEX ix_audit_event_waiting ON audit_event (id) WHERE seq IS NULL;
ALTER TABLE audit_report ADD COLUMN event_id BIGINT;
ALTER TABLE audit_report ADD COLUMN envelope JSONB;
ALTER TABLE audit_report ADD COLUMN tlog_proof TEXT;
ALTER TABLE audit_report ADD CONSTRAINT ck_audit_report_signed CHECK ((envelope IS NULL) = (tlog_proof IS NULL));
CREATE INDEX ix_audit_report_unsigned ON audit_report (event_id) WHERE envelope IS NULL;
"""
FIND_EVENTS = """
ALTER TABLE audit_report NO FORCE ROW LEVEL SECURITY; ALTER TABLE audit_payload NO FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_event NO FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_report DISABLE TRIGGER immutable;
UPDATE audit_report r SET event_id = p.event_id FROM audit_payload p JOIN audit_event e ON e.id = p.event_id
 WHERE e.type = 'report.stored' AND p.object_id = r.request_id AND p.body ->> 'digest' = r.digest;
ALTER TABLE audit_report ENABLE TRIGGER immutable;
ALTER TABLE audit_report ADD CONSTRAINT fk_audit_report_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id);
ALTER TABLE audit_report FORCE ROW LEVEL SECURITY; ALTER TABLE audit_payload FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_event FORCE ROW LEVEL SECURITY;
"""
ONCE = """
CREATE OR REPLACE FUNCTION lethe_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  once text[];  -- columns that are set once, together
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF TG_TABLE_NAME = 'audit_event' THEN  -- column by column: the sequencer passes here thousands of times a second
      IF OLD.seq IS NULL AND NEW.seq IS NOT NULL AND NEW.id = OLD.id AND NEW.tenant_id IS NOT DISTINCT FROM OLD.tenant_id
         AND NEW.at = OLD.at AND NEW.type = OLD.type AND NEW.commitment = OLD.commitment THEN
        RETURN NEW;
      END IF;
    ELSE
      once := CASE TG_TABLE_NAME WHEN 'alias_history' THEN ARRAY['to_at'] WHEN 'audit_report' THEN ARRAY['envelope', 'tlog_proof']
                                 WHEN 'signing_key' THEN ARRAY['valid_to'] ELSE ARRAY[]::text[] END;
      IF cardinality(once) > 0 AND to_jsonb(NEW) - once = to_jsonb(OLD) - once AND NOT EXISTS (
           SELECT 1 FROM unnest(once) AS c (name) WHERE to_jsonb(OLD) ->> c.name IS NOT NULL OR to_jsonb(NEW) ->> c.name IS NULL) THEN
        RETURN NEW;
      END IF;
    END IF;
  END IF;
  RAISE EXCEPTION 'rows of % are immutable', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
"""
AS_BEFORE = """
CREATE OR REPLACE FUNCTION lethe_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'alias_history' THEN
    IF OLD.to_at IS NULL AND NEW.to_at IS NOT NULL AND to_jsonb(NEW) - 'to_at' = to_jsonb(OLD) - 'to_at' THEN
      RETURN NEW;  -- to_at is set once
    END IF;
  END IF;
  RAISE EXCEPTION 'rows of % are immutable', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;
"""
RIGHTS = f"""
GRANT USAGE ON SCHEMA public TO {SIGNER};
GRANT SELECT ON audit_event, audit_payload, audit_report, {", ".join(NEW_TABLES)}, alembic_version TO {SIGNER};
GRANT INSERT ON audit_event, {", ".join(NEW_TABLES)}, outbox TO {SIGNER};
GRANT UPDATE (seq) ON audit_event TO {SIGNER};
GRANT UPDATE (envelope, tlog_proof) ON audit_report TO {SIGNER};
GRANT UPDATE (valid_to) ON signing_key TO {SIGNER};
GRANT UPDATE (state, detail, seen_at) ON signer_state TO {SIGNER};
GRANT SELECT ON {", ".join(NEW_TABLES)} TO {", ".join(READERS)};
REVOKE INSERT ON audit_event FROM {", ".join(READERS)};
GRANT INSERT (tenant_id, at, type, commitment) ON audit_event TO {", ".join(READERS)};
REVOKE INSERT ON audit_report FROM lethe_control;
GRANT INSERT (id, tenant_id, created_at, request_id, revision, digest, statement, event_id) ON audit_report TO lethe_control;
"""
POLICIES = f"""
CREATE POLICY signer_select ON audit_event FOR SELECT TO {SIGNER} USING (true);
CREATE POLICY signer_update ON audit_event FOR UPDATE TO {SIGNER} USING (true) WITH CHECK (true);
CREATE POLICY signer_insert ON audit_event FOR INSERT TO {SIGNER} WITH CHECK (tenant_id IS NULL);
CREATE POLICY signer_select ON audit_payload FOR SELECT TO {SIGNER} USING (true);
CREATE POLICY signer_select ON audit_report FOR SELECT TO {SIGNER} USING (true);
CREATE POLICY signer_update ON audit_report FOR UPDATE TO {SIGNER} USING (true) WITH CHECK (true);
CREATE POLICY signer_insert ON outbox FOR INSERT TO {SIGNER} WITH CHECK (topic = 'request.advance');
"""


def upgrade() -> None:
    """Make the tables, give the signer its rights, and take from the service what is now the signer's."""
    run(
        f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{SIGNER}') THEN"
        f" CREATE ROLE {SIGNER} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE; END IF;"
        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    run(TABLES)
    run(FIND_EVENTS)
    run(ONCE)
    for table in IMMUTABLE:
        run(
            f"CREATE TRIGGER immutable BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION lethe_immutable();"
            f"CREATE TRIGGER immutable_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION lethe_immutable()"
        )
    for table in NEW_TABLES:
        run(f"ALTER TABLE {table} OWNER TO lethe_owner")
    run(RIGHTS)
    run(POLICIES)


def downgrade() -> None:
    """Take all of it back but the role, which belongs to the whole server. Events of keys, which are of no tenant, go with the tree."""
    for line in POLICIES.strip().splitlines():
        name, table = line.split()[2], line.split()[4]
        run(f"DROP POLICY {name} ON {table}")
    run(f"REVOKE ALL ON audit_event, audit_payload, audit_report, outbox, alembic_version FROM {SIGNER}")
    run(f"DROP TABLE {', '.join(reversed(NEW_TABLES))} CASCADE")
    run(AS_BEFORE)
    run("ALTER TABLE audit_report DROP COLUMN event_id, DROP COLUMN envelope, DROP COLUMN tlog_proof")
    run("ALTER TABLE audit_event DROP COLUMN seq")
    run("ALTER TABLE audit_event DISABLE TRIGGER immutable; ALTER TABLE audit_event NO FORCE ROW LEVEL SECURITY")
    run("DELETE FROM audit_event WHERE tenant_id IS NULL")
    run("ALTER TABLE audit_event ENABLE TRIGGER immutable; ALTER TABLE audit_event FORCE ROW LEVEL SECURITY")
    run("ALTER TABLE audit_event ALTER COLUMN tenant_id SET NOT NULL")
    run(f"GRANT INSERT ON audit_event TO {', '.join(READERS)}; GRANT INSERT ON audit_report TO lethe_control")
    run(f"REVOKE USAGE ON SCHEMA public FROM {SIGNER}")


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
