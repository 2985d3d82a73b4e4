"""The runner's side of the cache: references of the evaluation, the ledger from request to request, and what a job is told about both."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from models_store import tensors
from models_store.manifest import Component, Manifest, ManifestFile, canonical, parse
from services.derived import Folder, Limits
from services.jobs.compute import evaluate as evaluation
from services.jobs.compute.context import Bench
from services.jobs.compute.unlearn import unlearn
from services.jobs.messages import BASE_FILE, CANDIDATE_FILE, REFERENCE_FILE, RUN_FILE, JobSpec, Seeds
from services.learning.architectures.mlp import MLP
from services.learning.cache import FolderCache, NoCache
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.tasks.classification import Classification
from services.unlearning.method import METHODS
from services.unlearning.methods.certified_removal import CertifiedRemoval

torch.set_num_threads(1)
METHODS.discover("services.unlearning.methods")

LIMITS = Limits(size_bytes=10_000_000, ttl_s=3600.0)
RECIPE = Recipe(learning_rate=3e-3, epochs=3, batch_size=64)
PARAMETERS = {"epsilon": 1.0, "delta": 1e-4, "noise": 1.0, "l2": 0.02}


def rows() -> Split:
    sets = load_breast_cancer()
    x = torch.from_numpy(sets.data).float()
    return Split((x - x.mean(0)) / x.std(0), torch.from_numpy(sets.target), tuple(f"row-{number}" for number in range(len(x))))


def splits_of(gone: range, kept_from: int) -> Splits:
    """Forget the rows of `gone`; those before `kept_from` that are not in it are gone already. The last 169 are held out."""
    whole, numbers = rows(), torch.arange(569)
    held_out = whole.take(numbers[400:])
    return Splits(whole.take(torch.tensor(list(gone))), whole.take(numbers[kept_from:400]), held_out, held_out, held_out, kind="records")


def bench_of(folder: Path, splits: Splits, *, method: str = "certified_removal", params: dict | None = None, cache: Any = None, **told: Any) -> Bench:
    folder.mkdir(parents=True, exist_ok=True)
    architecture = MLP(MLP.Parameters(outputs=2, inputs=30, hidden=()))
    spec = JobSpec(
        job_id=UUID(int=1), kind="unlearn", round=1, task="classification", architecture="mlp", architecture_params={}, adapter="tabular",
        adapter_params={}, recipe=RECIPE.model_dump(), method=method, params=params or {}, request_kind="records", plan={"reference": "retrained", "readings": []},
        seeds=told.pop("seeds", Seeds(unlearn=1, evaluate=2)), device="cpu", deadline_s=100, **told,
    )  # fmt: skip
    bench = Bench(
        folder, spec, torch.device("cpu"), architecture, RECIPE, Classification(2), splits, lambda _: None, lambda: False, cache or NoCache()
    )
    if not (folder / BASE_FILE).exists():
        bench.save(architecture.fresh(0), BASE_FILE)
    return bench


def cache_over(folder: Folder, *, job: str = "", **facts: object) -> FolderCache:
    digests = {identity: f"{number:032x}" for number, identity in enumerate(rows().ids)}
    return FolderCache(folder, facts=facts, digests=digests, device="cpu", job=job)


def reference(bench: Bench) -> dict[str, torch.Tensor]:
    return evaluation._retrained(bench, "reference", REFERENCE_FILE).state_dict()


def test_a_kept_reference_is_the_retrained_model_bit_for_bit_and_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    retrain = METHODS["retrain"]
    real = retrain.unlearn
    monkeypatch.setattr(retrain, "unlearn", lambda *given: (trained.append(1), real(*given))[1])
    folder, splits = Folder(tmp_path / "kept", LIMITS), splits_of(range(5), 5)

    live = reference(bench_of(tmp_path / "0", splits))
    first = bench_of(tmp_path / "1", splits, cache=cache_over(folder))
    second = bench_of(tmp_path / "2", splits, cache=cache_over(folder))
    found = [reference(first), reference(second)]
    for bench in (first, second):
        bench.note_cache()

    assert len(trained) == 2
    assert all(torch.equal(live[name], state[name]) for state in found for name in live)
    assert (tmp_path / "1" / REFERENCE_FILE).read_bytes() == (tmp_path / "2" / REFERENCE_FILE).read_bytes()
    notes = [json.loads((tmp_path / name / RUN_FILE).read_text()) for name in ("1", "2")]
    assert [[(entry["kind"], entry["hit"]) for entry in note["derived"]] for note in notes] == [[("reference", False)], [("reference", True)]]
    assert "retrain_seconds" in notes[0]
    assert "retrain_seconds" not in notes[1]

    reference(bench_of(tmp_path / "3", splits_of(range(6), 6), cache=cache_over(folder)))
    reference(bench_of(tmp_path / "4", splits, cache=cache_over(folder), seeds=Seeds(unlearn=1, evaluate=3)))
    other = bench_of(tmp_path / "5", splits, cache=cache_over(folder))
    other.recipe = RECIPE.model_copy(update={"epochs": 2})
    reference(other)
    reference(bench_of(tmp_path / "6", splits, cache=cache_over(folder, code="b")))
    assert len(trained) == 6


def test_what_references_took_is_told_apart_with_whether_they_were_trained_or_kept(tmp_path: Path) -> None:
    folder, splits = Folder(tmp_path / "kept", LIMITS), splits_of(range(5), 5)
    notes: list[dict[str, Any]] = []

    for name in ("1", "2"):
        bench = bench_of(tmp_path / name, splits, cache=cache_over(folder))
        evaluation.references(bench, bench.run("evaluate", 2))
        notes.append(json.loads((tmp_path / name / RUN_FILE).read_text()))
    nothing_kept = bench_of(tmp_path / "3", splits)
    evaluation.references(nothing_kept, nothing_kept.run("evaluate", 2))
    notes.append(json.loads((tmp_path / "3" / RUN_FILE).read_text()))

    assert [note["reference_from"] for note in notes] == ["trained", "cache", "trained"]
    assert notes[0]["reference_seconds"] >= notes[0]["retrain_seconds"] > 0
    assert notes[1]["reference_seconds"] > 0


def test_what_never_saw_the_records_outlives_the_verdict_and_what_did_goes(tmp_path: Path) -> None:
    folder, splits = Folder(tmp_path / "kept", LIMITS), splits_of(range(5), 5)
    folder.open("job", [f"{number:032x}" for number in range(5)])
    params = {"alpha": 1.0, "retain_drop": 1.0, "guard_factor": 100}
    bench = bench_of(tmp_path / "1", splits, method="ssd", params=params, cache=cache_over(folder, job="job"))
    trained = MLP(MLP.Parameters(outputs=2, inputs=30, hidden=())).fresh(3)
    bench.save(trained, BASE_FILE)

    unlearn(bench)
    reference(bench)
    bench.note_cache()
    told = {each.kind: each.disposition for each in folder.close("job")}

    assert told == {"importance": "destroyed", "reference": "kept"}
    assert [entry["kind"] for entry in json.loads((tmp_path / "1" / RUN_FILE).read_text())["derived"]] == ["importance", "reference"]
    assert b"row-" not in b"".join(path.read_bytes() for path in folder.path.iterdir())


def published(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's facts, and the ledger as the next job is handed it: out of the run's file, through the manifest's bytes."""
    facts = json.loads((bench.folder / RUN_FILE).read_text())
    file = ManifestFile(path="model.safetensors", digest="sha256:" + "0" * 64, size_bytes=1)
    manifest = Manifest(files=(file,), architecture=Component(name="mlp"), ledger=facts["notes"]["ledger"])
    return facts, {"ledger": parse(canonical(manifest)).model_dump(mode="json")["ledger"]}


