"""Every table. It imports no feature; features import it.

Keys of one tenant start with `tenant_id`: foreign-key checks pass by row security, so the key itself must hold the tenant. Enumerations are text
with a CHECK. `IMMUTABLE` names the tables whose rows a trigger protects, `TENANT_TABLES` those under row security.
"""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, INTERVAL, JSONB, TIMESTAMP
from sqlalchemy.dialects.postgresql import Range as Range  # noqa: PLC0414  re-exported: repositories build ranges with it
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JSON = dict[str, Any]


class Base(DeclarativeBase):
    """The declarative base; names of constraints follow one convention, so that migrations can speak of them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  read by SQLAlchemy once
        datetime: TIMESTAMP(timezone=True),
        timedelta: INTERVAL(),
        JSON: JSONB(),
        str: Text(),
        bytes: LargeBinary(),
        list[str]: ARRAY(Text()),
        list[Any]: JSONB(),
    }


def one_of(column: str, *values: str) -> CheckConstraint:
    """Return the CHECK that holds `column` to `values`."""
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def tenant_key(*columns: str, to: str) -> ForeignKeyConstraint:
    """Return the foreign key (tenant_id, *columns) -> to(tenant_id, id); deferrable, because model and model_version name each other."""
    return ForeignKeyConstraint(["tenant_id", *columns], [f"{to}.tenant_id", f"{to}.id"], deferrable=True, initially="DEFERRED")


class Created:
    """`created_at` by the database's clock."""

    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Owned(Created):
    """A row of one tenant, with an id of its own."""

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID]


# --- tenancy and policy ---------------------------------------------------------------------------------------------------------------


class Tenant(Created, Base):
    """A controller. `key_wrapped` is K_tenant under the key-encryption key of the deployment."""

    __tablename__ = "tenant"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    time_zone: Mapped[str] = mapped_column(server_default="UTC")
    holiday_calendar: Mapped[str | None]
    region: Mapped[str | None]
    key_wrapped: Mapped[bytes]
    key_id: Mapped[int] = mapped_column(server_default="1")


class ApiKey(Owned, Base):
    """An API key: id part in the clear, HMAC of the secret."""

    __tablename__ = "api_key"
    __table_args__ = (UniqueConstraint("prefix"), UniqueConstraint("tenant_id", "id"))
    client: Mapped[str]
    prefix: Mapped[str]
    hash: Mapped[bytes]
    scopes: Mapped[list[str]]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Policy(Owned, Base):
    """One immutable version of a policy. Shapes of the documents: services/tenants/policies.py."""

    __tablename__ = "policy"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "key", "version"))
    key: Mapped[str]
    version: Mapped[int]
    regulation: Mapped[str]
    ladder: Mapped[list[Any]]
    verification: Mapped[JSON]
    limits: Mapped[JSON]
    flags: Mapped[JSON]
    retention: Mapped[JSON]
    batch_window: Mapped[timedelta]
    min_subjects: Mapped[int] = mapped_column(server_default="1")
    max_batch: Mapped[int] = mapped_column(server_default="256")


class CatalogueEntry(Base):
    """What some worker can run. No tenant: workers write, all read."""

    __tablename__ = "catalogue_entry"
    __table_args__ = (one_of("kind", "method", "metric", "attack", "task", "architecture", "dataset_adapter"),)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    guarantee: Mapped[str | None]
    schema: Mapped[JSON]
    needs: Mapped[list[str]]
    facts: Mapped[JSON]
    error: Mapped[str | None]
    queue: Mapped[str]
    published_by: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Worker(Base):
    """A worker as it last said that it lives: its queue, its device with the memory a job may take, and what computes. No tenant."""

    __tablename__ = "worker"
    name: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    device: Mapped[JSON]
    versions: Mapped[JSON]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


# --- datasets and subjects ------------------------------------------------------------------------------------------------------------


class Dataset(Owned, Base):
    """A named set of records; its adapter says how columns become tensors."""

    __tablename__ = "dataset"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "name"))
    name: Mapped[str]
    adapter: Mapped[str]
    adapter_params: Mapped[JSON]
    label_column: Mapped[str | None]
    subject_types: Mapped[list[str]]


