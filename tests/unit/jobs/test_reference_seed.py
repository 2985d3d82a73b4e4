"""The seed of the retrained references: the same for every rung and every request on the same records, and nothing of them without the key."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch

from services.derived import Folder
from services.jobs import repository
from services.jobs.compute import evaluate as evaluation
from services.jobs.messages import REFERENCE_FILE, RUN_FILE, TWIN_FILE
from services.jobs.outcomes import fresh_seed
from services.jobs.steps import materialize, reference
from services.jobs.steps import plan as planning
from services.jobs.steps.reference import seed_of
from services.jobs.workshop import canonical_digest
from tests.unit.jobs.test_bench_cache import LIMITS, RECIPE, bench_of, cache_over, splits_of

torch.set_num_threads(1)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
RECORDS = [bytes([number]) * 32 for number in range(5)]
SEEDS = {"train": 11, "unlearn": 22, "evaluate": 33}


def work(*, job: int = 1, seeds: dict[str, int] = SEEDS, recipe: dict[str, Any] | None = None, dataset_version: int = 4, model: int = 3) -> Any:
    """A claimed job; what `job` says is what differs from rung to rung and from request to request."""
    return SimpleNamespace(
        job=SimpleNamespace(
            id=UUID(int=job), kind="unlearn", tenant_id=UUID(int=5), round=1, rung=job, method="m", params={}, seeds=seeds, choice=None
        ),
        model=SimpleNamespace(id=UUID(int=model), architecture="mlp", architecture_params={"outputs": 2}, task="classification"),
        dataset=SimpleNamespace(id=UUID(int=6), name="d"),
        dataset_version=SimpleNamespace(id=UUID(int=dataset_version), manifest_digest="ab" * 32, number=1),
        base=SimpleNamespace(id=UUID(int=7), manifest_digest="cd" * 32, manifest=None, job_id=None, recipe=recipe or RECIPE.model_dump(mode="json")),
        policy=SimpleNamespace(key="demo", version=1, verification={}, limits={}, ladder=[{"method": "retrain"}]),
        targets=[SimpleNamespace(id=UUID(int=100 + job), records_commitment="00")],
        requests=[object()],
        request_kind="records",
        of_range=False,
        granularity="records",
        zero_shot=False,
    )


class Shop:
    """A workshop without a database: what the targets forget, what the model has forgotten before, and the plans that were frozen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forgotten, self.before, self.key = frozenset(RECORDS), frozenset[bytes](), KEY
        self.lease, self.keys = SimpleNamespace(tenant_id=UUID(int=5)), SimpleNamespace(kek="")
        self.job: Any = None
        self.looks = 1
        self.plans: dict[UUID, dict[str, Any]] = {}
        monkeypatch.setattr(reference, "tenant_key", lambda _session, _tenant, _kek: self.key)
        monkeypatch.setattr(repository, "forgotten_digests", lambda _session, _targets, _dataset: self.forgotten)
        monkeypatch.setattr(repository, "ledger_digests", lambda _session, _model, _dataset: self.before)
        monkeypatch.setattr(repository, "job_row", lambda _session, _id: self.job)
        monkeypatch.setattr(repository, "plan_digest", lambda _session, job: canonical_digest(self.plans[job.id]) if job.id in self.plans else None)
        monkeypatch.setattr(repository, "plan_body", lambda _session, job: self.plans[job.id])
        monkeypatch.setattr(repository, "save_plan", lambda _session, job, body, _digest: self.plans.update({job.id: body}))
        monkeypatch.setattr(repository, "finish_step", lambda *_given, **_facts: None)
        monkeypatch.setattr(repository, "measured_shares", lambda _session, _version: (None, None))
        monkeypatch.setattr(repository, "earlier_readings", lambda _session, _model, *, about: [])
        monkeypatch.setattr(repository, "looks", lambda _session, _job: self.looks)
        monkeypatch.setattr(planning.log, "record", lambda *_given, **_facts: None)
        monkeypatch.setattr(planning.catalogue, "entry", lambda *_given: None)

    def effect(self) -> Any:
        class Nothing:
            def __enter__(self) -> None: ...

            def __exit__(self, *_error: object) -> None: ...

        return Nothing()

    def frozen(self, work: Any) -> dict[str, Any]:
        """Freeze the job's plan and return it."""
        self.job = work.job
        return planning.freeze(self, work, roles={"forget": 5})  # pyright: ignore[reportArgumentType]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(monkeypatch)


def next_rung(seeds: dict[str, int]) -> dict[str, int]:
    return {name: fresh_seed(seed, 1) for name, seed in seeds.items()}