def test_requests_one_after_the_other_spend_one_budget_and_past_it_the_head_is_trained_again(tmp_path: Path) -> None:
    inherited: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    at, spent, bases, before = 0, [], [], MLP(MLP.Parameters(outputs=2, inputs=30, hidden=())).fresh(0)
    for number, count in enumerate((3, 3, 3, 200)):
        bench = bench_of(
            tmp_path / str(number), splits_of(range(at, at + count), at + count), params=PARAMETERS, inherited=inherited, seeds=Seeds(unlearn=number)
        )
        bench.save(before, BASE_FILE)
        unlearn(bench)
        facts, inherited = published(bench)
        before, at = bench.model(CANDIDATE_FILE), at + count
        spent.append(sum(inherited["ledger"]["budget"]["spent"].values()))
        bases.append(facts["notes"]["certificate"]["basis"])
        assert facts["guarantee"] == "certified"
        assert facts["secret_seeds"]

    assert bases == ["head_trained_again", "newton_step", "newton_step", "head_trained_again"]
    assert spent[0] < spent[1] < spent[2]
    assert spent[3] < spent[1]
    assert facts["notes"]["trained_again"] == "the removal would exceed the budget"


def test_without_the_ledger_of_the_parent_the_head_is_trained_again(tmp_path: Path) -> None:
    first = bench_of(tmp_path / "1", splits_of(range(3), 3), params=PARAMETERS)
    unlearn(first)
    second = bench_of(tmp_path / "2", splits_of(range(3, 6), 6), params=PARAMETERS)
    second.save(first.model(CANDIDATE_FILE), BASE_FILE)
    unlearn(second)

    assert published(second)[0]["notes"]["trained_again"] == "no ledger came with the model"