class DatasetVersion(Owned, Base):
    """One version of a dataset: parquet files by digest.

    `retired`: a later version does without records that were forgotten; nothing learns from it, and it is destroyed at `destroy_by` (NULL: never).
    """

    __tablename__ = "dataset_version"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "dataset_id", "number"),
        tenant_key("dataset_id", to="dataset"),
        tenant_key("parent_id", to="dataset_version"),
        one_of("status", "pending", "checking", "ready", "failed", "retired", "purged"),
        CheckConstraint("(status='purged') = (purged_at IS NOT NULL)", name="purged"),
    )
    dataset_id: Mapped[UUID]
    number: Mapped[int]
    parent_id: Mapped[UUID | None]
    status: Mapped[str]
    manifest_digest: Mapped[str | None]
    records: Mapped[int | None] = mapped_column(BigInteger)
    produced_by_job_id: Mapped[UUID | None]
    error: Mapped[JSON | None]
    purged_at: Mapped[datetime | None]
    destroy_by: Mapped[datetime | None]


class DatasetFile(Base):
    """One parquet file of a dataset version."""

    __tablename__ = "dataset_file"
    __table_args__ = (tenant_key("version_id", to="dataset_version"), CheckConstraint("size_bytes >= 0", name="size"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class DatasetRecord(Base):
    """One record; `present` is the range of version numbers that hold it."""

    __tablename__ = "dataset_record"
    __table_args__ = (tenant_key("dataset_id", to="dataset"), Index(None, "tenant_id", "label", "dataset_id"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    present: Mapped[Range[int]] = mapped_column(INT4RANGE)


class SubjectRecord(Base):
    """The subject index: keyed digest of a person -> record."""

    __tablename__ = "subject_record"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "dataset_id", "record_id"],
            ["dataset_record.tenant_id", "dataset_record.dataset_id", "dataset_record.record_id"],
            ondelete="CASCADE",
        ),
        Index(None, "tenant_id", "dataset_id", "record_id"),
    )
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    subject_hmac: Mapped[bytes] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[int]


class TrainingInput(Base):
    """Which dataset version a model version learned from; role `evaluation` names one that it is only judged on."""

    __tablename__ = "training_input"
    __table_args__ = (
        tenant_key("model_version_id", to="model_version"),
        tenant_key("dataset_version_id", to="dataset_version"),
        one_of("role", "train", "finetune", "repair", "reference", "evaluation"),
        Index(None, "tenant_id", "dataset_version_id"),
    )
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_version_id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_version_id: Mapped[UUID] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)


# --- models, versions, objects --------------------------------------------------------------------------------------------------------


class Model(Owned, Base):
    """A named model of one task and architecture."""

    __tablename__ = "model"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "name"),
        tenant_key("current_version_id", to="model_version"),
    )
    name: Mapped[str]
    task: Mapped[str]
    architecture: Mapped[str]
    architecture_params: Mapped[JSON]
    current_version_id: Mapped[UUID | None]
    etag: Mapped[int] = mapped_column(server_default="1")


class ModelVersion(Owned, Base):
    """One version of a model. `fresh_start` marks weights computed from re-initialised parameters, where lineage stops.

    `quarantined_for`: its records were `forgotten`, or a caller `requested` that it be destroyed.
    """

    __tablename__ = "model_version"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "model_id", "number"),
        UniqueConstraint("tenant_id", "job_id"),
        tenant_key("model_id", to="model"),
        tenant_key("parent_id", to="model_version"),
        one_of("status", "pending", "checking", "ready", "failed", "quarantined", "destroyed"),
        CheckConstraint("(status='destroyed') = (destroyed_at IS NOT NULL)", name="destroyed"),
        one_of("quarantined_for", "forgotten", "requested"),
    )
    model_id: Mapped[UUID]
    number: Mapped[int]
    parent_id: Mapped[UUID | None]
    job_id: Mapped[UUID | None]
    status: Mapped[str]
    guarantee: Mapped[str | None]
    fresh_start: Mapped[bool]
    recipe: Mapped[JSON | None]
    manifest: Mapped[JSON | None]
    manifest_digest: Mapped[str | None]
    code_digest: Mapped[str | None]
    image_digest: Mapped[str | None]
    seeds: Mapped[JSON | None]
    error: Mapped[JSON | None]
    quarantined_for: Mapped[str | None]
    destroy_by: Mapped[datetime | None]
    destroyed_at: Mapped[datetime | None]


