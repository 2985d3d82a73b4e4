CREATE TABLE tenant (
  id UUID NOT NULL,
  name TEXT NOT NULL,
  time_zone TEXT DEFAULT 'UTC' NOT NULL,
  holiday_calendar TEXT,
  region TEXT,
  key_wrapped BYTEA NOT NULL,
  key_id INTEGER DEFAULT '1' NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_tenant PRIMARY KEY (id),
  CONSTRAINT uq_tenant_name UNIQUE (name)
);

CREATE TABLE api_key (
  client TEXT NOT NULL,
  prefix TEXT NOT NULL,
  hash BYTEA NOT NULL,
  scopes TEXT[] NOT NULL,
  expires_at TIMESTAMP WITH TIME ZONE,
  last_used_at TIMESTAMP WITH TIME ZONE,
  revoked_at TIMESTAMP WITH TIME ZONE,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_api_key PRIMARY KEY (id),
  CONSTRAINT uq_api_key_prefix UNIQUE (prefix),
  CONSTRAINT uq_api_key_tenant_id_id UNIQUE (tenant_id, id)
);

CREATE TABLE policy (
  key TEXT NOT NULL,
  version INTEGER NOT NULL,
  regulation TEXT NOT NULL,
  ladder JSONB NOT NULL,
  verification JSONB NOT NULL,
  limits JSONB NOT NULL,
  flags JSONB NOT NULL,
  retention JSONB NOT NULL,
  batch_window INTERVAL NOT NULL,
  min_subjects INTEGER DEFAULT '1' NOT NULL,
  max_batch INTEGER DEFAULT '256' NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_policy PRIMARY KEY (id),
  CONSTRAINT uq_policy_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_policy_tenant_id_key_version UNIQUE (tenant_id, key, version)
);

CREATE TABLE catalogue_entry (
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  version TEXT NOT NULL,
  guarantee TEXT,
  schema JSONB NOT NULL,
  needs TEXT[] NOT NULL,
  facts JSONB NOT NULL,
  error TEXT,
  queue TEXT NOT NULL,
  published_by TEXT NOT NULL,
  seen_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_catalogue_entry PRIMARY KEY (kind, name, version),
  CONSTRAINT ck_catalogue_entry_kind CHECK (kind IN ('method', 'metric', 'attack', 'task', 'architecture', 'dataset_adapter'))
);

CREATE TABLE dataset (
  name TEXT NOT NULL,
  adapter TEXT NOT NULL,
  adapter_params JSONB NOT NULL,
  label_column TEXT,
  subject_types TEXT[] NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_dataset PRIMARY KEY (id),
  CONSTRAINT uq_dataset_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_dataset_tenant_id_name UNIQUE (tenant_id, name)
);

CREATE TABLE model (
  name TEXT NOT NULL,
  task TEXT NOT NULL,
  architecture TEXT NOT NULL,
  architecture_params JSONB NOT NULL,
  current_version_id UUID,
  etag INTEGER DEFAULT '1' NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_model PRIMARY KEY (id),
  CONSTRAINT uq_model_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_model_tenant_id_name UNIQUE (tenant_id, name)
);

CREATE TABLE model_version (
  model_id UUID NOT NULL,
  number INTEGER NOT NULL,
  parent_id UUID,
  job_id UUID,
  status TEXT NOT NULL,
  guarantee TEXT,
  fresh_start BOOLEAN NOT NULL,
  recipe JSONB,
  manifest JSONB,
  manifest_digest TEXT,
  code_digest TEXT,
  image_digest TEXT,
  seeds JSONB,
  error JSONB,
  destroy_by TIMESTAMP WITH TIME ZONE,
  destroyed_at TIMESTAMP WITH TIME ZONE,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_model_version PRIMARY KEY (id),
  CONSTRAINT uq_model_version_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_model_version_tenant_id_model_id_number UNIQUE (tenant_id, model_id, number),
  CONSTRAINT uq_model_version_tenant_id_job_id UNIQUE (tenant_id, job_id),
  CONSTRAINT ck_model_version_status CHECK (status IN ('pending', 'checking', 'ready', 'failed', 'quarantined', 'destroyed')),
  CONSTRAINT ck_model_version_destroyed CHECK ((status='destroyed') = (destroyed_at IS NOT NULL))
);

