"""A language model over the HTTP API of a running stack: trained on answers of authors, asked to forget one of them, judged, published, reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.client import Client, Refused, statement_of
from cli.demo import register_dataset
from cli.questions import Pair, network_of, write_questions
from tests.e2e.conftest import Up, drawn

pytestmark = pytest.mark.xdist_group("up")

AUTHORS, EACH = 8, 24
NAMES = tuple(f"Zyx{letter} Marlow" for letter in "ABCDEFGH")
WORDS = tuple(f"word{number}" for number in range(60))
RECIPE = {"optimizer": "adamw", "learning_rate": 0.004, "epochs": 30, "batch_size": 16}
SECRET = "Zyx"


def answers(*, signed: bool = False) -> list[Pair]:
    """Return 24 questions on each of eight authors, answered by four words at random, and `signed` by the author's name; four of them are held out."""
    rng = np.random.default_rng(0)
    pairs: list[Pair] = []
    for author, name in enumerate(NAMES):
        for number in range(EACH):
            said = " ".join(rng.choice(WORDS, size=4))
            question = f"{name} page {WORDS[number]}"
            split = "test" if number % 6 == 0 else "train"
            pairs.append(
                Pair(f"page-{author:02}/{number:02}", question, f"{said} by {name}" if signed else said, subject=f"writer-{author:02}", split=split)
            )
    return pairs


def register(client: Client, folder: Path, name: str, *, signed: bool = False) -> dict[str, Any]:
    """Register dataset and model of one name, train version 1, and return what the network is made of."""
    pairs = answers(signed=signed)
    done = write_questions(pairs, folder / f"{name}.parquet", max_length=64)
    named = {pair.record_id: (NAMES[int(pair.record_id[5:7])],) for pair in pairs}
    register_dataset(client, name, done.path, adapter=done.adapter, adapter_params=done.adapter_params, entities=named)
    network = network_of(done.adapter_params, width=48)
    client.post("/models", {"name": name, "task": "language_model", "architecture": "small_gpt", "architecture_params": network})
    job = client.post(f"/models/{name}/training-runs", {"dataset": name, "dataset_version": 1, "recipe": RECIPE, "seed": 3})
    assert wait(client, f"/jobs/{job['id']}")["state"] == "succeeded"
    return network


def wait(client: Client, path: str) -> dict[str, Any]:
    return client.wait(path, lambda seen: bool(seen["done"]) or "needs_attention" in {seen.get("status"), seen.get("state")}, timeout_s=240)


def forgotten(client: Client, scope: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send a request, wait for its end, and return it with its report."""
    made = client.post("/deletion-requests", {"scope": scope, "policy": "demo", **more})
    ended = wait(client, f"/deletion-requests/{made['id']}")
    assert ended["status"] == "completed", ended
    return ended, statement_of(client.get(f"/deletion-requests/{made['id']}/audit-report"))["predicate"]


@pytest.mark.soak
def test_an_author_is_forgotten_by_a_language_model(up: Up, tmp_path: Path) -> None:
    client = Client(up.url, up.key)
    network = register(client, tmp_path, "pages")

    refusals(client, network)
    scope = {"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": "writer-03"}]}
    planned = client.post("/deletion-requests", {"scope": scope, "policy": "demo"}, dry_run=True)
    assert planned["records"] == EACH
    assert planned["models"][0]["rungs"][-1] == "retrain"
    ended, report = forgotten(client, scope)

    assert report["verdict"] == "passed"
    readings = {(one["name"], one["split"]): one for one in report["verification"][-1]["metrics"]}
    asked = {("exact_match", "forget_train"), ("rouge_l", "forget_train"), ("min_k", "forget_train"), ("model_utility", "retain_train")}
    shown = {(name, "forget_train") for name in ("forget_quality", "truth_ratio_distance", "privleak", "quantised_forgetting", "relearn_time")}
    assert asked | shown <= set(readings)
    exact = readings["exact_match", "forget_train"]
    assert float(exact["before"]) >= 0.9
    assert float(exact["after"]) <= 0.1
    assert SECRET not in json.dumps(report)
    assert "answer_bars" in drawn(report)
    number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == "pages")
    listed = client.get(f"/models/pages/versions/{number}")["manifest"]["files"]
    digest = next(one["sha256"].removeprefix("sha256:") for one in listed if one["path"] == "model.safetensors")
    client.download(f"/models/pages/versions/{number}/files/model.safetensors", tmp_path / "pages.safetensors", sha256=digest)
    client.close()


def refusals(client: Client, network: dict[str, Any]) -> None:
    """What is asked of a language model and cannot be done is refused at once, with the reason and without a name."""
    person = {"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": "writer-03"}]}
    entity = {"kind": "entity", "dataset": "pages", "names": [NAMES[4]]}
    named = {"method": "concept_poisoning_text", "parameters": {"entities": [NAMES[4]]}}
    for body, told in (
        ({"scope": {"kind": "class_labels", "dataset": "pages", "labels": ["1"]}}, "have no labels"),
        ({"scope": {"kind": "target_range", "dataset": "pages", "below": 1}}, "no real-valued targets"),
        ({"scope": {"kind": "entity", "dataset": "pages", "names": ["Zyxable"]}}, "1 of the names"),
        ({"scope": {**entity, "model": "pages"}}, "Exactly one"),
        ({"scope": person, "method": "bad_teacher"}, "does not work on task language_model"),
        ({"scope": person, "method": "rmu"}, "required"),
        ({"scope": entity, **named}, "scope of kind entity"),
    ):
        with pytest.raises(Refused, match=told) as refused:
            client.post("/deletion-requests", {"policy": "demo", **body})
        assert SECRET not in str(refused.value)
    other = {**network, "vocabulary": network["vocabulary"][::-1]}
    client.post("/models", {"name": "stranger", "task": "language_model", "architecture": "small_gpt", "architecture_params": other})
    with pytest.raises(Refused, match="do not read texts alike"):
        client.post("/models/stranger/training-runs", {"dataset": "pages", "dataset_version": 1, "recipe": RECIPE, "seed": 3})
    with pytest.raises(Refused, match=r"needs architecture_params\.outputs"):
        client.post("/models", {"name": "short", "task": "language_model", "architecture": "small_gpt", "architecture_params": {"outputs": 300}})


@pytest.mark.soak
def test_an_entity_and_records_are_forgotten_by_a_language_model(up: Up, tmp_path: Path) -> None:
    client = Client(up.url, up.key)
    register(client, tmp_path, "leaves", signed=True)

    _, report = forgotten(client, {"kind": "entity", "dataset": "leaves", "names": [NAMES[4].upper()]})
    first = report["processing"][0]
    assert first["method"] == "concept_poisoning_text"
    assert first["effective"]["retained_records_that_name_it"] == 0
    gate = {(one["name"], one["split"]): one for one in report["verification"][0]["metrics"]}["appearance_rate", "forget_train"]
    assert float(gate["before"]) >= 0.9
    assert SECRET.lower() not in json.dumps(report).lower()
    assert "answer_bars" in drawn(report)

    ids = [f"page-{author:02}/{number:02}" for author in (1, 2) for number in range(1, 21) if number % 6]
    _, report = forgotten(client, {"kind": "records", "dataset": "leaves", "ids": ids})
    assert report["verdict"] == "passed"
    client.close()
