"""Jobs whose readings are held against models on random halves of the records: when they are, by the worker's own steps, and checked again offline."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.verifier import Wrong, allowed_verdicts, gates_of
from services.audit import report
from services.db.tables import ReadingRow
from services.derived import Folder, Limits
from services.jobs import power
from services.jobs.compute import evaluate as evaluation
from services.jobs.compute.unlearn import unlearn
from services.jobs.compute.verify import verify
from services.jobs.messages import BASE_FILE, RUN_FILE, VERDICT_FILE, Seeds
from services.jobs.steps import plan as planning
from services.jobs.steps.plan import reference_of
from services.jobs.steps.reference import MODELS, asked_by
from services.learning.data import Split, Splits
from services.learning.run import Run
from services.learning.training import fit
from services.requests.estimates import trainings
from services.tenants.policies import DEMO, VerificationBody
from tests.unit.jobs.test_bench_cache import RECIPE, bench_of, cache_over, rows
from tests.unit.jobs.test_ranges import RECORDS, batch
from tests.unit.jobs.test_reference_seed import Shop, shop, work  # noqa: F401  the fixture

torch.set_num_threads(1)

SUBJECT = {"kind": "subject"}
LIMITS = Limits(size_bytes=10_000_000, ttl_s=3600.0)


def gate(kind: str, name: str, split: str = "forget_train", *, direction: str = "band", epsilon: float = 0.05) -> dict[str, Any]:
    parameters = {"learned": False} if name == "mia_v2" else {}
    return {"kind": kind, "name": name, "split": split, "direction": direction, "epsilon": epsilon, "gate": True, "parameters": parameters}


PLAN: dict[str, Any] = power.with_rules(
    {
        "reference": "shadow-band", "reference_models": 4, "level": 0.9, "alpha": 0.05, "seeds": {"evaluate": 2, "shadows": 77},
        "readings": [gate("metric", "accuracy"), gate("attack", "mia_v2"), gate("metric", "streisand", epsilon=0.02)],
        "utility": {"total": 0.01, "worst_class": 0.03},
    }
)  # fmt: skip


def claimed_for(scopes: Sequence[dict[str, Any]], task: str, records: int) -> Any:
    """A claimed job for one request of each scope; each found as many `records`."""
    found = batch(*scopes)
    for target in found.targets:
        target.records = records
    return SimpleNamespace(model=SimpleNamespace(task=task), beyond_records=found.beyond_records)


@pytest.mark.parametrize(
    ("scopes", "task", "guarantee", "why"),
    [
        ([RECORDS], "classification", "approximate", None),
        ([RECORDS, RECORDS], "classification", "suppression", None),
        ([SUBJECT, RECORDS], "classification", "approximate", "person"),
        ([{"kind": "class_labels", "labels": ["3"]}], "classification", "approximate", "class"),
        ([{"kind": "target_range", "below": 3}], "classification", "approximate", "range"),
        ([{"kind": "entity"}], "classification", "approximate", "entity"),
        ([RECORDS, {"kind": "class_labels", "labels": ["3"]}], "classification", "approximate", "class"),
        ([RECORDS], "regression", "approximate", "task"),
        ([RECORDS], "classification", "exact", "exact"),
    ],
)
def test_only_records_of_a_classifier_are_held_against_models_on_halves_and_else_the_plan_says_why(
    scopes: list[dict[str, Any]], task: str, guarantee: str, why: str | None
) -> None:
    claimed = claimed_for(scopes, task, 9)

    found = reference_of(claimed, "shadow-band", guarantee=guarantee)

    assert found == (("shadow-band", None) if why is None else ("retrained", {"asked": "shadow-band", "why": why}))
    assert reference_of(claimed, "retrained", guarantee=guarantee) == ("retrained", None)


def test_people_with_one_record_each_are_no_other_than_records() -> None:
    assert reference_of(claimed_for([SUBJECT, SUBJECT], "classification", 1), "shadow-band", guarantee="approximate") == ("shadow-band", None)


def test_what_asks_about_other_records_decides_beside_retrained_models_alone() -> None:
    near = {"kind": "metric", "name": "near_duplicate_accuracy", "split": "forget_train", "direction": "band", "epsilon": 0.05, "gate": True}
    accuracy = {**near, "name": "accuracy"}

    assert planning.gated(near, {"forget_train": 100})["gate"]
    beside = planning.gated(near, {"forget_train": 100}, halves=True)
    assert (beside["gate"], beside["direction"], beside["epsilon"]) == (False, "info", None)
    assert planning.gated(accuracy, {"forget_train": 100}, halves=True)["gate"]


@pytest.mark.parametrize("beyond", [None, "class"])
def test_a_frozen_plan_names_mode_models_and_seed_and_judges_use_by_the_original_alone(
    beyond: str | None,
    shop: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning.catalogue, "entry", lambda *_given: SimpleNamespace(guarantee="approximate", facts={}))
    claimed = work()
    claimed.beyond_records = beyond
    claimed.policy.verification = {"records": [], "reference": "shadow-band", "utility": {"total": 0.01, "worst_class": 0.03}}

    body = shop.frozen(claimed)

    if beyond is None:
        assert (body["reference"], body["reference_models"], "reference_in_stead" in body) == ("shadow-band", MODELS, False)
        assert "shadows" in body["seeds"]
        assert "reference" not in body["seeds"]
        assert "besides" not in body["utility"]
    else:
        assert (body["reference"], body["reference_in_stead"]) == ("retrained", {"asked": "shadow-band", "why": "class"})
        assert "reference" in body["seeds"]
        assert body["utility"]["besides"] == "retrained"


def test_a_policy_may_ask_for_it_and_models_are_then_trained_ahead_and_counted_beforehand() -> None:
    document = DEMO.verification.model_copy(update={"reference": "shadow-band"}).model_dump(mode="json", by_alias=True)

    assert VerificationBody.model_validate(document).reference == "shadow-band"
    assert asked_by(document) == {MODELS}
    assert asked_by(DEMO.verification.model_dump(mode="json", by_alias=True)) == set()
    assert [trainings("shadow-band", kind) for kind in ("records", "class", "concept")] == [MODELS / 2, 2, 2]
    assert (trainings("retrained", "records"), trainings("none", "class")) == (2, 0)


def halves_of(forget: int) -> Splits:
    """Forget the first rows of the breast cancer set, of which a fifth is labelled wrong; keep others up to 400, hold 169 out."""
    whole = rows()
    turned = torch.arange(len(whole)) % 5 == 0
    turned[400:] = False
    noisy = Split(whole.x, torch.where(turned, 1 - whole.y, whole.y), whole.ids)
    numbers = torch.arange(569)
    parts = [noisy.take(numbers[400 + k :: 3]) for k in range(3)]
    return Splits(noisy.take(numbers[:forget]), noisy.take(numbers[forget:400]), *parts, kind="records")


def judged(folder: Path, *, kept: Folder) -> Any:
    """Judge the work of a method by the worker's own steps; the original was trained on everything, and has learned the wrong labels."""
    splits = halves_of(120)
    bench = bench_of(folder, splits, method="fine_tune", params={"epochs": 1}, cache=cache_over(kept), seeds=Seeds(evaluate=2, shadows=77))
    bench.spec = bench.spec.model_copy(update={"plan": PLAN})
    bench.recipe = RECIPE.model_copy(update={"epochs": 40, "learning_rate": 1e-2})
    run = Run(seed=1, architecture=bench.architecture, recipe=bench.recipe)
    original = run.fresh_model("original")
    whole = Split(torch.cat([splits.forget.x, splits.retain.x]), torch.cat([splits.forget.y, splits.retain.y]), splits.forget.ids + splits.retain.ids)
    fit(original, whole, bench.task, bench.recipe, run)
    bench.save(original, BASE_FILE)
    unlearn(bench)
    evaluation.evaluate(bench)
    verify(bench)
    return bench


