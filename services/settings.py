"""Configuration of a deployment: environment variables `LETHE_*`, nested by `__`, read once and passed down.

Secrets are SecretStr. Outside the embedded stack (`LETHE_EMBEDDED=true`) short or missing keys are refused.
"""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class DatabaseSettings(BaseModel):
    """`url` is the process's own role (lethe_gateway, lethe_worker, lethe_control); `owner_url` is for migrations and bootstrap alone."""

    url: SecretStr = SecretStr("")
    owner_url: SecretStr = SecretStr("")
    pool_size: int = 10
    pool_wait_s: float = 2.0


class QueueSettings(BaseModel):
    """The broker that carries bells. Losing it loses no work."""

    url: SecretStr = SecretStr("")
    default: str = "cpu"


class StoreSettings(BaseModel):
    """An S3 endpoint (`host:port`, no scheme) and the bucket of blobs. `public_endpoint` is the name that presigned URLs carry.

    `log_bucket` holds the signed heads of the audit log; each is locked for `log_lock_days` where the store can (24 months).
    """

    endpoint: str = ""
    public_endpoint: str = ""
    secure: bool = False
    region: str = "us-east-1"
    bucket: str = "lethe"
    access_key: SecretStr = SecretStr("")
    secret_key: SecretStr = SecretStr("")
    log_bucket: str = "lethe-log"
    log_lock_days: Annotated[int, Field(ge=1)] = 731


class KeySettings(BaseModel):
    """Keys as hex strings of 64 digits (256 bits). `signing` (Ed25519) belongs to the signer alone; `signing_previous` only to replace it."""

    encryption: SecretStr = SecretStr("")
    pepper: SecretStr = SecretStr("")
    cursor: SecretStr = SecretStr("")
    signing: SecretStr = SecretStr("")
    signing_previous: SecretStr = SecretStr("")


class LimitSettings(BaseModel):
    """Bounds on what comes in."""

    body_bytes: int = 256 * 1024
    subject_index_bytes: int = 4 * 1024 * 1024
    body_timeout_s: float = 10.0
    json_depth: int = 20
    file_bytes: int = 20 * 1024**3
    streams_per_principal: int = 5
    presign_s: int = 300


class PluginSettings(BaseModel):
    """Distributions whose entry points may be loaded."""

    allowed: list[str] = Field(default_factory=list)


class WorkerSettings(BaseModel):
    """How a worker runs. Tests shorten the times; production keeps the defaults.

    `memory_bytes` limits the address space of a runner on a CPU (0: no limit); `larger_queue` takes a job that ran out of memory here even with
    half the batch (empty: a person is asked). `ranks` is how many processes may share a job on a CPU whose weights one could not hold, each with
    `memory_bytes` of its own; of GPUs all share. `cache_bytes` is how much may be kept under `scratch` of what is derived from records, for
    `cache_ttl_s` seconds at most; 0 keeps nothing.
    """

    queue: str = "cpu"
    scratch: Path = Path(".lethe/scratch")
    device: str = "auto"
    lease_s: float = 60.0
    heartbeat_s: float = 15.0
    fence_s: float = 40.0
    poll_s: float = 5.0
    cancel_grace_s: float = 30.0
    sweep_s: float = 5.0
    outbox_s: float = 0.05
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    ranks: Annotated[int, Field(ge=1, le=64)] = 1
    larger_queue: str = ""
    cache_bytes: Annotated[int, Field(ge=0)] = 512 * 1024**2
    cache_ttl_s: Annotated[float, Field(gt=0)] = 24 * 3600.0


class WitnessAddress(BaseModel):
    """A witness that the signer asks: where it listens (`/add-checkpoint` is put behind `url`) and its verifier key."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    vkey: str


class SignerSettings(BaseModel):
    """How the audit log is signed. `origin` names the log in every checkpoint and must never change; a head is due after so many leaves or seconds.

    Where a request waits for its signed receipt it is due `receipt_s` after the last one. `witnesses` are asked to cosign each head, and waited for
    `witness_wait_s` at most.
    """

    origin: Annotated[str, Field(pattern=r"^[^\s+]{1,200}$")] = "lethe.local/log"
    poll_s: Annotated[float, Field(gt=0)] = 0.1
    head_s: Annotated[float, Field(gt=0)] = 10.0
    head_leaves: Annotated[int, Field(ge=1)] = 100
    receipt_s: Annotated[float, Field(gt=0)] = 5.0
    witnesses: list[WitnessAddress] = Field(default_factory=list)
    witness_wait_s: Annotated[float, Field(gt=0)] = 2.0


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(env_prefix="LETHE_", env_nested_delimiter="__", extra="ignore")

    home: Path = Path(".lethe")
    embedded: bool = False
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    store: StoreSettings = Field(default_factory=StoreSettings)
    keys: KeySettings = Field(default_factory=KeySettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    plugins: PluginSettings = Field(default_factory=PluginSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    signer: SignerSettings = Field(default_factory=SignerSettings)

    @model_validator(mode="after")
    def refuse_weak_keys(self) -> "Settings":
        """Refuse to start with a missing or short key, or without a database."""
        if self.embedded:
            return self
        for name in ("encryption", "pepper", "cursor"):
            value: SecretStr = getattr(self.keys, name)
            if len(value.get_secret_value()) < 64:
                raise ValueError(f"LETHE_KEYS__{name.upper()} must be 64 hexadecimal digits (openssl rand -hex 32)")
        if not self.database.url.get_secret_value():
            raise ValueError("LETHE_DATABASE__URL is not set")
        return self


class WitnessSettings(BaseSettings):
    """A witness of audit logs (`python -m control.witness`), a process apart that reads nothing else.

    `name` and `key` (64 hexadecimal digits) are its own, of no log; `logs` the verifier keys of the logs that it cosigns for, several for a log
    whose key was replaced; `state` the file of what it cosigned last.
    """

    model_config = SettingsConfigDict(env_prefix="LETHE_WITNESS__", extra="ignore")

    name: Annotated[str, Field(pattern=r"^[^\s+]{1,200}$")] = "lethe.local/witness"
    key: SecretStr = SecretStr("")
    logs: list[str] = Field(default_factory=list)
    state: Path = Path(".lethe/witness.json")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8390
