"""What methods keep from run to run: equal to the live result bit for bit, really kept, and never found under another key."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from services.clock import FixedClock
from services.derived import Folder, Limits
from services.learning.cache import FolderCache, NoCache, model_digest, records_digest
from services.learning.run import Run
from services.unlearning.mechanisms.distillation import remembered_probabilities, teacher_probabilities
from services.unlearning.mechanisms.features import feature_split
from services.unlearning.mechanisms.importance import Measure, Whole
from services.unlearning.mechanisms.noise import learn_noise
from services.unlearning.methods.bad_teacher import BadTeacher
from services.unlearning.methods.concept_poisoning import ConceptPoisoning
from services.unlearning.methods.lfssd import Lfssd
from services.unlearning.methods.ssd import Ssd
from services.unlearning.methods.unsir import Unsir
from services.verification import evaluation
from services.verification.features import features_on
from services.verification.metric import Models

torch.set_num_threads(1)

LIMITS = Limits(size_bytes=100_000_000, ttl_s=3600.0)
FACTS = {"code": "a", "device": "cpu"}


def digest_for(identity: str) -> str:
    return hashlib.sha256(f"secret/{identity}".encode()).hexdigest()[:32]


@pytest.fixture
def cache_of(tmp_path, mlp_lab) -> Callable[..., FolderCache]:
    """A cache over one folder; each call is another process's."""
    digests = {identity: digest_for(identity) for identity in mlp_lab.train.ids}
    folder = Folder(tmp_path / "cache", LIMITS, clock=FixedClock(datetime(2026, 3, 1, tzinfo=UTC)))

    def make(**facts: object) -> FolderCache:
        return FolderCache(folder, facts={**FACTS, **facts}, digests=digests, device="cpu")

    return make


CASES = [
    pytest.param(Ssd, {}, "importance", id="ssd"),
    pytest.param(Ssd, {"importance": "batch", "alpha": 5.0, "retain_drop": 1.0}, "importance", id="ssd-batch"),
    pytest.param(Lfssd, {"alpha": 5.0, "retain_drop": 1.0, "guard_factor": 100}, "importance", id="lfssd"),
    pytest.param(BadTeacher, {"min_steps": 10}, "teacher_probabilities", id="bad_teacher"),
    pytest.param(Unsir, {"noise_steps": 5, "noise_batch": 16, "min_steps": 10}, "noise", id="unsir"),
]


@pytest.mark.parametrize(("family", "chosen", "kind"), CASES)
def test_a_method_gives_the_same_bytes_without_a_cache_on_a_miss_and_on_a_hit(family, chosen, kind, mlp_lab, cache_of, digest_of):
    caches = [NoCache(), cache_of(), cache_of()]
    splits = mlp_lab.splits() if family is not Unsir else mlp_lab.without_forget()
    made = []

    for cache in caches:
        model = mlp_lab.copy()
        made.append(digest_of(family(family.Parameters(**chosen)).unlearn(model, splits, mlp_lab.task, mlp_lab.run(cache=cache))))

    assert made[0] == made[1] == made[2]
    assert [[(used["kind"], used["hit"]) for used in cache.used] for cache in caches[1:]] == [[(kind, False)], [(kind, True)]]


def importance_of(lab, cache, *, classes=(3,), measure=None, **change):
    model = lab.copy()
    if change.get("weights"):
        with torch.no_grad():
            model.head.bias[0] += 1e-6
    splits = lab.splits(classes=classes)
    whole = Whole.of(splits.forget, splits.retain)
    if change.get("fewer"):
        whole = Whole(whole.split.take(torch.arange(1, len(whole.split))))
    return whole.importance(model, lab.task, Run(seed=change.get("seed", 0), cache=cache), measure or Measure("loss", "per_sample", 64), None)