CREATE TABLE object (
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  state TEXT DEFAULT 'live' NOT NULL,
  first_seen TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  deleted_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_object PRIMARY KEY (digest),
  CONSTRAINT ck_object_state CHECK (state IN ('live', 'deleting', 'deleted'))
);

CREATE TABLE idempotency (
  tenant_id UUID NOT NULL,
  route TEXT NOT NULL,
  key TEXT NOT NULL,
  fingerprint BYTEA NOT NULL,
  status INTEGER NOT NULL,
  headers JSONB NOT NULL,
  body JSONB NOT NULL,
  expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_idempotency PRIMARY KEY (tenant_id, route, key)
);

CREATE TABLE outbox (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  tenant_id UUID NOT NULL,
  topic TEXT NOT NULL,
  ref UUID NOT NULL,
  available_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  attempts INTEGER DEFAULT '0' NOT NULL,
  done_at TIMESTAMP WITH TIME ZONE,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_outbox PRIMARY KEY (id)
);

CREATE INDEX ix_outbox_open ON outbox (available_at, id) WHERE done_at IS NULL;

CREATE TABLE dataset_version (
  dataset_id UUID NOT NULL,
  number INTEGER NOT NULL,
  parent_id UUID,
  status TEXT NOT NULL,
  manifest_digest TEXT,
  records BIGINT,
  produced_by_job_id UUID,
  error JSONB,
  purged_at TIMESTAMP WITH TIME ZONE,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_dataset_version PRIMARY KEY (id),
  CONSTRAINT uq_dataset_version_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_dataset_version_tenant_id_dataset_id_number UNIQUE (tenant_id, dataset_id, number),
  CONSTRAINT fk_dataset_version_tenant_id_dataset_id FOREIGN KEY(tenant_id, dataset_id) REFERENCES dataset (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_dataset_version_tenant_id_parent_id FOREIGN KEY(tenant_id, parent_id) REFERENCES dataset_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_dataset_version_status CHECK (status IN ('pending', 'checking', 'ready', 'failed', 'retired', 'purged')),
  CONSTRAINT ck_dataset_version_purged CHECK ((status='purged') = (purged_at IS NOT NULL))
);

CREATE TABLE dataset_record (
  tenant_id UUID NOT NULL,
  dataset_id UUID NOT NULL,
  record_id TEXT NOT NULL,
  label TEXT,
  present INT4RANGE NOT NULL,
  CONSTRAINT pk_dataset_record PRIMARY KEY (tenant_id, dataset_id, record_id),
  CONSTRAINT fk_dataset_record_tenant_id_dataset_id FOREIGN KEY(tenant_id, dataset_id) REFERENCES dataset (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE INDEX ix_dataset_record_tenant_id_label_dataset_id ON dataset_record (tenant_id, label, dataset_id);

CREATE TABLE model_file (
  tenant_id UUID NOT NULL,
  version_id UUID NOT NULL,
  path TEXT NOT NULL,
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  media_type TEXT NOT NULL,
  CONSTRAINT pk_model_file PRIMARY KEY (tenant_id, version_id, path),
  CONSTRAINT fk_model_file_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES model_version (tenant_id, id) ON DELETE CASCADE,
  CONSTRAINT ck_model_file_size CHECK (size_bytes >= 0)
);

CREATE TABLE model_alias (
  tenant_id UUID NOT NULL,
  model_id UUID NOT NULL,
  alias TEXT NOT NULL,
  version_id UUID NOT NULL,
  etag INTEGER DEFAULT '1' NOT NULL,
  CONSTRAINT pk_model_alias PRIMARY KEY (tenant_id, model_id, alias),
  CONSTRAINT fk_model_alias_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_model_alias_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE alias_history (
  model_id UUID NOT NULL,
  alias TEXT NOT NULL,
  version_id UUID NOT NULL,
  from_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  to_at TIMESTAMP WITH TIME ZONE,
  by TEXT NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_alias_history PRIMARY KEY (id),
  CONSTRAINT fk_alias_history_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE INDEX ix_alias_history_tenant_id_model_id_alias ON alias_history (tenant_id, model_id, alias);

CREATE TABLE object_ref (
  tenant_id UUID NOT NULL,
  digest TEXT NOT NULL,
  owner_kind TEXT NOT NULL,
  owner_id UUID NOT NULL,
  CONSTRAINT pk_object_ref PRIMARY KEY (tenant_id, digest, owner_kind, owner_id),
  CONSTRAINT fk_object_ref_digest FOREIGN KEY(digest) REFERENCES object (digest)
);

CREATE TABLE object_pin (
  digest TEXT NOT NULL,
  job_id UUID NOT NULL,
  until TIMESTAMP WITH TIME ZONE NOT NULL,
  CONSTRAINT pk_object_pin PRIMARY KEY (digest, job_id),
  CONSTRAINT fk_object_pin_digest FOREIGN KEY(digest) REFERENCES object (digest)
);

CREATE TABLE deletion_request (
  external_id TEXT,
  regulation TEXT NOT NULL,
  manner TEXT,
  ground TEXT,
  exemption TEXT,
  state TEXT NOT NULL,
  resume_state TEXT,
  policy_id UUID NOT NULL,
  method TEXT DEFAULT 'auto' NOT NULL,
  params JSONB NOT NULL,
  duplicate_of UUID,
  scope JSONB NOT NULL,
  scope_hmac BYTEA,
  body_digest BYTEA NOT NULL,
  identity JSONB NOT NULL,
  details JSONB NOT NULL,
  received_at TIMESTAMP WITH TIME ZONE NOT NULL,
  acknowledged_at TIMESTAMP WITH TIME ZONE,
  due_at TIMESTAMP WITH TIME ZONE NOT NULL,
  original_due_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ack_due_at TIMESTAMP WITH TIME ZONE,
  decided_at TIMESTAMP WITH TIME ZONE,
  decided_by TEXT,
  decision_note TEXT,
  created_by TEXT NOT NULL,
  attention JSONB,
  error JSONB,
  closed_at TIMESTAMP WITH TIME ZONE,
  version INTEGER DEFAULT '1' NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_deletion_request PRIMARY KEY (id),
  CONSTRAINT uq_deletion_request_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT fk_deletion_request_tenant_id_policy_id FOREIGN KEY(tenant_id, policy_id) REFERENCES policy (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_deletion_request_tenant_id_duplicate_of FOREIGN KEY(tenant_id, duplicate_of) REFERENCES deletion_request (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_deletion_request_state CHECK (state IN ('received', 'identity_pending', 'pending_review', 'approved', 'on_hold', 'in_progress', 'awaiting_release', 'needs_attention', 'completed', 'partially_completed', 'denied', 'duplicate', 'cancelled', 'expired')),
  CONSTRAINT ck_deletion_request_due CHECK (due_at > received_at),
  CONSTRAINT ck_deletion_request_decided CHECK (state <> 'denied' OR decided_at IS NOT NULL),
  CONSTRAINT ck_deletion_request_closed CHECK ((closed_at IS NULL) = (state NOT IN ('completed', 'partially_completed', 'denied', 'duplicate', 'cancelled', 'expired'))),
  CONSTRAINT ck_deletion_request_held CHECK ((state = 'on_hold') = (resume_state IS NOT NULL))
);

CREATE UNIQUE INDEX uq_deletion_request_external_id ON deletion_request (tenant_id, external_id) WHERE external_id IS NOT NULL;

CREATE INDEX ix_deletion_request_tenant_id_state_due_at ON deletion_request (tenant_id, state, due_at);

CREATE UNIQUE INDEX uq_deletion_request_open_scope ON deletion_request (tenant_id, scope_hmac) WHERE closed_at IS NULL;

CREATE INDEX ix_deletion_request_newest ON deletion_request (tenant_id, created_at DESC, id DESC);

CREATE INDEX ix_deletion_request_due ON deletion_request (due_at) WHERE closed_at IS NULL;

CREATE TABLE audit_event (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  tenant_id UUID NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  type TEXT NOT NULL,
  commitment BYTEA NOT NULL,
  CONSTRAINT pk_audit_event PRIMARY KEY (id),
  CONSTRAINT fk_audit_event_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id)
);

CREATE INDEX ix_audit_event_tenant ON audit_event (tenant_id, id);

CREATE TABLE dataset_file (
  tenant_id UUID NOT NULL,
  version_id UUID NOT NULL,
  path TEXT NOT NULL,
  digest TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  CONSTRAINT pk_dataset_file PRIMARY KEY (tenant_id, version_id, path),
  CONSTRAINT fk_dataset_file_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES dataset_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_dataset_file_size CHECK (size_bytes >= 0)
);

CREATE TABLE subject_record (
  tenant_id UUID NOT NULL,
  subject_hmac BYTEA NOT NULL,
  dataset_id UUID NOT NULL,
  record_id TEXT NOT NULL,
  key_id INTEGER NOT NULL,
  CONSTRAINT pk_subject_record PRIMARY KEY (tenant_id, subject_hmac, dataset_id, record_id),
  CONSTRAINT fk_subject_record_tenant_id_dataset_id_record_id FOREIGN KEY(tenant_id, dataset_id, record_id) REFERENCES dataset_record (tenant_id, dataset_id, record_id) ON DELETE CASCADE
);

CREATE INDEX ix_subject_record_tenant_id_dataset_id_record_id ON subject_record (tenant_id, dataset_id, record_id);

CREATE TABLE training_input (
  tenant_id UUID NOT NULL,
  model_version_id UUID NOT NULL,
  dataset_version_id UUID NOT NULL,
  role TEXT NOT NULL,
  CONSTRAINT pk_training_input PRIMARY KEY (tenant_id, model_version_id, dataset_version_id, role),
  CONSTRAINT fk_training_input_tenant_id_model_version_id FOREIGN KEY(tenant_id, model_version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_training_input_tenant_id_dataset_version_id FOREIGN KEY(tenant_id, dataset_version_id) REFERENCES dataset_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_training_input_role CHECK (role IN ('train', 'finetune', 'repair', 'reference'))
);

CREATE INDEX ix_training_input_tenant_id_dataset_version_id ON training_input (tenant_id, dataset_version_id);

CREATE TABLE target (
  request_id UUID NOT NULL,
  model_id UUID,
  base_version_id UUID,
  state TEXT NOT NULL,
  outcome TEXT,
  exemption TEXT,
  rung INTEGER DEFAULT '1' NOT NULL,
  records INTEGER NOT NULL,
  records_commitment TEXT NOT NULL,
  due_at TIMESTAMP WITH TIME ZONE NOT NULL,
  published_version_id UUID,
  queued_at TIMESTAMP WITH TIME ZONE,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_target PRIMARY KEY (id),
  CONSTRAINT uq_target_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_target_tenant_id_request_id_model_id UNIQUE (tenant_id, request_id, model_id),
  CONSTRAINT fk_target_tenant_id_request_id FOREIGN KEY(tenant_id, request_id) REFERENCES deletion_request (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_target_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_target_tenant_id_base_version_id FOREIGN KEY(tenant_id, base_version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_target_tenant_id_published_version_id FOREIGN KEY(tenant_id, published_version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_target_state CHECK (state IN ('located', 'queued', 'running', 'published', 'exempt', 'not_found', 'stuck', 'cancelled'))
);

CREATE INDEX ix_target_queued ON target (model_id, due_at) WHERE state = 'queued';

CREATE TABLE job (
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  attention TEXT,
  model_id UUID NOT NULL,
  base_version_id UUID,
  dataset_version_id UUID,
  policy_id UUID,
  method TEXT,
  method_version TEXT,
  params JSONB NOT NULL,
  choice JSONB,
  seeds JSONB NOT NULL,
  rung INTEGER DEFAULT '1' NOT NULL,
  round INTEGER DEFAULT '1' NOT NULL,
  escalated_from UUID,
  queue TEXT NOT NULL,
  priority INTEGER DEFAULT '100' NOT NULL,
  due_at TIMESTAMP WITH TIME ZONE,
  run_after TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  attempt INTEGER DEFAULT '0' NOT NULL,
  crashes INTEGER DEFAULT '0' NOT NULL,
  max_crashes INTEGER DEFAULT '3' NOT NULL,
  lease_epoch BIGINT DEFAULT '0' NOT NULL,
  lease_owner TEXT,
  lease_until TIMESTAMP WITH TIME ZONE,
  cancel_requested_at TIMESTAMP WITH TIME ZONE,
  step TEXT,
  step_state JSONB,
  progress JSONB,
  deadline_s INTEGER DEFAULT '86400' NOT NULL,
  result JSONB,
  error JSONB,
  created_by TEXT NOT NULL,
  finished_at TIMESTAMP WITH TIME ZONE,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_job PRIMARY KEY (id),
  CONSTRAINT uq_job_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT fk_job_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_job_tenant_id_base_version_id FOREIGN KEY(tenant_id, base_version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_job_tenant_id_dataset_version_id FOREIGN KEY(tenant_id, dataset_version_id) REFERENCES dataset_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_job_tenant_id_policy_id FOREIGN KEY(tenant_id, policy_id) REFERENCES policy (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_job_tenant_id_escalated_from FOREIGN KEY(tenant_id, escalated_from) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_job_kind CHECK (kind IN ('train', 'unlearn', 'reference', 'purge')),
  CONSTRAINT ck_job_state CHECK (state IN ('queued', 'running', 'verifying', 'publishing', 'needs_attention', 'succeeded', 'failed', 'cancelled')),
  CONSTRAINT ck_job_lease CHECK ((lease_owner IS NULL) = (lease_until IS NULL)),
  CONSTRAINT ck_job_leased CHECK ((state IN ('running','verifying','publishing')) = (lease_owner IS NOT NULL))
);

CREATE INDEX ix_job_newest ON job (tenant_id, created_at DESC, id DESC);

CREATE INDEX ix_job_due ON job (queue, priority, due_at, run_after) WHERE state = 'queued';

CREATE INDEX ix_job_leased ON job (lease_until) WHERE lease_until IS NOT NULL;

CREATE UNIQUE INDEX one_active ON job (model_id) WHERE kind IN ('train','unlearn') AND (state IN ('running','verifying','publishing') OR (state='needs_attention' AND attention='awaiting_release'));

CREATE TABLE audit_report (
  request_id UUID NOT NULL,
  revision INTEGER NOT NULL,
  digest TEXT NOT NULL,
  statement JSONB NOT NULL,
  id UUID NOT NULL,
  tenant_id UUID NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_audit_report PRIMARY KEY (id),
  CONSTRAINT uq_audit_report_tenant_id_id UNIQUE (tenant_id, id),
  CONSTRAINT uq_audit_report_tenant_id_request_id_revision UNIQUE (tenant_id, request_id, revision),
  CONSTRAINT fk_audit_report_tenant_id_request_id FOREIGN KEY(tenant_id, request_id) REFERENCES deletion_request (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE audit_payload (
  event_id BIGINT NOT NULL,
  tenant_id UUID NOT NULL,
  object_id UUID NOT NULL,
  salt BYTEA NOT NULL,
  body JSONB NOT NULL,
  CONSTRAINT pk_audit_payload PRIMARY KEY (event_id),
  CONSTRAINT fk_audit_payload_event_id FOREIGN KEY(event_id) REFERENCES audit_event (id)
);

CREATE INDEX ix_audit_payload_object ON audit_payload (tenant_id, object_id, event_id);

CREATE TABLE target_record (
  tenant_id UUID NOT NULL,
  target_id UUID NOT NULL,
  dataset_id UUID NOT NULL,
  record_hmac BYTEA NOT NULL,
  CONSTRAINT pk_target_record PRIMARY KEY (tenant_id, target_id, dataset_id, record_hmac),
  CONSTRAINT fk_target_record_tenant_id_target_id FOREIGN KEY(tenant_id, target_id) REFERENCES target (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE forget_ledger (
  tenant_id UUID NOT NULL,
  model_id UUID NOT NULL,
  dataset_id UUID NOT NULL,
  record_hmac BYTEA NOT NULL,
  target_id UUID NOT NULL,
  version_id UUID NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_forget_ledger PRIMARY KEY (tenant_id, model_id, dataset_id, record_hmac),
  CONSTRAINT fk_forget_ledger_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_forget_ledger_tenant_id_target_id FOREIGN KEY(tenant_id, target_id) REFERENCES target (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_forget_ledger_tenant_id_version_id FOREIGN KEY(tenant_id, version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE job_target (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  target_id UUID NOT NULL,
  active BOOLEAN NOT NULL,
  CONSTRAINT pk_job_target PRIMARY KEY (tenant_id, job_id, target_id),
  CONSTRAINT fk_job_target_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT fk_job_target_tenant_id_target_id FOREIGN KEY(tenant_id, target_id) REFERENCES target (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE UNIQUE INDEX uq_job_target_active ON job_target (target_id) WHERE active;

CREATE TABLE job_attempt (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  attempt INTEGER NOT NULL,
  lease_epoch BIGINT NOT NULL,
  worker TEXT NOT NULL,
  device JSONB,
  started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  ended_at TIMESTAMP WITH TIME ZONE,
  outcome TEXT,
  error JSONB,
  CONSTRAINT pk_job_attempt PRIMARY KEY (tenant_id, job_id, attempt),
  CONSTRAINT fk_job_attempt_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE job_step (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  name TEXT NOT NULL,
  attempt INTEGER NOT NULL,
  state TEXT NOT NULL,
  input_digest TEXT,
  output_digest TEXT,
  metrics JSONB,
  started_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  ended_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_job_step PRIMARY KEY (tenant_id, job_id, name, attempt),
  CONSTRAINT fk_job_step_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE verification_plan (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  round INTEGER NOT NULL,
  body JSONB NOT NULL,
  digest TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_verification_plan PRIMARY KEY (tenant_id, job_id, round),
  CONSTRAINT fk_verification_plan_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE reading (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  round INTEGER NOT NULL,
  name TEXT NOT NULL,
  split TEXT NOT NULL,
  kind TEXT NOT NULL,
  before TEXT,
  after TEXT,
  reference TEXT,
  ci_low TEXT,
  ci_high TEXT,
  level TEXT,
  direction TEXT NOT NULL,
  band JSONB,
  n INTEGER,
  seeds JSONB,
  detail JSONB,
  state TEXT,
  reason TEXT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_reading PRIMARY KEY (tenant_id, job_id, round, name, split),
  CONSTRAINT fk_reading_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED
);

CREATE TABLE verdict (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  round INTEGER NOT NULL,
  verdict TEXT NOT NULL,
  codes TEXT[] NOT NULL,
  sentence TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT pk_verdict PRIMARY KEY (tenant_id, job_id, round),
  CONSTRAINT fk_verdict_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_verdict_verdict CHECK (verdict IN ('passed', 'failed', 'inconclusive'))
);

CREATE TABLE release (
  tenant_id UUID NOT NULL,
  job_id UUID NOT NULL,
  round INTEGER NOT NULL,
  outcome TEXT NOT NULL,
  by TEXT NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  note TEXT,
  CONSTRAINT pk_release PRIMARY KEY (tenant_id, job_id, round),
  CONSTRAINT fk_release_tenant_id_job_id FOREIGN KEY(tenant_id, job_id) REFERENCES job (tenant_id, id) DEFERRABLE INITIALLY DEFERRED,
  CONSTRAINT ck_release_outcome CHECK (outcome IN ('release', 'reject'))
);

ALTER TABLE model_version ADD CONSTRAINT fk_model_version_tenant_id_model_id FOREIGN KEY(tenant_id, model_id) REFERENCES model (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE model ADD CONSTRAINT fk_model_tenant_id_current_version_id FOREIGN KEY(tenant_id, current_version_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE model_version ADD CONSTRAINT fk_model_version_tenant_id_parent_id FOREIGN KEY(tenant_id, parent_id) REFERENCES model_version (tenant_id, id) DEFERRABLE INITIALLY DEFERRED;

-- what must not change -----------------------------------------------------------------------------------------------------------------

CREATE FUNCTION lethe_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'alias_history' THEN
    IF OLD.to_at IS NULL AND NEW.to_at IS NOT NULL AND to_jsonb(NEW) - 'to_at' = to_jsonb(OLD) - 'to_at' THEN
      RETURN NEW;  -- to_at is set once
    END IF;
  END IF;
  RAISE EXCEPTION 'rows of % are immutable', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

-- what is done for a caller whose tenant is not known yet; both belong to lethe_scheduler, whose policies show it these two tables ------

CREATE FUNCTION lethe_claim(p_queue text, p_owner text, p_lease_s double precision, p_job uuid)
RETURNS TABLE (id uuid, tenant_id uuid, lease_epoch bigint, step text, step_state jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
  FOR try IN 1..3 LOOP
    BEGIN
      RETURN QUERY
      UPDATE public.job SET state = 'running', attempt = job.attempt + 1, crashes = job.crashes + (job.state <> 'queued')::int,
             lease_epoch = job.lease_epoch + 1, lease_owner = p_owner, lease_until = clock_timestamp() + make_interval(secs => p_lease_s)
       WHERE job.id = (SELECT j.id FROM public.job j
         WHERE j.queue = p_queue AND (p_job IS NULL OR j.id = p_job)
           AND ((j.state = 'queued' AND j.run_after <= clock_timestamp())
             OR (j.state IN ('running','verifying','publishing') AND j.lease_until < clock_timestamp() AND j.crashes + 1 < j.max_crashes))
           AND (j.kind IN ('reference','purge') OR NOT EXISTS (SELECT 1 FROM public.job o
                WHERE o.model_id = j.model_id AND o.id <> j.id AND o.kind IN ('train','unlearn')
                  AND (o.state IN ('running','verifying','publishing') OR (o.state = 'needs_attention' AND o.attention = 'awaiting_release'))))
         ORDER BY j.priority, j.due_at NULLS LAST, j.run_after FOR UPDATE OF j SKIP LOCKED LIMIT 1)
       RETURNING job.id, job.tenant_id, job.lease_epoch, job.step, job.step_state;
      RETURN;
    EXCEPTION WHEN unique_violation THEN
      NULL;  -- one_active: another claim won this model; look again
    END;
  END LOOP;
END $$;

CREATE FUNCTION lethe_key(p_prefix text)
RETURNS TABLE (id uuid, tenant_id uuid, client text, hash bytea, scopes text[], expires_at timestamptz, revoked_at timestamptz, last_used_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  SELECT k.id, k.tenant_id, k.client, k.hash, k.scopes, k.expires_at, k.revoked_at, k.last_used_at FROM public.api_key k WHERE k.prefix = p_prefix
$$;
