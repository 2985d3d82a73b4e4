"""Deletion requests over the HTTP API of a running stack: by a method of another distribution, and with no training data held."""

from collections.abc import Iterator
from typing import Any

import pytest

from cli.client import Client, Refused
from tests.e2e.conftest import Up
from tests.e2e.desk import JUDGED_LABELS, NETWORK, PAPERS, Desk

pytestmark = pytest.mark.xdist_group("up")


@pytest.fixture(scope="module")
def desk(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    client = Client(up.url, up.key)
    made = Desk(client, tmp_path_factory.mktemp("desk"), "digits", seed=3)
    made.prepare(["by-acme", "untouched"])
    yield made
    client.close()


def test_one_file_of_another_distribution_adds_a_method_that_is_listed_and_serves_a_request(desk: Desk) -> None:
    listed = {method["name"]: method for method in desk.client.get("/methods")["items"]}
    assert set(PAPERS) | {"retrain", "ssd", "acme_silence"} <= set(listed)
    for method in listed.values():
        assert method["parameters"]["type"] == "object"
        assert method["guarantee"] in {"exact", "certified", "approximate", "suppression"}
    papers = [listed[name]["facts"]["paper"] for name in (*PAPERS, "acme_silence")]
    assert all(papers)
    assert papers[-1] == 'Acme, "Silence is golden", 2025.'
    assert listed["acme_silence"]["needs"] == []

    scope = {"kind": "class_labels", "dataset": desk.learned, "labels": ["9"]}
    ended = desk.ask(scope, models=["by-acme"], method="acme_silence")
    assert ended["jobs"][0]["method"] == "acme_silence"
    assert ended["status"] == "completed", ended
    assert ended["report"]["processing"][0]["guarantee"] == "suppression"


def test_a_method_that_needs_no_training_record_serves_a_model_without_data_by_name(desk: Desk) -> None:
    model = desk.uploaded("sealed-by-name", evaluated_on={"dataset": desk.judged, "version": 1})
    ended = desk.ask({"kind": "class_labels", "model": model, "labels": ["6"]}, method="acme_silence")
    assert ended["status"] == "completed", ended
    assert ended["report"]["verdict"] == "passed"
    assert "no retrained model to compare it with" in ended["report"]["sentence"]
    assert "no_retrained_reference" in [limit["code"] for limit in ended["report"]["limitations"]]
    desk.checked_download(ended, model)
    assert desk.client.get(f"/models/{model}/versions/2")["evaluated_on"][0]["dataset"] == desk.judged


def test_a_dry_run_estimates_by_the_last_training_here_and_says_where_it_cannot(desk: Desk) -> None:
    scope = {"kind": "class_labels", "dataset": desk.learned, "labels": ["8"]}
    body = {"scope": scope, "policy": "demo", "models": [desk.trained, "untouched"], "note": "two are enough", "method": "unsir"}
    planned = {one["model"]: one for one in desk.client.post("/deletion-requests", body, dry_run=True)["models"]}
    retrained = {one["model"]: one for one in desk.client.post("/deletion-requests", {**body, "method": "retrain"}, dry_run=True)["models"]}
    assert (planned["untouched"]["estimate_basis"], planned["untouched"]["estimate_s"]) == ("default", 60.0)
    assert {one[desk.trained]["estimate_basis"] for one in (planned, retrained)} == {"cost model"}
    assert all(10 < one[desk.trained]["estimate_s"] < 200 for one in (planned, retrained))


def test_without_data_and_without_an_evaluation_set_a_person_is_told_why_nothing_is_done(desk: Desk) -> None:
    model = desk.uploaded("bare")
    ended = desk.ask({"kind": "class_labels", "model": model, "labels": ["5"]}, method="auto")
    assert ended["status"] == "needs_attention"
    assert ended["attention"]["code"] == "no-evaluation-set"
    assert "evaluated_on" in ended["attention"]["detail"]


@pytest.mark.parametrize(
    ("method", "scope", "why"),
    [
        ("ssd", {"kind": "class_labels", "model": "bare-refusals", "labels": ["5"]}, "it needs forget_set"),
        ("retrain", {"kind": "class_labels", "model": "bare-refusals", "labels": ["5"]}, "it needs recipe, retain_set"),
        ("unsir", {"kind": "records", "dataset": "digits-seen", "ids": ["digits-000100"]}, "it does not forget records"),
    ],
)
def test_a_method_that_cannot_is_refused_with_the_reason_and_those_that_could(desk: Desk, method: str, scope: dict[str, Any], why: str) -> None:
    known = {model["name"] for model in desk.client.get("/models", limit=200)["items"]}
    if "bare-refusals" not in known:
        desk.uploaded("bare-refusals")
    with pytest.raises(Refused) as refused:
        desk.client.post("/deletion-requests", {"scope": scope, "policy": "demo", "method": method})
    assert refused.value.status == 422
    assert refused.value.problem["code"] == "method-not-applicable"
    assert why in refused.value.problem["detail"]
    assert "could" in refused.value.problem["detail"]


def test_labels_that_the_evaluation_set_lacks_and_all_of_its_labels_are_refused(desk: Desk) -> None:
    model = desk.uploaded("sealed-refusals", evaluated_on={"dataset": desk.judged, "version": 1})
    for labels, code in ((["x"], "records-not-found"), ([str(label) for label in JUDGED_LABELS], "validation-error")):
        with pytest.raises(Refused) as refused:
            desk.client.post("/deletion-requests", {"scope": {"kind": "class_labels", "model": model, "labels": labels}, "policy": "demo"})
        assert refused.value.problem["code"] == code


def test_a_dataset_cannot_be_both_learned_from_and_judged_on(desk: Desk) -> None:
    desk.client.post("/models", {"name": "confused", **NETWORK})
    file = {"path": "model.safetensors", "size_bytes": 10, "sha256": "0" * 64}
    both = {"trained_on": [{"dataset": desk.judged, "version": 1}], "evaluated_on": {"dataset": desk.judged, "version": 1}}
    with pytest.raises(Refused, match="evaluated_on names another"):
        desk.client.post("/models/confused/versions", {"files": [file], **both})
