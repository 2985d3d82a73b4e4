"""The certified ledger from manifest to next job, and the secret that a certified job draws from."""

import json
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from models_store.manifest import canonical
from services.jobs.steps import materialize
from services.jobs.steps.publish import compose

LEDGER = {"l2": 0.02, "scale": 16.0, "fingerprint": "ab" * 32, "budget": {"mechanism": "certified", "spent": {"bound": 0.125}, "keys": ["cd"]}}
SEEDS = {"train": 1111, "unlearn": 2222, "evaluate": 3333}


OURS = UUID(int=9)


def work(*, manifest: Any = None, job_id: UUID | None = OURS) -> Any:
    version = SimpleNamespace(number=1, manifest_digest="ab" * 32, recipe={"epochs": 1}, job_id=job_id, manifest=manifest)
    return SimpleNamespace(
        job=SimpleNamespace(id=UUID(int=7), kind="unlearn", round=1, method="certified_removal", params={}, seeds=SEEDS),
        model=SimpleNamespace(name="m", architecture="mlp", architecture_params={}, task="classification"),
        dataset=SimpleNamespace(name="d"),
        dataset_version=SimpleNamespace(number=1),
        base=version,
        zero_shot=False,
    )


def composed(**run: Any) -> Any:
    made = {"candidate": {"digest": "ef" * 32, "size_bytes": 10}, "run": run}
    return compose(work(), made, next_digest="01" * 32)


def test_the_ledger_goes_into_the_manifest_and_from_there_to_the_next_job() -> None:
    manifest = json.loads(canonical(composed(notes={"ledger": LEDGER}, secret_seeds=True)))

    assert manifest["ledger"] == LEDGER
    assert materialize.inherited_by(work(manifest=manifest)) == {"ledger": LEDGER}


def test_an_uploaded_version_and_one_without_a_ledger_hand_on_nothing() -> None:
    manifest = json.loads(canonical(composed(notes={})))

    assert "ledger" not in manifest
    assert materialize.inherited_by(work(manifest=manifest)) == {}
    assert materialize.inherited_by(work(manifest={"ledger": LEDGER}, job_id=None)) == {}
    assert materialize.inherited_by(work(manifest=None)) == {}


def test_the_manifest_of_a_certified_run_holds_the_seed_of_its_evaluation_alone() -> None:
    assert composed(secret_seeds=True).seeds == {"evaluate": 3333}
    assert composed().seeds == SEEDS


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Any:
    @contextmanager
    def effect() -> Any:
        yield None

    monkeypatch.setattr(materialize, "tenant_key", lambda _session, tenant, _kek: tenant.bytes * 2)
    return SimpleNamespace(effect=effect, lease=SimpleNamespace(tenant_id=UUID(int=5)), keys=SimpleNamespace(kek=""))


def test_a_certified_job_draws_from_a_secret_that_a_resume_finds_again_and_a_reader_cannot(shop: Any) -> None:
    plain = materialize.seeds_of(shop, work(), {"guarantee": "approximate"})
    secret = [materialize.seeds_of(shop, work(), {"guarantee": "certified"}) for _ in range(2)]
    shop.lease.tenant_id = UUID(int=6)
    other = materialize.seeds_of(shop, work(), {"guarantee": "certified"})

    assert plain.model_dump(exclude_none=True) == SEEDS
    assert secret[0] == secret[1]
    assert len({plain.unlearn, secret[0].unlearn, other.unlearn}) == 3
    assert secret[0].evaluate == SEEDS["evaluate"]
    assert 0 <= secret[0].unlearn < 2**53