class ModelFile(Base):
    """One file of a model version, by digest."""

    __tablename__ = "model_file"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "version_id"], ["model_version.tenant_id", "model_version.id"], ondelete="CASCADE"),
        CheckConstraint("size_bytes >= 0", name="size"),
        Index(None, "tenant_id", "digest"),
    )
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    version_id: Mapped[UUID] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str]


class ModelAlias(Base):
    """A movable name for a version."""

    __tablename__ = "model_alias"
    __table_args__ = (tenant_key("model_id", to="model"), tenant_key("version_id", to="model_version"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[UUID]
    etag: Mapped[int] = mapped_column(server_default="1")


class AliasHistory(Owned, Base):
    """What an alias pointed to, and when. `to_at` is set once."""

    __tablename__ = "alias_history"
    __table_args__ = (tenant_key("model_id", to="model"), Index(None, "tenant_id", "model_id", "alias"))
    model_id: Mapped[UUID]
    alias: Mapped[str]
    version_id: Mapped[UUID]
    from_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    to_at: Mapped[datetime | None]
    by: Mapped[str]


class StoredObject(Base):
    """A blob of the object store by digest. No tenant; the gateway has no grant on it."""

    __tablename__ = "object"
    __table_args__ = (
        one_of("state", "live", "deleting", "deleted"),
        Index("ix_object_deleted", "size_bytes", postgresql_where=text("state = 'deleted'")),
    )
    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(server_default="live")
    first_seen: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    deleted_at: Mapped[datetime | None]


class ObjectRef(Base):
    """Who needs a blob."""

    __tablename__ = "object_ref"
    __table_args__ = (ForeignKeyConstraint(["digest"], ["object.digest"]),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    owner_kind: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID] = mapped_column(primary_key=True)


class ObjectPin(Base):
    """A blob that a running job has put and not yet referenced."""

    __tablename__ = "object_pin"
    __table_args__ = (ForeignKeyConstraint(["digest"], ["object.digest"]),)
    digest: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    until: Mapped[datetime]


class Tombstone(Base):
    """Weights that were destroyed: no version may have these bytes again, and workers drop what they hold of them. No tenant."""

    __tablename__ = "tombstone"
    __table_args__ = (Index(None, "size_bytes"),)
    digest: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class DestructionCertificate(Owned, Base):
    """What became of the files of a model version, a dataset version, or a candidate, and how that was proved.

    A candidate is named by its job. `event_id` is the event that commits to `digest`.
    """

    __tablename__ = "destruction_certificate"
    __table_args__ = (
        UniqueConstraint("tenant_id", "version_id"),
        UniqueConstraint("tenant_id", "dataset_version_id"),
        UniqueConstraint("tenant_id", "candidate_job_id"),
        tenant_key("version_id", to="model_version"),
        tenant_key("dataset_version_id", to="dataset_version"),
        tenant_key("candidate_job_id", to="job"),
        CheckConstraint("num_nonnulls(version_id, dataset_version_id, candidate_job_id) = 1", name="one_thing"),
    )
    version_id: Mapped[UUID | None]
    dataset_version_id: Mapped[UUID | None]
    candidate_job_id: Mapped[UUID | None]
    digest: Mapped[str]
    document: Mapped[JSON]
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"))


# --- requests and targets -------------------------------------------------------------------------------------------------------------

TERMINAL_REQUEST = ("completed", "partially_completed", "denied", "duplicate", "cancelled", "expired")
_TERMINAL_SQL = ", ".join(f"'{state}'" for state in TERMINAL_REQUEST)


class DeletionRequest(Owned, Base):
    """A deletion request. `scope` holds kind, counts and keyed digests, never an identifier; `scope_hmac` is NULL on a duplicate.

    `names_sealed` are the names of entities, encrypted, while the request is open: a CHECK keeps them from outliving it.
    """

    __tablename__ = "deletion_request"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        tenant_key("policy_id", to="policy"),
        tenant_key("duplicate_of", to="deletion_request"),
        Index("uq_deletion_request_external_id", "tenant_id", "external_id", unique=True, postgresql_where=text("external_id IS NOT NULL")),
        Index("uq_deletion_request_open_scope", "tenant_id", "scope_hmac", unique=True, postgresql_where=text("closed_at IS NULL")),
        Index(None, "tenant_id", "state", "due_at"),
        Index("ix_deletion_request_newest", "tenant_id", text("created_at DESC"), text("id DESC")),
        Index("ix_deletion_request_due", "due_at", postgresql_where=text("closed_at IS NULL")),
        one_of(
            "state", "received", "identity_pending", "pending_review", "approved", "on_hold", "in_progress", "awaiting_release",
            "needs_attention", *TERMINAL_REQUEST,
        ),
        CheckConstraint("due_at > received_at", name="due"),
        CheckConstraint("state <> 'denied' OR decided_at IS NOT NULL", name="decided"),
        CheckConstraint(f"(closed_at IS NULL) = (state NOT IN ({_TERMINAL_SQL}))", name="closed"),
        CheckConstraint("(state = 'on_hold') = (resume_state IS NOT NULL)", name="held"),
        CheckConstraint("closed_at IS NULL OR names_sealed IS NULL", name="names"),
        CheckConstraint("(extended_at IS NULL) = (extension_reason IS NULL)", name="extended"),
    )  # fmt: skip
    external_id: Mapped[str | None]
    regulation: Mapped[str]
    manner: Mapped[str | None]
    ground: Mapped[str | None]
    exemption: Mapped[str | None]
    state: Mapped[str]
    resume_state: Mapped[str | None]
    policy_id: Mapped[UUID]
    method: Mapped[str] = mapped_column(server_default="auto")
    params: Mapped[JSON]
    duplicate_of: Mapped[UUID | None]
    scope: Mapped[JSON]
    scope_hmac: Mapped[bytes | None]
    body_digest: Mapped[bytes]
    identity: Mapped[JSON]
    details: Mapped[JSON]
    received_at: Mapped[datetime]
    acknowledged_at: Mapped[datetime | None]
    due_at: Mapped[datetime]
    original_due_at: Mapped[datetime]
    ack_due_at: Mapped[datetime | None]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None]
    decision_note: Mapped[str | None]
    created_by: Mapped[str]
    attention: Mapped[JSON | None]
    error: Mapped[JSON | None]
    closed_at: Mapped[datetime | None]
    version: Mapped[int] = mapped_column(server_default="1")
    names_sealed: Mapped[bytes | None]
    extended_at: Mapped[datetime | None]
    extended_by: Mapped[str | None]
    extension_reason: Mapped[str | None]
    complaint_told: Mapped[bool | None]
    court_told: Mapped[bool | None]


