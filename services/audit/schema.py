"""The form of a report's statement as closed models, and the JSON Schema that is published of it.

`python -m services.audit.schema FILE` writes the schema. Plans, parameters and what a run noted are open documents of their own; all else is closed.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
Moment = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(\+00:00|Z)$")]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Verdict = Literal["passed", "failed", "inconclusive"]
Open = dict[str, Any]


class Part(BaseModel):
    """A closed part: a member that is not named here is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Digest(Part):
    """A digest by its algorithm."""

    sha256: Hex


class About(Part):
    """A published version: model@number, and the digest of its manifest."""

    name: str
    digest: Digest


class Pause(Part):
    """A time in which the clock stood still, because the identity query was open."""

    start: Moment = Field(alias="from")
    to: Moment | None
    reason: str


class Extension(Part):
    """The one extension, and when the request would have been due without it."""

    at: Moment
    by: str | None
    reason: str
    original_due: Moment


class Clock(Part):
    """The legal clock."""

    regulation: str
    received: Moment
    acknowledged: Moment | None
    pauses: list[Pause]
    extensions: list[Extension]
    due: Moment
    completed: Moment
    on_time: bool


class Identity(Part):
    """How the caller said that it knows the person."""

    mode: str | None
    evidence_ref: str | None
    verified_at: Moment | None = None
    verified_by: str | None = None


class Decision(Part):
    """Ground or exemption, and who decided."""

    ground: str | None
    exemption: str | None
    by: str | None
    at: Moment | None
    note: str | None = None


class ScopeTarget(Part):
    """One model of the request."""

    target: str
    model: str | None
    state: str
    outcome: str | None
    samples_count: Count
    samples_commitment: str
    dataset_digest: str | None = None


class Scope(Part):
    """What was asked to be forgotten; `above` and `below` bound a range of targets."""

    kind: str | None
    labels: list[str]
    above: Any = None
    below: Any = None
    names: Any = None
    targets: list[ScopeTarget]
    samples_count: Count
    located_by: str | None
    batch_size: Count


class Processing(Part):
    """How one job ran. Seconds of the method, of the references and of the readings are apart; references are trained once, or come from the cache."""

    model: str | None
    job: str
    state: str
    method: str | None
    method_version: str | None
    guarantee: str | None
    params: Open
    effective: Open
    choice: Open
    effective_batch: Count
    seeds: dict[str, str]
    code_digest: str | None
    image_digest: str | None
    hardware: Open
    versions: Open
    started: Moment | None
    ended: Moment | None
    method_seconds: Decimal | None
    evaluation_seconds: Decimal | None
    reference_seconds: Decimal | None = None
    reference_from: Literal["trained", "cache"] | None = None
    retrain_seconds: Decimal | None
    attempts: Count
    rung: Count


class PolicyRef(Part):
    """A version of a policy."""

    key: str
    version: Count


class Plan(Part):
    """The plan as it was frozen, its digest, and its leaf in the log."""

    digest: Hex
    frozen_at: Moment | None
    leaf_index: Count | None
    policy: PolicyRef
    body: Open


class Start(Part):
    """The leaf of the first start under the plan."""

    leaf_index: Count | None


class Band(Part):
    """What a reading is held against."""

    reference: Decimal | None
    epsilon: Decimal | None
    floor: Decimal | None


class Reading(Part):
    """One measured number; null has a reason."""

    name: str
    split: str
    before: Decimal | None
    after: Decimal | None
    reference: Decimal | None
    interval: Annotated[list[Decimal | None], Field(min_length=2, max_length=2)]
    level: Decimal | None
    n: Count | None
    band: Band | None
    direction: str | None
    state: Literal["inside", "outside", "undecided", "insensitive", "info", "null"] | None
    reason: str | None
    detail: Open


class Rate(Part):
    """A true positive rate at a false positive rate, with its interval."""

    fpr: Decimal
    value: Decimal
    low: Decimal
    high: Decimal