def test_importance_serves_every_request_on_the_same_records_and_nothing_else(mlp_lab, cache_of):
    live, _ = importance_of(mlp_lab, NoCache())
    first, was_kept = importance_of(mlp_lab, cache_of())
    second, now_kept = importance_of(mlp_lab, cache_of(), classes=(6,), seed=9)

    assert (was_kept, now_kept) == (False, True)
    assert all(torch.equal(live[name], first[name]) and torch.equal(live[name], second[name]) for name in live)
    for change in (
        {"weights": True},
        {"fewer": True},
        {"measure": Measure("output_norm", "per_sample", 64)},
        {"measure": Measure("loss", "batch", 64)},
    ):
        assert not importance_of(mlp_lab, cache_of(), **change)[1]
    assert not importance_of(mlp_lab, cache_of(code="b"))[1]


def test_kept_teacher_probabilities_are_the_live_ones_and_belong_to_rows_weights_and_temperature(mlp_lab, cache_of):
    rows, model = mlp_lab.train.take(torch.arange(1100)), mlp_lab.copy()
    live = teacher_probabilities(model, rows, temperature=2.0)
    cache = cache_of()

    def asked(split=rows, *, temperature=2.0, teacher=model):
        return remembered_probabilities(teacher, split, Run(seed=0, cache=cache), temperature=temperature)

    kept = [asked(), asked()]
    other = mlp_lab.copy()
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    asked(temperature=1.0)
    asked(rows.take(torch.arange(1000)))
    asked(replace(rows, x=rows.x.flip(0)))
    asked(teacher=other)

    assert torch.equal(kept[0], live)
    assert torch.equal(kept[1], live)
    assert [used["hit"] for used in cache.used] == [False, True, False, False, False, False]


def test_probabilities_whose_rows_were_dropped_are_computed_again(mlp_lab, cache_of):
    rows, model, cache = mlp_lab.train.take(torch.arange(50)), mlp_lab.copy(), cache_of()
    first = remembered_probabilities(model, rows, Run(seed=0, cache=cache), temperature=1.0)

    gone = cache.folder.forget({digest_for(rows.ids[7])})
    (_, left) = cache.folder.entries()[0]
    again = remembered_probabilities(model, rows, Run(seed=0, cache=cache), temperature=1.0)

    assert [(each.disposition, each.rows) for each in gone] == [("rows dropped", 1)]
    assert left.records == tuple(digest_for(identity) for row, identity in enumerate(rows.ids) if row != 7)
    assert [used["hit"] for used in cache.used] == [False, False]
    assert torch.equal(first, again)


def noise_of(lab, cache, *, seed=1, classes=(3,), model=None, **chosen):
    given = {"batch": 16, "steps": 4, "lr": 0.1, "l2": 0.1, "train_mode": False, **chosen}
    return learn_noise(model or lab.copy(), classes, torch.Size([1, 8, 8]), lab.task, lab.run(seed=seed, cache=cache), **given)


def test_kept_noise_is_the_live_one_and_belongs_to_weights_classes_parameters_and_seed(mlp_lab, cache_of):
    live, cache = noise_of(mlp_lab, NoCache()), cache_of()
    kept = [noise_of(mlp_lab, cache), noise_of(mlp_lab, cache)]
    other = mlp_lab.copy()
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    for change in (
        {"seed": 2},
        {"classes": (4,)},
        {"classes": (3, 4)},
        {"steps": 5},
        {"l2": 0.2},
        {"signs": (1.0,)},
        {"train_mode": True},
        {"model": other},
    ):
        noise_of(mlp_lab, cache, **change)

    for each in kept:
        assert torch.equal(each.rows, live.rows)
        assert torch.equal(each.labels, live.labels)
        assert torch.equal(each.losses, live.losses)
    assert [used["hit"] for used in cache.used] == [False, True] + [False] * 8


@pytest.fixture
def many(monkeypatch) -> None:
    """Let even a few digits and a small network count as so much work that what comes of it is kept."""
    monkeypatch.setattr("services.learning.cache.WORTH_KEEPING", 0)