class ClockPause(Owned, Base):
    """A time in which the clock of a request stood still, because its identity query was open (GDPR Art. 12(6)). At most one is open."""

    __tablename__ = "clock_pause"
    __table_args__ = (
        tenant_key("request_id", to="deletion_request"),
        Index(None, "tenant_id", "request_id"),
        Index("uq_clock_pause_open", "tenant_id", "request_id", unique=True, postgresql_where=text("to_at IS NULL")),
        CheckConstraint("to_at > from_at", name="order"),
    )
    request_id: Mapped[UUID]
    from_at: Mapped[datetime]
    to_at: Mapped[datetime | None]
    reason: Mapped[str]
    opened_by: Mapped[str]
    closed_by: Mapped[str | None]


class RecipientNotification(Owned, Base):
    """Who had received a version that was superseded, and how and when they were told (GDPR Art. 19)."""

    __tablename__ = "recipient_notification"
    __table_args__ = (
        tenant_key("request_id", to="deletion_request"),
        tenant_key("version_id", to="model_version"),
        Index(None, "tenant_id", "request_id"),
        one_of("outcome", "sent", "confirmed", "failed", "not_possible"),
    )
    request_id: Mapped[UUID]
    version_id: Mapped[UUID]
    recipient: Mapped[str]
    channel: Mapped[str]
    sent_at: Mapped[datetime]
    outcome: Mapped[str]
    recorded_by: Mapped[str]


