"""Seeds of references, which depend on what they are made of and not on the job that asks for them; and jobs that train some of them ahead.

So every rung of a ladder, and another request on the same records, is judged against the same reference, which is trained once and then found in
the cache. Seeds derive from the tenant's key: the plan tells them, and without the key they say nothing of the records that are left out.

Which records a retrained reference does without is known with the request alone. Models on random halves of the records know of no request: where a
policy of the tenant asks for an attack or a mode of reference that uses them, a job of kind `reference` trains them when a version is published. A request that comes
before, or whose records make another set, finds none and trains what it needs itself.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from uuid import UUID

import rfc8785
from sqlalchemy.orm import Session

from services.audit import log
from services.clock import uuid7
from services.db import outbox
from services.db.tables import Job
from services.jobs import repository
from services.jobs.repository import Work
from services.jobs.steps.materialize import recipe_of
from services.jobs.workshop import Workshop
from services.model_versions import architecture
from services.tenants.keys import derive, tenant_key


def reference_seed(session: Session, shop: Workshop, work: Work, *, recipe: Mapping[str, Any]) -> int:
    """Return the seed of the references of a job: of its model, dataset version, recipe, and all records that the model has forgotten or is to forget."""
    left_out = repository.forgotten_digests(session, work.targets, work.dataset.id) | repository.ledger_digests(
        session, work.model.id, work.dataset.id
    )
    return seed_of(_key(session, shop, "reference:seed"), _made_of(work, recipe), left_out)


def shadow_seed(session: Session, shop: Workshop, work: Work, *, recipe: Mapping[str, Any]) -> int:
    """Return the seed of models on random halves of the records: as `reference_seed`, but no request has a say in it."""
    return seed_of(_key(session, shop, "shadows:seed"), _made_of(work, recipe), repository.ledger_digests(session, work.model.id, work.dataset.id))


def _key(session: Session, shop: Workshop, purpose: str) -> bytes:
    return derive(tenant_key(session, shop.lease.tenant_id, shop.keys.kek), purpose)


def _made_of(work: Work, recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": work.model.id.hex,
        "architecture": [work.model.architecture, architecture.parameters_of(work.base, work.model.architecture_params)],
        "task": work.model.task,
        "dataset_version": work.dataset_version.id.hex,
        "recipe": dict(recipe),
    }


def seed_of(key: bytes, made_of: Mapping[str, Any], left_out: Collection[bytes]) -> int:
    """Return 31 bits of the HMAC under `key` of what a reference is made of and of the records it does without, in no order."""
    document = {**made_of, "left_out": sorted(digest.hex() for digest in left_out)}
    return int.from_bytes(hmac.digest(key, rfc8785.dumps(document), hashlib.sha256)[:4]) >> 1


WITH_MODELS = frozenset({"lira", "rmia"})
"""Attacks that compare with models on random halves of the records."""
SHADOW_BAND = "shadow-band"
"""The mode of reference in which readings are held against such models."""
MODELS = 8
"""How many of them an attack takes where its parameters do not say, and that mode of reference."""
LATER = 200
"""The priority of jobs that nobody waits for; others have 100, and the least comes first."""


def uses_models(readings: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return how many models on random halves these readings of a plan or policy ask for."""
    return {int((reading.get("parameters") or {}).get("models", MODELS)) for reading in readings if reading["name"] in WITH_MODELS}


def asked_by(document: Mapping[str, Any]) -> set[int]:
    """Return how many models on random halves a policy's verification document asks for, by its attacks and by its reference."""
    by_attacks = {number for kind in ("class", "records") for number in uses_models(document.get(kind, ()))}
    return by_attacks | ({MODELS} if document.get("reference") == SHADOW_BAND else set())


def ask_ahead(session: Session, shop: Workshop, work: Work, job: Job, version_id: UUID) -> UUID | None:
    """Queue a job that trains the reference models of the version that `job` published, in place of one that still waits; None where nobody asks for any."""
    numbers = {number for document in repository.verification_documents(session) for number in asked_by(document)}
    if work.model.task != "classification" or work.zero_shot or recipe_of(work) is None or not numbers:
        return None
    repository.cancel_waiting(session, job.model_id, kind="reference")
    new = uuid7(shop.clock)
    repository.insert_reference(session, job, {"id": new, "base_version_id": version_id, "params": {"models": sorted(numbers)}, "priority": LATER})
    outbox.ring(session, tenant_id=job.tenant_id, topic="job.ring", ref=new)
    log.record(session, tenant_id=job.tenant_id, object_id=new, type="job.queued", body={"kind": "reference", "after": job.id.hex})
    return new