def test_every_rung_and_every_request_on_the_same_records_freezes_one_seed_of_references_and_fresh_ones_of_its_own(shop: Shop) -> None:
    first = shop.frozen(work(job=1))["seeds"]
    rung = shop.frozen(work(job=2, seeds=next_rung(SEEDS)))["seeds"]
    request = shop.frozen(work(job=3, seeds={"train": 7, "unlearn": 8, "evaluate": 9}))["seeds"]

    assert first["reference"] == rung["reference"] == request["reference"]
    assert 0 <= first["reference"] < 2**31
    assert {name: first[name] for name in SEEDS} == SEEDS
    assert not {first["unlearn"], first["evaluate"]} & {rung["unlearn"], rung["evaluate"], request["unlearn"], request["evaluate"]}


def test_a_plan_that_is_frozen_keeps_its_seed_whatever_has_become_of_the_records_since(shop: Shop) -> None:
    before = shop.frozen(work())
    shop.before = frozenset([b"\xff" * 32])

    assert shop.frozen(work()) == before
    assert materialize.seeds_of(shop, work(), before).reference == before["seeds"]["reference"]  # pyright: ignore[reportArgumentType]


def test_other_records_another_recipe_dataset_version_model_or_tenant_have_another_seed(shop: Shop) -> None:
    found = [shop.frozen(work(job=1))]
    found.append(shop.frozen(work(job=2, recipe=RECIPE.model_copy(update={"epochs": 2}).model_dump(mode="json"))))
    found.append(shop.frozen(work(job=3, dataset_version=44)))
    found.append(shop.frozen(work(job=4, model=33)))
    shop.forgotten = frozenset(RECORDS[:4])
    found.append(shop.frozen(work(job=5)))
    shop.before = frozenset(RECORDS[3:])
    assert shop.frozen(work(job=6))["seeds"]["reference"] == found[0]["seeds"]["reference"]  # what was forgotten before is left out as well
    shop.before, shop.key = frozenset(), OTHER_KEY
    found.append(shop.frozen(work(job=7)))

    assert len({plan["seeds"]["reference"] for plan in found}) == len(found)


def test_the_seed_does_not_depend_on_the_order_of_records_and_cannot_be_had_without_the_key() -> None:
    assert seed_of(KEY, {"a": 1}, RECORDS) == seed_of(KEY, {"a": 1}, list(reversed(RECORDS)))
    assert seed_of(KEY, {"a": 1}, RECORDS) != seed_of(OTHER_KEY, {"a": 1}, RECORDS)


def test_a_job_without_a_retrained_reference_freezes_no_seed_of_one(shop: Shop) -> None:
    uploaded = work()
    uploaded.base.recipe = None
    policy = work(job=2)
    policy.policy.verification = {"reference": "none"}

    assert "reference" not in shop.frozen(uploaded)["seeds"]
    assert "reference" not in shop.frozen(policy)["seeds"]
    assert materialize.seeds_of(shop, uploaded, shop.frozen(uploaded)).reference is None  # pyright: ignore[reportArgumentType]


def test_two_rungs_of_one_request_train_reference_and_twin_once(shop: Shop, tmp_path: Path) -> None:
    folder, splits = Folder(tmp_path / "kept", LIMITS), splits_of(range(5), 5)
    forgotten = [f"{number:032x}" for number in range(5)]
    rungs = (work(job=1), work(job=2, seeds=next_rung(SEEDS)))
    states, hits = [], []
    for number, rung in enumerate(rungs):
        seeds = materialize.seeds_of(shop, rung, shop.frozen(rung))  # pyright: ignore[reportArgumentType]
        folder.sweep(spare=rung.job.id.hex)
        folder.open(rung.job.id.hex, forgotten)
        bench = bench_of(tmp_path / str(number), splits, cache=cache_over(folder, job=rung.job.id.hex), seeds=seeds)
        pair = [evaluation._retrained(bench, purpose, file) for purpose, file in (("reference", REFERENCE_FILE), ("reference_twin", TWIN_FILE))]
        bench.note_cache()
        folder.close(rung.job.id.hex)
        states.append([model.state_dict() for model in pair])
        hits.append([entry["hit"] for entry in json.loads((bench.folder / RUN_FILE).read_text())["derived"]])

    assert hits == [[False, False], [True, True]]
    assert all(torch.equal(states[0][which][name], states[1][which][name]) for which in (0, 1) for name in states[0][which])
    assert not all(torch.equal(states[0][0][name], states[0][1][name]) for name in states[0][0])  # the twin has a seed of its own