class Attack(Reading):
    """A reading of an attack, with who stood on either side; what the sample cannot carry is null."""

    paper: str | None = None
    tpr_at_fpr: Rate | None = None
    eps_lo: Decimal | None = None
    n_members: Count | None = None
    n_nonmembers: Count | None = None
    shadows: Count | None = None
    alpha: Decimal | None = None
    correction: Literal["holm"] | None = None
    detectable: Decimal | None = None


class Verification(Part):
    """Plan, readings and verdict of one job."""

    job: str
    round: Count
    plan: Plan
    run: Start
    reference: Open
    metrics: list[Reading]
    attacks: list[Attack]
    verdict: Verdict | None
    sentence: str | None
    failure_codes: list[str]


class Version(Part):
    """One version of a model."""

    version: Count
    manifest_digest: str | None
    guarantee: str | None
    fresh_start: bool


class Superseded(Part):
    """A version that learned from the records, and what becomes of it."""

    version: Count
    disposition: str
    purge_at: Moment | None
    destroyed_at: Moment | None = None
    certificate: Hex | None = None
    holds: list[str] = Field(default_factory=list)


class Fate(Part):
    """What becomes of something superseded: when it is due to be destroyed, or when it was, by which certificate, and what holds it."""

    disposition: str
    purge_at: Moment | None
    destroyed_at: Moment | None
    certificate: Hex | None
    holds: list[str]


class SupersededData(Fate):
    """A dataset version that held the records: `retired`, then `purged`."""

    dataset: str
    version: Count


class Candidate(Fate):
    """What a job put and did not publish: `quarantined`, then `destroyed`, some days after the request closed."""

    job: str
    method: str
    rung: Count


class Recipient(Part):
    """Who had a superseded version, and how and when they were told."""

    model: str
    version: Count
    recipient: str
    channel: str
    sent_at: Moment
    outcome: str


class Artifacts(Part):
    """What stood before, what stands now, what was derived."""

    model: str | None
    base: Version | None
    published: Version | None
    superseded: list[Superseded]
    datasets: list[SupersededData] = Field(default_factory=list)
    candidates: list[Candidate] = Field(default_factory=list)
    derived: list[Open]


class Ledger(Part):
    """What removals have used up of a model since its last exact training, and what is left by component."""

    model: str | None
    mechanism: Literal["certified", "empirical"] | None
    removals: Count
    remaining: dict[str, Decimal]
    reset_at: Moment | None


class Figure(Part):
    """A figure by the digest of its data; without one the reason says why it is left out."""

    name: str
    data_digest: str | None
    reason: str | None = None
    model: str | None = None
    job: str | None = None


class Limitation(Part):
    """A limitation from the closed catalogue."""

    code: str
    text: str


class Chain(Part):
    """Where the request stands in the log."""

    first_seq: Count | None
    last_seq: Count | None
    head_size: Count | None
    head_hash: Hex | None


class Predicate(Part):
    """The report."""

    report_version: Literal["1"]
    revision: Annotated[int, Field(ge=1)]
    supersedes: Hex | None
    request: Annotated[str, Field(pattern=r"^dr_[0-9a-f]{32}$")]
    tenant_ref: Hex
    verdict: Verdict | None
    sentence: str
    failure_codes: list[str]
    clock: Clock
    identity: Identity
    decision: Decision
    scope: Scope
    processing: list[Processing]
    verification: list[Verification]
    ledger: list[Ledger] = Field(default_factory=list)
    artifacts: list[Artifacts]
    recipients: list[Recipient]
    retention: dict[str, Count | None]
    figures: list[Figure]
    not_tested: list[str]
    limitations: list[Limitation]
    residual_risk: str
    next_review: Moment | None = None
    chain: Chain


class Statement(Part):
    """An in-toto statement about the versions that a request published; the payload of a report's envelope."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[About]
    predicateType: Literal["https://lethe.dev/verification/v1"]  # noqa: N815  the name that in-toto gives it
    predicate: Predicate


def text() -> str:
    """Return the schema as it is kept in docs/reference."""
    schema = Statement.model_json_schema(by_alias=True)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://lethe.dev/verification/v1/report.schema.json"}
    return json.dumps({**head, **schema}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
