"""A forecasting model over the HTTP API of a running stack: trained on windows of meters, asked to forget a household, judged, published, reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.client import Client, Refused
from cli.demo import register_dataset
from tests.e2e.conftest import Up, drawn

pytestmark = pytest.mark.xdist_group("up")

HOMES, EACH, PAST, AHEAD = 40, 40, 12, 3
ADAPTER = {"length": PAST, "horizon": AHEAD, "time_column": "at", "mean": [50.0], "std": [20.0]}
QUANTILES = 3
NETWORK = {"task": "forecasting", "architecture": "lstm", "architecture_params": {"outputs": AHEAD * QUANTILES, "width": 32, "hidden": 32}}
RECIPE = {"learning_rate": 0.005, "epochs": 20, "batch_size": 64, "targets": {"loss": "quantile", "mean": 50, "std": 20}}
OTHERWISE = 7
"""The household that uses power when the others do not."""


def write_meters(path: Path, *, left_out: int | None = None) -> None:
    """Write windows of 12 hours and the 3 after them, none of which overlap, of 40 households; at `left_out` an hour is missing."""
    rng = np.random.default_rng(0)
    hours = np.arange(EACH * (PAST + AHEAD))
    columns: dict[str, list[Any]] = {name: [] for name in ("record_id", "subject_id", "past", "target", "at")}
    for home in range(HOMES):
        sign = -1 if home == OTHERWISE else 1
        used = 50 + sign * (15 + home % 5) * np.sin(2 * np.pi * (hours + home % 3) / 24) + rng.normal(scale=3, size=len(hours))
        for window in range(EACH):
            first = window * (PAST + AHEAD)
            at = hours[first : first + PAST + AHEAD].astype(float)
            if left_out == len(columns["at"]):
                at[-1] += 1
            values = used[first : first + PAST + AHEAD].tolist()
            record = (f"meter-{home:02}/{window:03}", f"home-{home:02}", values[:PAST], values[PAST:], at.tolist())
            for name, value in zip(columns, record, strict=True):
                columns[name].append(value)
    pq.write_table(pa.table(columns), path)


def wait(client: Client, path: str) -> dict[str, Any]:
    return client.wait(path, lambda seen: bool(seen["done"]) or "needs_attention" in {seen.get("status"), seen.get("state")}, timeout_s=900)


@pytest.mark.soak
def test_a_household_is_forgotten_by_a_forecasting_model(up: Up, tmp_path: Path) -> None:
    client, file = Client(up.url, up.key), tmp_path / "meters.parquet"
    write_meters(file)
    register_dataset(client, "meters", file, adapter="series", adapter_params=ADAPTER)
    client.post("/models", {"name": "loads", **NETWORK})
    job = client.post("/models/loads/training-runs", {"dataset": "meters", "dataset_version": 1, "recipe": RECIPE, "seed": 3})
    assert wait(client, f"/jobs/{job['id']}")["state"] == "succeeded"

    with pytest.raises(Refused, match="no real-valued targets"):
        client.post("/deletion-requests", {"scope": {"kind": "target_range", "dataset": "meters", "below": 40}, "policy": "demo"})
    scope = {"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": f"home-{OTHERWISE:02}"}]}
    planned = client.post("/deletion-requests", {"scope": scope, "policy": "demo"}, dry_run=True)
    assert planned["records"] == EACH
    assert planned["models"][0]["rungs"][-1] == "retrain"
    made = client.post("/deletion-requests", {"scope": scope, "policy": "demo"})
    ended = wait(client, f"/deletion-requests/{made['id']}")

    assert ended["status"] == "completed", ended
    report = client.report(made["id"])["predicate"]
    assert report["verdict"] == "passed"
    readings = {(one["name"], one["split"]): one for one in (*report["verification"][-1]["metrics"], *report["verification"][-1]["attacks"])}
    assert {("mean_absolute_error", "forget_train"), ("quantile_loss", "forget_train"), ("regression_mia", "forget_train")} <= set(readings)
    wrong = readings["mean_absolute_error", "forget_train"]
    assert float(wrong["before"]) < float(wrong["after"]), wrong
    assert {"error_histogram", "prediction_density"} <= drawn(report)
    number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == "loads")
    listed = client.get(f"/models/loads/versions/{number}")["manifest"]["files"]
    digest = next(one["sha256"].removeprefix("sha256:") for one in listed if one["path"] == "model.safetensors")
    client.download(f"/models/loads/versions/{number}/files/model.safetensors", tmp_path / "loads.safetensors", sha256=digest)
    client.close()


@pytest.mark.soak
def test_a_series_with_a_gap_is_refused_when_it_is_registered(up: Up, tmp_path: Path) -> None:
    client, file = Client(up.url, up.key), tmp_path / "broken.parquet"
    write_meters(file, left_out=100)

    with pytest.raises(Refused, match="the times of 1 records do not rise evenly"):
        register_dataset(client, "broken-meters", file, adapter="series", adapter_params=ADAPTER)
    client.close()