class LegalHold(Owned, Base):
    """A duty to keep: nothing under it is forgotten or destroyed until it is released. `scope_ref` is an id, or a person's keyed digest."""

    __tablename__ = "legal_hold"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        Index("ix_legal_hold_standing", "tenant_id", "scope", "scope_ref", postgresql_where=text("released_at IS NULL")),
        one_of("scope", "subject", "model", "request", "dataset"),
        CheckConstraint("(released_at IS NULL) = (released_by IS NULL)", name="released"),
    )
    scope: Mapped[str]
    scope_ref: Mapped[bytes]
    reason: Mapped[str]
    placed_by: Mapped[str]
    released_at: Mapped[datetime | None]
    released_by: Mapped[str | None]
    release_reason: Mapped[str | None]


class HoldRecord(Base):
    """A record of a person under a hold, as the keyed digest that targets have of it."""

    __tablename__ = "hold_record"
    __table_args__ = (tenant_key("hold_id", to="legal_hold"), Index(None, "tenant_id", "record_hmac"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    hold_id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_hmac: Mapped[bytes] = mapped_column(primary_key=True)


class Target(Owned, Base):
    """One model that a request touches. A target without a model records that a subject was not found."""

    __tablename__ = "target"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "request_id", "model_id"),
        tenant_key("request_id", to="deletion_request"),
        tenant_key("model_id", to="model"),
        tenant_key("base_version_id", to="model_version"),
        tenant_key("published_version_id", to="model_version"),
        Index("ix_target_queued", "model_id", "due_at", postgresql_where=text("state = 'queued'")),
        one_of("state", "located", "queued", "running", "published", "exempt", "not_found", "stuck", "cancelled"),
    )
    request_id: Mapped[UUID]
    model_id: Mapped[UUID | None]
    base_version_id: Mapped[UUID | None]
    state: Mapped[str]
    outcome: Mapped[str | None]
    exemption: Mapped[str | None]
    rung: Mapped[int] = mapped_column(server_default="1")
    records: Mapped[int]
    records_commitment: Mapped[str]
    due_at: Mapped[datetime]
    published_version_id: Mapped[UUID | None]
    queued_at: Mapped[datetime | None]


class TargetRecord(Base):
    """The records of a target, as keyed digests (HMAC of dataset id and record id under K_tenant)."""

    __tablename__ = "target_record"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "target_id"], ["target.tenant_id", "target.id"], ondelete="CASCADE"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    target_id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_hmac: Mapped[bytes] = mapped_column(primary_key=True)