def printed(bench: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the verdict, and the run as a report prints it."""
    found = json.loads((bench.folder / VERDICT_FILE).read_text())
    read = [(row["kind"], report._reading(ReadingRow(**row))) for row in found["readings"]]
    parts = {part: [row for kind, row in read if kind == name] for name, part in (("metric", "metrics"), ("attack", "attacks"))}
    return found["verdict"], {**parts, "plan": {"body": PLAN}, "failure_codes": found["verdict"]["codes"]}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    home = tmp_path_factory.mktemp("jobs")
    kept = Folder(home / "kept", LIMITS)
    return [judged(home / name, kept=kept) for name in ("1", "2")]


def test_models_are_trained_by_the_first_job_and_found_by_the_next_which_reads_the_same(twice: list[Any]) -> None:
    notes = [json.loads((bench.folder / RUN_FILE).read_text()) for bench in twice]

    assert [note["reference_from"] for note in notes] == ["trained", "cache"]
    assert [[entry["hit"] for entry in note["derived"] if entry["kind"] == "shadow"] for note in notes] == [[False], [True]]
    assert all("retrain_seconds" not in note for note in notes)
    assert printed(twice[0]) == printed(twice[1])


def test_readings_on_forgotten_records_have_those_models_for_reference_and_use_has_the_original_alone(twice: list[Any]) -> None:
    _, run = printed(twice[0])
    gates = [row for row in (*run["metrics"], *run["attacks"]) if row["split"] == "forget_train"]
    [kept] = [row for row in run["metrics"] if row["split"] == "retain_test"]

    assert {row["name"] for row in gates} == {"accuracy", "mia_v2", "streisand"}
    for row in gates:
        assert row["detail"]["paired"]["models"] == 4
        assert row["band"]["reference"] == row["reference"] is not None
        assert float(row["band"]["epsilon"]) == max(float(row["band"]["floor"]), 0.02 if row["name"] == "streisand" else 0.05)
    [accuracy] = [row for row in gates if row["name"] == "accuracy"]
    lead = float(accuracy["after"]) - float(accuracy["reference"])
    assert float(accuracy["detail"]["paired"]["value"]) == pytest.approx(lead, abs=2e-4)
    assert kept["reference"] is None
    assert "paired" not in kept["detail"]
    assert "change" in kept["detail"]


def test_the_offline_verifier_comes_to_the_same_verdict_and_to_no_better_one(twice: list[Any]) -> None:
    verdict, run = printed(twice[0])
    allowed = allowed_verdicts(gates_of(run), run, "approximate")

    assert allowed == {verdict["verdict"]}
    assert "passed" not in allowed
    bent = json.loads(json.dumps(run))
    bent["metrics"][0]["band"]["epsilon"] = "0.2500"
    with pytest.raises(Wrong, match="is not the plan's"):
        gates_of(bent)