HEAD = {"trainable": "head", "lr": 1e-2, "max_epochs": 2, "retain_floor": 1.0, "min_steps": 0}


@pytest.mark.usefixtures("many")
def test_a_head_trained_on_kept_features_is_the_live_one_bit_for_bit(mlp_lab, cache_of, digest_of):
    caches, made = [NoCache(), cache_of(), cache_of()], []

    for cache in caches:
        method = ConceptPoisoning(ConceptPoisoning.Parameters(**HEAD))
        made.append(digest_of(method.unlearn(mlp_lab.copy(), mlp_lab.splits(), mlp_lab.task, mlp_lab.run(cache=cache))))

    assert made[0] == made[1] == made[2]
    assert {used["kind"] for cache in caches[1:] for used in cache.used} == {"features"}
    assert not all(used["hit"] for used in caches[1].used)
    assert all(used["hit"] for used in caches[2].used)


def features_of(lab, cache, rows, *, model=None):
    model, reports = model or lab.copy(), []
    run = lab.run(cache=cache, on_progress=reports.append, report_every_s=0.0)
    found = feature_split(model, model.head, rows, lab.task, run, stage="features")
    return found.x, [(each.step, each.of) for each in reports]


@pytest.mark.usefixtures("many")
def test_kept_features_are_the_live_ones_and_serve_other_labels_and_other_heads_and_no_other_weights(mlp_lab, cache_of):
    rows, cache = mlp_lab.splits(classes=(3,)).retain, cache_of()
    later = mlp_lab.splits(classes=(3, 6)).retain
    other_head, other_body = mlp_lab.copy(), mlp_lab.copy()
    with torch.no_grad():
        other_head.head.bias[0] += 1
        other_body.features[1].bias[0] += 1e-6

    live = features_of(mlp_lab, NoCache(), rows)
    kept = [features_of(mlp_lab, cache, rows), features_of(mlp_lab, cache, rows)]
    fewer = features_of(mlp_lab, cache, later)
    headed = features_of(mlp_lab, cache, rows, model=other_head)
    features_of(mlp_lab, cache, rows, model=other_body)

    assert [torch.equal(found, live[0]) and told == live[1] for found, told in (*kept, headed)] == [True] * 3
    assert torch.equal(fewer[0], features_of(mlp_lab, NoCache(), later)[0])
    assert live[1][-1] == (live[1][-1][1],) * 2
    assert [used["hit"] for used in cache.used] == [False] * 9 + [True] * 9 + [True] * 8 + [True] * 9 + [False] * 9


@pytest.mark.usefixtures("many")
def test_features_of_an_erased_record_are_dropped_and_the_label_is_read_again(mlp_lab, cache_of):
    rows, cache = mlp_lab.train.with_labels((1, 2), keep=True), cache_of()
    live, _ = features_of(mlp_lab, cache, rows)

    erased = digest_for(rows.ids[0])
    gone = cache.folder.forget({erased})
    again, _ = features_of(mlp_lab, cache, rows)

    assert sorted(each.disposition for each in gone) == ["kept", "rows dropped"]
    assert torch.equal(again, live)
    assert [used["hit"] for used in cache.used] == [False, False, *([False, True] if int(rows.y[0]) == 1 else [True, False])]