class ForgetLedger(Base):
    """Which records a model has forgotten, by which version."""

    __tablename__ = "forget_ledger"
    __table_args__ = (tenant_key("model_id", to="model"), tenant_key("target_id", to="target"), tenant_key("version_id", to="model_version"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(primary_key=True)
    record_hmac: Mapped[bytes] = mapped_column(primary_key=True)
    target_id: Mapped[UUID]
    version_id: Mapped[UUID]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


# --- jobs and evidence ----------------------------------------------------------------------------------------------------------------

_LEASED = "state IN ('running','verifying','publishing')"
_HOLDS_MODEL = f"kind IN ('train','unlearn') AND ({_LEASED} OR (state='needs_attention' AND attention='awaiting_release'))"
_OPEN_PURGE = "kind = 'purge' AND finished_at IS NULL"


class Job(Owned, Base):
    """A unit of work with a lease. Every effect locks this row on `lease_epoch` first.

    A purge names what it destroys: a model version (`base_version_id`), a dataset version, or what another job put (`candidate_job_id`).
    """

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        tenant_key("model_id", to="model"),
        tenant_key("base_version_id", to="model_version"),
        tenant_key("dataset_version_id", to="dataset_version"),
        tenant_key("policy_id", to="policy"),
        tenant_key("escalated_from", to="job"),
        tenant_key("candidate_job_id", to="job"),
        one_of("kind", "train", "unlearn", "reference", "purge"),
        one_of("state", "queued", "running", "verifying", "publishing", "needs_attention", "succeeded", "failed", "cancelled"),
        CheckConstraint("(lease_owner IS NULL) = (lease_until IS NULL)", name="lease"),
        CheckConstraint(f"({_LEASED}) = (lease_owner IS NOT NULL)", name="leased"),
        Index("one_active", "model_id", unique=True, postgresql_where=text(_HOLDS_MODEL)),
        Index("ix_job_due", "queue", "priority", "due_at", "run_after", postgresql_where=text("state = 'queued'")),
        Index("ix_job_leased", "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_job_newest", "tenant_id", text("created_at DESC"), text("id DESC")),
        Index("uq_job_open_purge", "tenant_id", "base_version_id", unique=True, postgresql_where=text(_OPEN_PURGE)),
        Index("uq_job_open_dataset_purge", "tenant_id", "dataset_version_id", unique=True, postgresql_where=text(_OPEN_PURGE)),
        Index("uq_job_open_candidate_purge", "tenant_id", "candidate_job_id", unique=True, postgresql_where=text(_OPEN_PURGE)),
    )
    kind: Mapped[str]
    state: Mapped[str]
    attention: Mapped[str | None]
    model_id: Mapped[UUID]
    base_version_id: Mapped[UUID | None]
    dataset_version_id: Mapped[UUID | None]
    policy_id: Mapped[UUID | None]
    method: Mapped[str | None]
    method_version: Mapped[str | None]
    params: Mapped[JSON]
    choice: Mapped[JSON | None]
    seeds: Mapped[JSON]
    rung: Mapped[int] = mapped_column(server_default="1")
    round: Mapped[int] = mapped_column(server_default="1")
    escalated_from: Mapped[UUID | None]
    candidate_job_id: Mapped[UUID | None]
    queue: Mapped[str]
    priority: Mapped[int] = mapped_column(server_default="100")
    due_at: Mapped[datetime | None]
    run_after: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    attempt: Mapped[int] = mapped_column(server_default="0")
    crashes: Mapped[int] = mapped_column(server_default="0")
    max_crashes: Mapped[int] = mapped_column(server_default="3")
    lease_epoch: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_owner: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    step: Mapped[str | None]
    step_state: Mapped[JSON | None]
    progress: Mapped[JSON | None]
    deadline_s: Mapped[int] = mapped_column(server_default="86400")
    result: Mapped[JSON | None]
    error: Mapped[JSON | None]
    created_by: Mapped[str]
    finished_at: Mapped[datetime | None]


class JobFile(Created, Base):
    """A blob that a job has put, under the name of its file: so what was never published can be destroyed."""

    __tablename__ = "job_file"
    __table_args__ = (tenant_key("job_id", to="job"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class JobTarget(Base):
    """Which targets a job serves. A target is in at most one active job."""

    __tablename__ = "job_target"
    __table_args__ = (
        tenant_key("job_id", to="job"),
        tenant_key("target_id", to="target"),
        Index("uq_job_target_active", "target_id", unique=True, postgresql_where=text("active")),
    )
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    target_id: Mapped[UUID] = mapped_column(primary_key=True)
    active: Mapped[bool]


class JobAttempt(Base):
    """One claim of a job."""

    __tablename__ = "job_attempt"
    __table_args__ = (tenant_key("job_id", to="job"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    lease_epoch: Mapped[int] = mapped_column(BigInteger)
    worker: Mapped[str]
    device: Mapped[JSON | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    error: Mapped[JSON | None]


class JobStep(Base):
    """One step of one attempt, with digests of what went in and came out."""

    __tablename__ = "job_step"
    __table_args__ = (tenant_key("job_id", to="job"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    input_digest: Mapped[str | None]
    output_digest: Mapped[str | None]
    metrics: Mapped[JSON | None]
    started_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    ended_at: Mapped[datetime | None]


class VerificationPlan(Created, Base):
    """What will be measured and judged, frozen before the run."""

    __tablename__ = "verification_plan"
    __table_args__ = (tenant_key("job_id", to="job"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[JSON]
    digest: Mapped[str]


class ReadingRow(Created, Base):
    """One measured number of one round. Metrics are decimal strings; null with a reason when not measured."""

    __tablename__ = "reading"
    __table_args__ = (tenant_key("job_id", to="job"),)
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    before: Mapped[str | None]
    after: Mapped[str | None]
    reference: Mapped[str | None]
    ci_low: Mapped[str | None]
    ci_high: Mapped[str | None]
    level: Mapped[str | None]
    direction: Mapped[str]
    band: Mapped[JSON | None]
    n: Mapped[int | None] = mapped_column(Integer)
    seeds: Mapped[JSON | None]
    detail: Mapped[JSON | None]
    state: Mapped[str | None]
    reason: Mapped[str | None]


class VerdictRow(Created, Base):
    """The verdict of one round."""

    __tablename__ = "verdict"
    __table_args__ = (tenant_key("job_id", to="job"), one_of("verdict", "passed", "failed", "inconclusive"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    verdict: Mapped[str]
    codes: Mapped[list[str]]
    sentence: Mapped[str]


class FigureRow(Created, Base):
    """What one figure of one round draws, over sixteen forgotten records or more; null with a reason where nothing is drawn."""

    __tablename__ = "figure"
    __table_args__ = (
        tenant_key("job_id", to="job"),
        CheckConstraint("(data IS NULL) = (digest IS NULL) AND (data IS NULL) = (reason IS NOT NULL)", name="drawn"),
    )
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[JSON | None] = mapped_column(JSONB(none_as_null=True))
    digest: Mapped[str | None]
    reason: Mapped[str | None]


class ReleaseRow(Base):
    """A person's decision to publish or to reject a candidate."""

    __tablename__ = "release"
    __table_args__ = (tenant_key("job_id", to="job"), one_of("outcome", "release", "reject"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    by: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    note: Mapped[str | None]


class AuditReport(Owned, Base):
    """One immutable revision of a request's report, and what makes it evidence; the signer sets `envelope` and `tlog_proof`, once."""

    __tablename__ = "audit_report"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "request_id", "revision"),
        tenant_key("request_id", to="deletion_request"),
        CheckConstraint("(envelope IS NULL) = (tlog_proof IS NULL)", name="signed"),
        Index("ix_audit_report_unsigned", "event_id", postgresql_where=text("envelope IS NULL")),
    )
    request_id: Mapped[UUID]
    revision: Mapped[int]
    digest: Mapped[str]
    statement: Mapped[JSON]
    event_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("audit_event.id"))
    envelope: Mapped[JSON | None]
    tlog_proof: Mapped[str | None]


class Rendering(Created, Base):
    """One revision of a report as a person reads it, made once, from the statement and the figures it names."""

    __tablename__ = "rendering"
    __table_args__ = (tenant_key("report_id", to="audit_report"), one_of("form", "html", "pdf"))
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    report_id: Mapped[UUID] = mapped_column(primary_key=True)
    form: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    body: Mapped[bytes]


class AuditEvent(Base):
    """One line of the audit log, written with the state change: type and commitment, no personal data.

    `seq` is the number of its leaf, set once, by the sequencer. An event of no tenant is about the log's own keys.
    """

    __tablename__ = "audit_event"
    __table_args__ = (
        Index("ix_audit_event_tenant", "tenant_id", "id"),
        Index("uq_audit_event_seq", "seq", unique=True, postgresql_where=text("seq IS NOT NULL")),
        Index("ix_audit_event_waiting", "id", postgresql_where=text("seq IS NULL")),
        Index("ix_audit_event_received", "seq", postgresql_where=text("type = 'request.received' AND seq IS NOT NULL")),
    )
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID | None] = mapped_column(ForeignKey("tenant.id"))
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    type: Mapped[str]
    commitment: Mapped[bytes]
    seq: Mapped[int | None] = mapped_column(BigInteger)


class AuditPayload(Base):
    """What an audit event committed to; erasable, the log verifies without it. `object_id` is the request, job or version it is about."""

    __tablename__ = "audit_payload"
    __table_args__ = (Index("ix_audit_payload_object", "tenant_id", "object_id", "event_id"),)
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"), primary_key=True, autoincrement=False)
    tenant_id: Mapped[UUID]
    object_id: Mapped[UUID]
    salt: Mapped[bytes]
    body: Mapped[JSON]


class AuditLeaf(Base):
    """A leaf of the log's tree: `leaf_hash` is the RFC 6962 hash of the event's commitment. Gapless, written by the sequencer alone."""

    __tablename__ = "audit_leaf"
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"), unique=True)
    leaf_hash: Mapped[bytes]


class TreeNode(Base):
    """The root of the full subtree over the leaves [index * 2**level, (index + 1) * 2**level), level 1 and up."""

    __tablename__ = "tree_node"
    level: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hash: Mapped[bytes]


class TreeHead(Base):
    """A signed head: `note` is the checkpoint as it was signed."""

    __tablename__ = "tree_head"
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[bytes]
    note: Mapped[str]
    signed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Cosignature(Base):
    """The line that a witness added to a head."""

    __tablename__ = "cosignature"
    size: Mapped[int] = mapped_column(BigInteger, ForeignKey("tree_head.size"), primary_key=True, autoincrement=False)
    witness: Mapped[str] = mapped_column(primary_key=True)
    line: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ReceiptRow(Base):
    """The signed receipt of a request, by the event of its receipt; written by the signer alone, once."""

    __tablename__ = "receipt"
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"), primary_key=True, autoincrement=False)
    tenant_id: Mapped[UUID]
    leaf_seq: Mapped[int] = mapped_column(BigInteger, unique=True)
    head_size: Mapped[int] = mapped_column(BigInteger, ForeignKey("tree_head.size"))
    jws: Mapped[str]
    signed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class SigningKey(Base):
    """A key of the signer: `body` and `salt` open the event by which it came into the log. One key is current."""

    __tablename__ = "signing_key"
    __table_args__ = (Index("uq_signing_key_current", text("(valid_to IS NULL)"), unique=True, postgresql_where=text("valid_to IS NULL")),)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    public_key: Mapped[bytes]
    valid_from: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    valid_to: Mapped[datetime | None]
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"))
    salt: Mapped[bytes]
    body: Mapped[JSON]


class KeyRevocation(Base):
    """That a key of the signer was revoked: `body` and `salt` open the event. What is included later is not the key's to sign."""

    __tablename__ = "key_revocation"
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_key.key_id"), primary_key=True)
    event_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("audit_event.id"))
    salt: Mapped[bytes]
    body: Mapped[JSON]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class LogEpoch(Base):
    """Where the log went on under another name, after a restore: `after_note` is the last head of before, which had `after_size` leaves."""

    __tablename__ = "log_epoch"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    origin: Mapped[str] = mapped_column(unique=True)
    after_size: Mapped[int] = mapped_column(BigInteger)
    after_note: Mapped[str]
    held_size: Mapped[int] = mapped_column(BigInteger)
    replayed: Mapped[int]
    told_event: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("audit_event.id"))
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ReportRenewal(Base):
    """Envelope and proof of a report under a later key, after the one that signed it was revoked."""

    __tablename__ = "report_renewal"
    __table_args__ = (tenant_key("report_id", to="audit_report"),)
    report_id: Mapped[UUID] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_key.key_id"), primary_key=True)
    tenant_id: Mapped[UUID]
    envelope: Mapped[JSON]
    tlog_proof: Mapped[str]
    signed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class SignerState(Base):
    """What the signer last said of itself: `ok`, or why it does not sign."""

    __tablename__ = "signer_state"
    name: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    detail: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


# --- plumbing -------------------------------------------------------------------------------------------------------------------------


class Idempotency(Created, Base):
    """The stored answer of a call."""

    __tablename__ = "idempotency"
    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    status: Mapped[int]
    headers: Mapped[JSON]
    body: Mapped[JSON]
    expires_at: Mapped[datetime]


class Outbox(Created, Base):
    """Work that follows a commit: `request.advance`, `job.ring`, `version.ingest`, `dataset.ingest`, `report.build`, `report.render`."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_open", "available_at", "id", postgresql_where=text("done_at IS NULL")),)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[UUID]
    topic: Mapped[str]
    ref: Mapped[UUID]
    available_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    attempts: Mapped[int] = mapped_column(server_default="0")
    done_at: Mapped[datetime | None]


_OF_THE_LOG = ("audit_leaf", "tree_node", "tree_head", "cosignature", "signing_key", "key_revocation", "log_epoch", "signer_state")
NO_TENANT = frozenset({"tenant", "catalogue_entry", "worker", "object", "object_pin", "tombstone", *_OF_THE_LOG})
TENANT_TABLES = tuple(sorted(name for name in Base.metadata.tables if name not in NO_TENANT))
IMMUTABLE = (
    "policy", "alias_history", "forget_ledger", "verification_plan", "reading", "figure", "verdict", "release", "audit_report", "rendering", "audit_event",
    "audit_leaf", "tree_node", "tree_head", "cosignature", "signing_key", "receipt", "key_revocation", "report_renewal", "tombstone",
    "destruction_certificate", "hold_record", "recipient_notification",
)  # fmt: skip
