"""Jobs that train reference models ahead: when one is asked for, and how it ends."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import torch

from services.clock import SystemClock
from services.errors import InvalidInput
from services.jobs import pipeline, repository
from services.jobs.compute.reference import reference as train_ahead
from services.jobs.messages import Seeds
from services.jobs.pipeline import Pipeline
from services.jobs.steps import reference
from services.jobs.steps.reference import MODELS, ask_ahead, uses_models
from services.learning.data import Splits
from services.verification.reference_attack import ReferenceAttack
from tests.unit.jobs.test_bench_cache import bench_of, cache_over, rows, splits_of

torch.set_num_threads(1)

LIRA = {"kind": "attack", "name": "lira", "split": "forget_train"}
RECIPE = {"epochs": 1}


def test_without_a_number_an_attack_takes_as_many_models_as_its_parameters_say() -> None:
    assert ReferenceAttack.Parameters().models == MODELS
    assert uses_models([LIRA, {**LIRA, "name": "rmia", "parameters": {"models": 16}}, {**LIRA, "name": "mia_v2"}]) == {8, 16}


def work(*, task: str = "classification", recipe: Any = RECIPE, zero_shot: bool = False) -> Any:
    job = SimpleNamespace(id=UUID(int=1), kind="unlearn", tenant_id=UUID(int=2), model_id=UUID(int=3), queue="cpu", params={})
    return SimpleNamespace(job=job, model=SimpleNamespace(task=task), base=SimpleNamespace(recipe=recipe), zero_shot=zero_shot)


@pytest.mark.parametrize(
    ("documents", "facts", "asked"),
    [
        ([{"class": [LIRA], "records": []}, {"records": [{**LIRA, "parameters": {"models": 4}}]}], {}, [4, 8]),
        ([{"class": [{**LIRA, "name": "mia_v2"}]}], {}, None),
        ([{"class": [], "records": [], "reference": "shadow-band"}, {"class": [{**LIRA, "parameters": {"models": 4}}]}], {}, [4, 8]),
        ([{"class": [], "records": [], "reference": "shadow-band"}], {"task": "regression"}, None),
        ([{"class": [LIRA]}], {"task": "regression"}, None),
        ([{"class": [LIRA]}], {"recipe": None}, None),
        ([{"class": [LIRA]}], {"zero_shot": True}, None),
    ],
)
def test_a_job_is_queued_where_a_policy_names_an_attack_that_uses_them(
    documents: Any, facts: dict[str, Any], asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[Any] = []
    monkeypatch.setattr(repository, "verification_documents", lambda _session: documents)
    monkeypatch.setattr(repository, "cancel_waiting", lambda _session, model, *, kind: queued.append((model.int, kind)))
    monkeypatch.setattr(repository, "insert_reference", lambda _session, _job, values: queued.append(values))
    monkeypatch.setattr(reference.outbox, "ring", lambda *_given, **facts: queued.append(facts["topic"]))
    monkeypatch.setattr(reference.log, "record", lambda *_given, **_facts: None)
    claimed = work(**facts)

    found = ask_ahead(cast("Any", None), cast("Any", SimpleNamespace(clock=SystemClock())), claimed, claimed.job, UUID(int=9))

    if asked is None:
        assert (found, queued) == (None, [])
        return
    assert queued[0] == (3, "reference")
    assert (queued[1]["params"], queued[1]["base_version_id"], queued[1]["priority"]) == ({"models": asked}, UUID(int=9), 200)
    assert (queued[1]["id"], queued[2]) == (found, "job.ring")


def test_what_was_trained_ahead_is_found_by_the_evaluation_of_a_request(tmp_path: Path) -> None:
    from services.derived import Folder, Limits
    from services.verification.shadows import shadows

    folder = Folder(tmp_path / "kept", Limits(size_bytes=10_000_000, ttl_s=3600.0))
    whole, numbers = rows(), torch.arange(569)
    thirds = [whole.take(numbers[400 + k :: 3]) for k in range(3)]
    nobody = Splits(whole.take(numbers[:0]), whole.take(numbers[:400]), *thirds, "records", ())
    request = Splits(whole.take(numbers[100:150]), whole.take(torch.cat([numbers[:100], numbers[150:400]])), *thirds, "records", ())
    ahead = bench_of(tmp_path / "1", nobody, params={"models": [2]}, cache=cache_over(folder), seeds=Seeds(evaluate=5, shadows=77))
    later = bench_of(tmp_path / "2", request, cache=cache_over(folder), seeds=Seeds(evaluate=6))

    train_ahead(ahead)
    run = later.run("evaluate", 6)
    run.shadow_seed = 77
    shadows(later.splits, later.task, run, models=2)
    later.note_cache()

    assert [(used["kind"], used["hit"]) for used in later.cache.used] == [("shadow", True)]  # pyright: ignore[reportAttributeAccessIssue]


def test_without_records_to_train_on_the_job_says_so(tmp_path: Path) -> None:
    splits = splits_of(range(5), 5)
    empty = splits.retain.take(torch.arange(0))
    bench = bench_of(tmp_path, replace(splits, forget=empty, retain=empty), params={"models": [2]})

    with pytest.raises(InvalidInput, match="no_training_data_held"):
        train_ahead(bench)


def test_the_job_ends_without_a_version_and_sweeps_what_was_forgotten_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    class Effect:
        def __enter__(self) -> None: ...

        def __exit__(self, *_error: object) -> None: ...

    class Ahead(Pipeline):
        def __init__(self) -> None:
            job = SimpleNamespace(id=UUID(int=1), kind="reference", params={"models": [2]}, cancel_requested_at=None, state="running")
            folder = SimpleNamespace(sweep=lambda *, spare: done.append(("sweep", spare)))
            kept = SimpleNamespace(step=lambda name: done.append(name) or 1.0)
            shop = SimpleNamespace(folder=tmp_path, compute=kept, effect=Effect, cache=lambda _work: folder)
            self.shop, self.done, self.plan = cast("Any", shop), {}, {}
            self.work = cast("Any", SimpleNamespace(job=job))

        def _materialize(self) -> None:
            done.append("materialize")

        def _open(self) -> None:
            done.append(self.plan["seeds"])

        def _start(self, name: str) -> None: ...

        def _finish(self, name: str, *_output: Any, **_more: Any) -> None: ...

    monkeypatch.setattr(pipeline, "recipe_of", lambda _work: RECIPE)
    monkeypatch.setattr(pipeline, "shadow_seed", lambda _session, _shop, _work, *, recipe: 77)
    monkeypatch.setattr(repository, "job_row", lambda _session, _id: SimpleNamespace(cancel_requested_at=None, state="running"))
    monkeypatch.setattr(repository, "end_attempt", lambda *_given, **facts: done.append(facts["outcome"]))
    monkeypatch.setattr(repository, "move", lambda _session, _job, event: f"after {event}")

    assert Ahead().run() == "after finished"
    assert done == ["materialize", {"shadows": 77}, "reference", ("sweep", UUID(int=1).hex), "succeeded"]
