"""Destruction of superseded dataset versions and of candidates that were not published, with certificates as those of model versions have.

Dataset versions that records were erased from before this migration are retired by it, and get the purge job that an erasure opens from now on; the
days of the policy count from the migration. Files of jobs that ended without publishing are read from what their steps put out.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

SERVING = "lethe_gateway, lethe_worker, lethe_control"
OWN = "tenant_id = current_setting('app.tenant')::uuid"

TABLES = """
CREATE TABLE job_file (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  digest TEXT NOT NULL,
  path TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_job_file PRIMARY KEY (tenant_id, job_id, digest, path),
  CONSTRAINT fk_job_file_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);
ALTER TABLE dataset_version ADD COLUMN destroy_by TIMESTAMP WITH TIME ZONE;
ALTER TABLE job ADD COLUMN candidate_job_id UUID;
ALTER TABLE job ADD CONSTRAINT fk_job_tenant_id_candidate_job_id FOREIGN KEY(tenant_id, candidate_job_id)
  REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;
CREATE UNIQUE INDEX uq_job_open_dataset_purge ON job (tenant_id, dataset_version_id) WHERE kind = 'purge' AND finished_at IS NULL;
CREATE UNIQUE INDEX uq_job_open_candidate_purge ON job (tenant_id, candidate_job_id) WHERE kind = 'purge' AND finished_at IS NULL;
CREATE INDEX ix_object_deleted ON object (size_bytes) WHERE state = 'deleted';
ALTER TABLE destruction_certificate ALTER COLUMN version_id DROP NOT NULL;
ALTER TABLE destruction_certificate ADD COLUMN dataset_version_id UUID;
ALTER TABLE destruction_certificate ADD COLUMN candidate_job_id UUID;
ALTER TABLE destruction_certificate ADD CONSTRAINT uq_destruction_certificate_tenant_id_dataset_version_id UNIQUE (tenant_id, dataset_version_id);
ALTER TABLE destruction_certificate ADD CONSTRAINT uq_destruction_certificate_tenant_id_candidate_job_id UNIQUE (tenant_id, candidate_job_id);
ALTER TABLE destruction_certificate ADD CONSTRAINT fk_destruction_certificate_tenant_id_dataset_version_id FOREIGN KEY(tenant_id, dataset_version_id)
  REFERENCES dataset_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE destruction_certificate ADD CONSTRAINT fk_destruction_certificate_tenant_id_candidate_job_id FOREIGN KEY(tenant_id, candidate_job_id)
  REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE destruction_certificate ADD CONSTRAINT ck_destruction_certificate_one_thing
  CHECK (num_nonnulls(version_id, dataset_version_id, candidate_job_id) = 1);
"""
# their rows are of tenants, and the owner is under row security as everybody is
OF_TENANTS = ("job", "job_attempt", "job_step", "policy", "dataset_version", "dataset_record", "destruction_certificate")
SUPERSEDED = """
CREATE TEMPORARY TABLE superseded ON COMMIT DROP AS
SELECT DISTINCT ON (v.id) v.id, v.tenant_id, j.model_id,
       CASE WHEN p.flags ->> 'purge_superseded' = 'never' THEN NULL WHEN p.flags ->> 'purge_superseded' LIKE 'after:%'
            THEN clock_timestamp() + make_interval(days => substr(p.flags ->> 'purge_superseded', 7)::int) ELSE clock_timestamp() END AS destroy_by
  FROM dataset_version v JOIN dataset_record r ON r.tenant_id = v.tenant_id AND r.dataset_id = v.dataset_id AND r.present @> v.number
  JOIN dataset_version e ON e.tenant_id = v.tenant_id AND e.dataset_id = v.dataset_id AND e.number = upper(r.present)
  JOIN job j ON j.tenant_id = e.tenant_id AND j.id = e.produced_by_job_id LEFT JOIN policy p ON p.tenant_id = j.tenant_id AND p.id = j.policy_id
 WHERE v.status = 'ready' AND NOT upper_inf(r.present) ORDER BY v.id, e.number;
