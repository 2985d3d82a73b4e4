"""The seed of the retrained references: it depends on what they are made of, not on the job that asks for them.

So every rung of a ladder, and another request on the same records, is judged against the same reference, which is trained once and then found in
the cache. It derives from the tenant's key: the plan tells it, and without the key it says nothing of the records that are left out.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from typing import Any

import rfc8785
from sqlalchemy.orm import Session

from services.jobs import repository
from services.jobs.repository import Work
from services.jobs.workshop import Workshop
from services.model_versions import architecture
from services.tenants.keys import derive, tenant_key


def reference_seed(session: Session, shop: Workshop, work: Work, *, recipe: Mapping[str, Any]) -> int:
    """Return the seed of the references of a job: of its model, dataset version, recipe, and all records that the model has forgotten or is to forget."""
    key = derive(tenant_key(session, shop.lease.tenant_id, shop.keys.kek), "reference:seed")
    left_out = repository.forgotten_digests(session, work.targets, work.dataset.id) | repository.ledger_digests(
        session, work.model.id, work.dataset.id
    )
    made_of = {
        "model": work.model.id.hex,
        "architecture": [work.model.architecture, architecture.parameters_of(work.base, work.model.architecture_params)],
        "task": work.model.task,
        "dataset_version": work.dataset_version.id.hex,
        "recipe": dict(recipe),
    }
    return seed_of(key, made_of, left_out)


def seed_of(key: bytes, made_of: Mapping[str, Any], left_out: Collection[bytes]) -> int:
    """Return 31 bits of the HMAC under `key` of what a reference is made of and of the records it does without, in no order."""
    document = {**made_of, "left_out": sorted(digest.hex() for digest in left_out)}
    return int.from_bytes(hmac.digest(key, rfc8785.dumps(document), hashlib.sha256)[:4]) >> 1
