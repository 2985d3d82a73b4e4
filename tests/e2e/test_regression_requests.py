"""A regression model over the HTTP API of a running stack: trained, asked to forget a range of targets, judged, published, reported."""

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

NUMBERS = ("rooms", "age", "distance", "light")
ADAPTER = {"target": "number", "label_column": "price", "numeric": [{"name": name} for name in NUMBERS]}
NETWORK = {"task": "regression", "architecture": "mlp", "architecture_params": {"inputs": 4, "outputs": 1, "hidden": [64, 32]}}
RECIPE = {"learning_rate": 0.005, "epochs": 40, "batch_size": 64, "targets": {"loss": "l1", "mean": 50, "std": 20}}


def write_homes(path: Path, count: int = 1200) -> int:
    """Write homes whose prices follow four numbers, and return how many cost less than 35."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(count, 4))
    price = 50 + 12 * numbers[:, 0] + 8 * np.tanh(numbers[:, 1] * numbers[:, 2]) + 6 * np.sin(2 * numbers[:, 3]) + rng.normal(size=count)
    owners = [f"owner-{row // 2:04}" for row in range(count)]
    columns = {"record_id": [f"home-{row:05}" for row in range(count)], "subject_id": owners, "price": price}
    pq.write_table(pa.table({**columns, **{name: numbers[:, place] for place, name in enumerate(NUMBERS)}}), path)
    return int((price < 35).sum())


def wait(client: Client, path: str) -> dict[str, Any]:
    return client.wait(path, lambda seen: bool(seen["done"]) or "needs_attention" in {seen.get("status"), seen.get("state")}, timeout_s=900)


@pytest.mark.soak
def test_a_range_of_prices_is_forgotten_by_a_regression_model(up: Up, tmp_path: Path) -> None:
    client, file = Client(up.url, up.key), tmp_path / "homes.parquet"
    cheap = write_homes(file)
    register_dataset(client, "homes", file, adapter="tabular", adapter_params=ADAPTER)
    client.post("/models", {"name": "valuer", **NETWORK})
    job = client.post("/models/valuer/training-runs", {"dataset": "homes", "dataset_version": 1, "recipe": RECIPE, "seed": 3})
    assert wait(client, f"/jobs/{job['id']}")["state"] == "succeeded"

    for scope, told in (
        ({"kind": "class_labels", "dataset": "homes", "labels": ["1"]}, "target_range"),
        ({"kind": "target_range", "dataset": "homes", "below": -1000}, "names no record"),
        ({"kind": "target_range", "dataset": "homes", "above": -1000}, "nothing would be left"),
        ({"kind": "target_range", "dataset": "homes"}, "below"),
        ({"kind": "target_range", "dataset": "homes", "above": 40, "below": 30}, "below"),
    ):
        with pytest.raises(Refused, match=told):
            client.post("/deletion-requests", {"scope": scope, "policy": "demo"})

    scope = {"kind": "target_range", "dataset": "homes", "below": 35}
    planned = client.post("/deletion-requests", {"scope": scope, "policy": "demo"}, dry_run=True)
    assert (planned["records"], planned["models"][0]["rungs"]) == (cheap, ["blindspot", "retrain"])
    made = client.post("/deletion-requests", {"scope": scope, "policy": "demo"})
    ended = wait(client, f"/deletion-requests/{made['id']}")

    assert ended["status"] == "completed", ended
    assert (ended["scope"]["kind"], ended["scope"]["records"], ended["scope"]["below"]) == ("target_range", cheap, 35)
    report = client.report(made["id"])["predicate"]
    assert report["verdict"] == "passed"
    assert report["scope"]["below"] == 35
    jobs = sorted(client.get("/jobs", request=made["id"])["items"], key=lambda one: one["rung"])
    assert jobs[0]["method"] == "blindspot"
    readings = {(one["name"], one["split"]): one for one in report["verification"][0]["metrics"]}
    assert {("mean_absolute_error", "forget_train"), ("mean_absolute_error", "forget_test"), ("wasserstein", "forget_train")} <= set(readings)
    assert {"error_histogram", "prediction_density"} <= drawn(report)
    number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == "valuer")
    listed = client.get(f"/models/valuer/versions/{number}")["manifest"]["files"]
    digest = next(one["sha256"].removeprefix("sha256:") for one in listed if one["path"] == "model.safetensors")
    client.download(f"/models/valuer/versions/{number}/files/model.safetensors", tmp_path / "valuer.safetensors", sha256=digest)
    client.close()


@pytest.mark.soak
def test_targets_that_are_missing_are_refused_when_they_are_registered(up: Up, tmp_path: Path) -> None:
    client, file = Client(up.url, up.key), tmp_path / "spoilt.parquet"
    write_homes(file, 60)
    table = pq.read_table(file)
    price = np.asarray(table.column("price")).copy()
    price[7] = np.nan
    pq.write_table(table.set_column(table.schema.get_field_index("price"), "price", pa.array(price, from_pandas=False)), file)

    with pytest.raises(Refused, match="the column price holds 1 targets that are missing, not finite"):
        register_dataset(client, "spoilt", file, adapter="tabular", adapter_params=ADAPTER)
    client.close()
