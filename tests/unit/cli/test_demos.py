"""Each demo fits the service: its file is read by its adapter, its network takes the records, its recipe and scopes are well-formed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from api.schemas.requests import RequestIn
from cli.demo import table_of, told_of
from cli.demos import DEMOS, SUBJECT_TYPE
from services.learning.architecture import ARCHITECTURES
from services.learning.data import Split
from services.learning.dataset import DATASETS
from services.learning.recipe import Recipe
from services.learning.task import TASKS
from services.verification import evaluation
from services.verification.attack import ATTACKS
from services.verification.metric import METRICS

for registry, package in ((ARCHITECTURES, "architectures"), (DATASETS, "datasets"), (TASKS, "tasks")):
    registry.discover(f"services.learning.{package}")
evaluation.discover()


@pytest.mark.parametrize("name", DEMOS)
def test_the_data_of_a_demo_fit_its_network_and_its_task(name: str, tmp_path: Path) -> None:
    demo = DEMOS[name]
    demo.source.write(tmp_path / "records.parquet")
    table = pq.read_table(tmp_path / "records.parquet")
    rows = {column: table.column(column).to_numpy(zero_copy_only=False) for column in table.column_names}
    adapter = DATASETS[demo.source.adapter](DATASETS[demo.source.adapter].Parameters.model_validate(demo.source.adapter_params))
    x, y = adapter.decode(rows)
    split = Split(x, y, tuple(table.column("record_id").to_pylist()), adapter.prepare())
    family = ARCHITECTURES[demo.network["architecture"]]
    architecture = family(family.Parameters.model_validate(demo.network["architecture_params"]))
    task = TASKS[demo.network["task"]].of(architecture.parameters.outputs, Recipe.model_validate(demo.recipe))

    task.check(split)
    losses = task.losses(architecture.fresh(0).eval(), split.batch(torch.arange(8)))
    assert demo.network["task"] in adapter.tasks
    assert bool(torch.isfinite(losses).all())


@pytest.mark.parametrize("name", DEMOS)
def test_the_requests_of_a_demo_name_what_is_there_and_its_summary_shows_known_readings(name: str, tmp_path: Path) -> None:
    demo = DEMOS[name]
    demo.source.write(tmp_path / "records.parquet")
    table = pq.read_table(tmp_path / "records.parquet")
    people = set(table.column("subject_id").to_pylist())
    labels = table.column("label").to_pylist() if "label" in table.column_names else []

    for scope in demo.requests.values():
        RequestIn.model_validate({"scope": scope, "policy": "demo"})
        if scope["kind"] == "subject":
            assert scope["identifiers"] == [{"type": SUBJECT_TYPE, "value": scope["identifiers"][0]["value"]}]
            assert scope["identifiers"][0]["value"] in people
        elif scope["kind"] == "class_labels":
            assert set(scope["labels"]) <= {str(label) for label in labels}
        elif scope["kind"] == "entity":
            spoken_of = {name for named in (demo.entities or {}).values() for name in named}
            assert set(scope["names"]) <= spoken_of
        else:
            assert 16 <= sum(label > scope["above"] for label in labels) < len(labels)
    for shown in demo.shown:
        family = (ATTACKS if shown.kind == "attacks" else METRICS)[shown.reading]
        assert shown.split in family.splits
        assert demo.network["task"] in family.tasks


def test_the_line_on_a_rung_tells_its_verdict_and_why_it_was_chosen() -> None:
    rung = {"rung": 1, "method": "npo", "state": "failed", "error": {"verdict": "inconclusive", "codes": []}, "choice": {"reason": "first"}}

    assert told_of(rung) == "  rung 1: npo inconclusive. Chosen because: first"
    assert told_of({**rung, "error": {"verdict": "failed", "codes": ["leak"]}}).startswith("  rung 1: npo failed (leak).")
    assert told_of({**rung, "state": "succeeded", "error": None}).startswith("  rung 1: npo succeeded.")


def test_the_table_shows_a_dash_where_a_request_has_no_such_reading_and_the_time_of_retraining_beside_the_methods() -> None:
    demo, known, none = DEMOS["language"], {"before": 0.9, "after": 0.1, "retrained": 0.0}, {"before": None, "after": None, "retrained": None}
    row = {"kind": "subject", "method": "npo", "base_version": 1, "published_version": 2, "verdict": "passed"}
    row |= {one.name: known for one in demo.shown} | {"appearance_rate": none, "method_seconds": 3.0, "retrain_seconds": 12.5, "total_seconds": 48.0}

    columns = {str(column.header): list(column.cells) for column in table_of([row, {**row, "retrain_seconds": None}], demo).columns}

    assert columns["answers that name it"] == ["-", "-"]
    assert columns["forgotten answers word for word"] == ["0.900 -> 0.100 (0.000)"] * 2
    assert columns["method s (retraining)"] == ["3.00 (12.50)", "3.00 (-)"]