UPDATE dataset_version v SET status = 'retired', destroy_by = s.destroy_by FROM superseded s WHERE s.id = v.id;
INSERT INTO job (id, tenant_id, kind, state, model_id, dataset_version_id, params, seeds, queue, run_after, due_at, max_crashes, created_by)
SELECT gen_random_uuid(), s.tenant_id, 'purge', 'queued', s.model_id, s.id, '{"reason": "superseded", "by": "policy"}', '{}', 'purge', s.destroy_by,
       s.destroy_by, 100, 'migration' FROM superseded s WHERE s.destroy_by IS NOT NULL;
INSERT INTO job_file (tenant_id, job_id, digest, path, size_bytes)
SELECT j.tenant_id, j.id, x.file ->> 'digest', x.path, (x.file ->> 'size_bytes')::bigint
  FROM job j CROSS JOIN LATERAL (VALUES
       (j.step_state -> 'steps' -> 'unlearn' -> 'candidate', 'candidate.safetensors'),
       (j.step_state -> 'steps' -> 'evaluate' -> 'readings', 'readings.json'),
       (j.step_state -> 'steps' -> 'materialize' -> 'next', 'next_records.parquet')) AS x(file, path)
 WHERE j.kind = 'unlearn' AND j.state IN ('failed', 'cancelled') AND x.file ? 'digest' ON CONFLICT DO NOTHING;
"""
WITHOUT = """
ALTER TABLE destruction_certificate DISABLE TRIGGER immutable;
DELETE FROM destruction_certificate WHERE version_id IS NULL;
ALTER TABLE destruction_certificate ENABLE TRIGGER immutable;
CREATE TEMPORARY TABLE gone ON COMMIT DROP AS SELECT id FROM job WHERE kind = 'purge' AND base_version_id IS NULL;
DELETE FROM job_attempt a USING gone g WHERE a.job_id = g.id;
DELETE FROM job_step s USING gone g WHERE s.job_id = g.id;
DELETE FROM job j USING gone g WHERE j.id = g.id;
UPDATE dataset_version SET status = 'ready' WHERE status = 'retired';
"""


def upgrade() -> None:
    """Make the table of files for its tenant alone, widen certificates and purge jobs, and retire what records were erased from before."""
    unforced(TABLES + SUPERSEDED)
    run(
        "ALTER TABLE job_file ENABLE ROW LEVEL SECURITY; ALTER TABLE job_file FORCE ROW LEVEL SECURITY;"
        f"CREATE POLICY own ON job_file TO lethe_owner, {SERVING} USING ({OWN}) WITH CHECK ({OWN});"
        f"GRANT SELECT ON job_file TO {SERVING}; GRANT INSERT ON job_file TO lethe_worker; ALTER TABLE job_file OWNER TO lethe_owner"
    )


def downgrade() -> None:
    """Take it back. What was destroyed stays destroyed; its certificates are lost, and what was retired may be read again."""
    unforced(WITHOUT)
    run(
        "ALTER TABLE destruction_certificate DROP COLUMN candidate_job_id, DROP COLUMN dataset_version_id, ALTER COLUMN version_id SET NOT NULL;"
        "DROP INDEX ix_object_deleted; DROP INDEX uq_job_open_candidate_purge; DROP INDEX uq_job_open_dataset_purge;"
        "ALTER TABLE job DROP COLUMN candidate_job_id; ALTER TABLE dataset_version DROP COLUMN destroy_by; DROP TABLE job_file"
    )


def unforced(sql: str) -> None:
    """Run `sql` over the rows of every tenant, as the owner of the tables may while row security is not forced on it."""
    run("".join(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY;" for table in OF_TENANTS))
    run(sql + "SET CONSTRAINTS ALL IMMEDIATE;")
    run("".join(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY;" for table in OF_TENANTS))


def run(sql: str) -> None:
    """Send `sql` as it stands: colons and percent signs mean nothing here."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