def test_nothing_that_a_certified_run_notes_depends_visibly_on_its_seed(tmp_path: Path) -> None:
    seed = 1234567890123
    first = bench_of(tmp_path / "1", splits_of(range(3), 3), params=PARAMETERS, seeds=Seeds(unlearn=seed))
    unlearn(first)
    inherited = published(first)[1]
    second = bench_of(tmp_path / "2", splits_of(range(3, 6), 6), params=PARAMETERS, inherited=inherited, seeds=Seeds(unlearn=seed + 1))
    second.save(first.model(CANDIDATE_FILE), BASE_FILE)
    unlearn(second)

    notes = (tmp_path / "1" / RUN_FILE).read_text() + (tmp_path / "2" / RUN_FILE).read_text()
    assert str(seed) not in notes
    assert str(seed + 1) not in notes
    assert tensors.load(tmp_path / "2" / CANDIDATE_FILE).keys() == tensors.load(tmp_path / "1" / CANDIDATE_FILE).keys()


@pytest.mark.parametrize(
    ("hidden", "params", "expected"),
    [
        ((), PARAMETERS, "certified"),
        ((), {}, "approximate"),
        ((8,), PARAMETERS, "suppression"),  # the head alone changes, and nobody vouches for what is below
        ((8,), {**PARAMETERS, "features": "public"}, "certified"),
    ],
)
def test_a_run_claims_a_certificate_only_with_a_budget_and_features_somebody_vouches_for(
    hidden: Any, params: Any, expected: str, tmp_path: Path
) -> None:
    bench = bench_of(tmp_path, splits_of(range(3), 3), params=params)
    bench.architecture = MLP(MLP.Parameters(outputs=2, inputs=30, hidden=hidden))
    bench.save(bench.architecture.fresh(0), BASE_FILE)

    unlearn(bench)

    assert CertifiedRemoval.guarantee == "certified"
    assert json.loads((tmp_path / RUN_FILE).read_text())["guarantee"] == expected


def test_an_old_manifest_keeps_its_digest() -> None:
    file = ManifestFile(path="model.safetensors", digest="sha256:" + "0" * 64, size_bytes=1)
    manifest = Manifest(files=(file,), architecture=Component(name="mlp"))

    assert b"ledger" not in canonical(manifest)
    assert parse(canonical(manifest)) == manifest
    assert parse(canonical(manifest.model_copy(update={"ledger": {"a": 0.5}}))).ledger == {"a": 0.5}