@pytest.mark.usefixtures("many")
def test_outputs_and_features_that_an_evaluation_keeps_are_the_live_ones_and_those_of_erased_records_go(mlp_lab, cache_of):
    rows, other, body = mlp_lab.train.take(torch.arange(300)), mlp_lab.architecture.fresh(1), mlp_lab.copy()
    with torch.no_grad():
        body.features[1].bias[0] += 1e-6

    def asked(cache, model=mlp_lab.original, split=rows, *, batch=100):
        plan, models = {"seeds": {"evaluate": 5}, "batch_size": batch}, Models(mlp_lab.original, model)
        task, run = evaluation.shared(plan, mlp_lab.task, mlp_lab.run(cache=cache), models)
        return task.predict(model, split), features_on(model, split, run)

    cache = cache_of()
    live = asked(None)
    kept = [asked(cache), asked(cache)]
    for change in ({"model": other}, {"model": body}, {"split": rows.take(torch.arange(299))}, {"split": replace(rows, x=rows.x.flip(0))}):
        asked(cache, **change)
    asked(cache, batch=50)
    used = [(each["kind"], each["hit"]) for each in cache.used]
    erased = {digest_for(rows.ids[7])}
    gone = {each.disposition for each in cache.folder.forget(erased)}
    again = asked(cache)

    for outputs, features in (*kept, again):
        assert torch.equal(outputs, live[0])
        assert np.array_equal(features, live[1])
    hits = [False, False, True, True, *[False] * 8, False, True]  # another batch size is another key to the outputs, and not to the features
    assert used == list(zip(["outputs", "features"] * 7, hits, strict=True))
    assert gone == {"rows dropped"}
    assert [each["hit"] for each in cache.used[len(used) :]] == [False, False]


@pytest.mark.usefixtures("many")
def test_outputs_of_models_that_are_not_judged_are_not_kept(mlp_lab, cache_of):
    """Reference models learned from random halves: what they say of a record that stays would outlive one that goes."""
    cache = cache_of()
    models = Models(mlp_lab.original, mlp_lab.copy())
    task, _ = evaluation.shared({"seeds": {"evaluate": 5}}, mlp_lab.task, mlp_lab.run(cache=cache), models)

    task.predict(mlp_lab.architecture.fresh(1), mlp_lab.train)
    assert cache.used == []
    task.predict(models.unlearned, mlp_lab.train)
    assert [used["kind"] for used in cache.used] == ["outputs"]


def test_an_evaluation_of_few_records_keeps_nothing(mlp_lab, cache_of):
    cache = cache_of()
    models = Models(mlp_lab.original, mlp_lab.original)
    task, run = evaluation.shared({"seeds": {"evaluate": 5}}, mlp_lab.task, mlp_lab.run(cache=cache), models)

    task.predict(mlp_lab.original, mlp_lab.train)
    features_on(mlp_lab.original, mlp_lab.train, run)
    feature_split(mlp_lab.original, mlp_lab.original.head, mlp_lab.train, mlp_lab.task, mlp_lab.run(cache=cache), stage="features")

    assert cache.used == []


def test_no_record_id_and_no_unknown_record_reaches_the_folder(mlp_lab, cache_of):
    cache = cache_of()
    importance_of(mlp_lab, cache)
    stored = b"".join(path.read_bytes() for path in cache.folder.path.iterdir())

    assert b"digit-" not in stored
    assert digest_for("digit-0").encode() in stored

    cache.digests = {}
    assert not importance_of(mlp_lab, cache, fewer=True)[1]
    assert not importance_of(mlp_lab, cache, fewer=True)[1]


def test_a_value_that_cannot_be_kept_is_computed_and_fails_nothing(mlp_lab, cache_of, monkeypatch):
    cache = cache_of()
    monkeypatch.setattr(Folder, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))

    live, _ = importance_of(mlp_lab, NoCache())
    found, _ = importance_of(mlp_lab, cache)

    assert all(torch.equal(found[name], live[name]) for name in live)
    assert cache.used == []
    halves = cache.remember("halves", dict, lambda: {"x": torch.ones(2, dtype=torch.bfloat16)}, records=None)
    assert halves["x"].dtype == torch.bfloat16


def test_digests_depend_on_every_byte(mlp_lab):
    split, model = mlp_lab.train.take(torch.arange(5)), mlp_lab.copy()
    other = replace(split, y=(split.y + 1) % 10)

    assert len({records_digest(each) for each in (split, other, split.take(torch.arange(4)), replace(split, ids=split.ids[::-1]))}) == 4
    assert model_digest(model) == model_digest(mlp_lab.copy())
