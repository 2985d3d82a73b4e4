"""An image generator over the HTTP API of a running stack: trained, asked to forget a class and single images, judged, published, reported."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from cli.client import Client, Refused, sha256_of, statement_of
from cli.demo import register_dataset, settled
from cli.importers import import_sklearn
from tests.e2e.conftest import Up, drawn

pytestmark = pytest.mark.xdist_group("up")

DIGITS = "drawn"
IMAGES = {"height": 8, "width": 8, "channels": 1, "mean": [0.5], "std": [0.5]}
NETWORK = {"outputs": 10, "side": 8, "width": 48}
RECIPE = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 40, "batch_size": 64}
FORGOTTEN = "3"
SHOWN = ("class_rate", "feature_fid", "feature_kid", "downstream_accuracy")


class Studio:
    """A client of the stack with 700 digits registered and a generator that learned from them."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder, self.copies = client, folder, 0

    def prepare(self) -> None:
        """Register the digits, train the generator, and upload it to another model without its discriminator."""
        import_sklearn("digits", self.folder / "all.parquet", records_per_subject=64, subject_prefix="painter-")
        pq.write_table(pq.read_table(self.folder / "all.parquet").slice(0, 700), self.folder / "drawn.parquet")
        register_dataset(self.client, DIGITS, self.folder / "drawn.parquet", adapter="image", adapter_params=IMAGES)
        self.model("painter")
        assert self.trained("painter")["state"] == "succeeded"
        weights = self.file("painter", 1)
        generator = {name: value for name, value in load_file(weights).items() if name.startswith("generator.")}
        save_file(generator, self.folder / "generator.safetensors")
        self.uploaded("lone", self.folder / "generator.safetensors", discriminator=False)

    def model(self, name: str, **changed: Any) -> None:
        network = {"task": "image_generation", "architecture": "mlp_gan", "architecture_params": {**NETWORK, **changed}}
        self.client.post("/models", {"name": name, **network})

    def trained(self, name: str, **changed: Any) -> dict[str, Any]:
        """Train a model on the newest version of the digits, and return the job as it ended."""
        newest = self.client.get(f"/datasets/{DIGITS}")["latest_version"]
        body = {"dataset": DIGITS, "dataset_version": newest, "recipe": {**RECIPE, **changed}, "seed": 3}
        job = self.client.post(f"/models/{name}/training-runs", body)
        return self.wait(f"/jobs/{job['id']}")

    def wait(self, path: str) -> dict[str, Any]:
        return self.client.wait(path, lambda seen: bool(seen["done"]) or "needs_attention" in {seen.get("status"), seen.get("state")}, timeout_s=900)

    def file(self, model: str, number: int) -> Path:
        """Download the weights of a version; their digest is the manifest's."""
        listed = self.client.get(f"/models/{model}/versions/{number}")["manifest"]["files"]
        digest = next(one["sha256"].removeprefix("sha256:") for one in listed if one["path"] == "model.safetensors")
        path = self.folder / f"{model}-{number}.safetensors"
        self.client.download(f"/models/{model}/versions/{number}/files/model.safetensors", path, sha256=digest)
        return path

    def uploaded(self, name: str, file: Path, **changed: Any) -> None:
        """Register a model whose first version is the checkpoint but for a hair, since nobody may upload weights that were put away elsewhere."""
        self.model(name, **changed)
        weights, own = load_file(file), self.folder / f"{name}-upload.safetensors"
        self.copies += 1
        first = next(key for key, tensor in weights.items() if tensor.dtype == np.float32)
        weights[first] = weights[first] * np.float32(1 + 1e-6 * self.copies)
        save_file(weights, own)
        listed = {"path": "model.safetensors", "size_bytes": own.stat().st_size, "sha256": sha256_of(own)}
        newest = self.client.get(f"/datasets/{DIGITS}")["latest_version"]
        origin = {"trained_on": [{"dataset": DIGITS, "version": newest}], "recipe": RECIPE}
        version = self.client.post(f"/models/{name}/versions", {"files": [listed], **origin})
        self.client.upload(version["uploads"][0]["url"], own, version["uploads"][0].get("headers"))
        self.client.post(f"/models/{name}/versions/1/complete", {})
        self.client.wait(f"/models/{name}/versions/1", settled, timeout_s=60)

    def ask(self, scope: dict[str, Any], model: str, **members: Any) -> dict[str, Any]:
        """Make a request of policy `demo` about one model, wait for its end, and return it with its report and jobs."""
        body = {"scope": scope, "policy": "demo", "models": [model], "note": "only this model is looked at here", **members}
        made = self.client.post("/deletion-requests", body)
        ended = self.wait(f"/deletion-requests/{made['id']}")
        assert ended["status"] == "completed", (ended, self.client.get("/jobs", request=made["id"])["items"])
        report = statement_of(self.client.get(f"/deletion-requests/{made['id']}/audit-report"))["predicate"]
        jobs = self.client.get("/jobs", request=made["id"])["items"]
        return {**ended, "report": report, "jobs": sorted(jobs, key=lambda job: job["rung"])}


@pytest.fixture(scope="module")
def studio(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    client = Client(up.url, up.key)
    made = Studio(client, tmp_path_factory.mktemp("studio"))
    made.prepare()
    yield made
    client.close()


def parts(file: Path) -> set[str]:
    return {name.split(".")[0] for name in load_file(file)}


@pytest.mark.soak
def test_what_a_generator_cannot_do_is_refused_when_it_is_asked_for_with_the_reason(studio: Studio) -> None:
    client, scope = studio.client, {"kind": "class_labels", "dataset": DIGITS, "labels": [FORGOTTEN]}
    for asked, told in (
        (
            {"scope": scope, "method": "bad_teacher", "models": ["painter"], "note": "looked at"},
            r"does not work on task image_generation.*cascaded_gan",
        ),
        ({"scope": {**scope, "labels": ["11"]}}, "1 of the named records or labels are not in dataset"),
        ({"scope": {"kind": "target_range", "dataset": DIGITS, "below": 3}}, "no real-valued targets"),
        ({"scope": scope, "method": "cascaded_gan", "parameters": {"rounds_planned": 1}}, "rounds_planned"),
    ):
        with pytest.raises(Refused, match=told):
            client.post("/deletion-requests", {**asked, "policy": "demo"})

    with pytest.raises(Refused, match="trains the discriminator, and this checkpoint holds none\\. Methods that could: retrain"):
        client.post("/deletion-requests", {"scope": scope, "method": "cascaded_gan", "policy": "demo", "models": ["lone"], "note": "looked at"})
    studio.model("wider", side=16)
    with pytest.raises(Refused, match="the dataset has height 8, and model wider is built for side 16"):
        studio.trained("wider")
    pixels = [b"\x00" * 64] * 9 + [b"\x00" * 49]
    table = pa.table(
        {"record_id": [f"r{row}" for row in range(10)], "subject_id": ["s"] * 10, "label": [0] * 10, "pixels": pa.array(pixels, pa.binary())}
    )
    pq.write_table(table, studio.folder / "ragged.parquet")
    with pytest.raises(Refused, match="between 49 and 64 bytes, and the dataset says"):
        register_dataset(client, "ragged", studio.folder / "ragged.parquet", adapter="image", adapter_params=IMAGES)


@pytest.mark.soak
def test_a_class_is_forgotten_by_a_generator(studio: Studio) -> None:
    ids = {"kind": "class_labels", "dataset": DIGITS, "labels": [FORGOTTEN]}
    planned = studio.client.post("/deletion-requests", {"scope": ids, "policy": "demo", "models": ["painter"], "note": "looked at"}, dry_run=True)
    assert planned["models"][0]["rungs"] == ["cascaded_gan", "fine_tune", "retrain"]
    assert "fine_tune, a later rung, was as good for a class" in planned["models"][0]["reason"]

    ended = studio.ask(ids, "painter")

    assert ended["jobs"][0]["method"] == "cascaded_gan"
    report = ended["report"]
    assert report["verdict"] == "passed"
    last = report["verification"][-1]
    readings = {(one["name"], one["split"]): one for one in (*last["metrics"], *last["attacks"])}
    assert {*SHOWN, "gan_attack"} <= {name for name, _ in readings}
    rate = readings["class_rate", "forget_train"]
    assert float(rate["after"]) < float(rate["before"])
    assert float(readings["feature_fid", "retain_test"]["before"]) == 1
    assert "in the manner of" in report["processing"][0]["effective"]["manner"]
    assert "contact_sheet" in drawn(report)
    number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == "painter")
    assert parts(studio.file("painter", number)) == {"generator", "discriminator"}


@pytest.mark.soak
def test_single_images_are_forgotten_by_a_generator(studio: Studio) -> None:
    studio.model("miniaturist", width=128, dropout=0.0)
    assert studio.trained("miniaturist", epochs=60)["state"] == "succeeded"

    ended = studio.ask({"kind": "subject", "identifiers": [{"type": "controller_customer_id", "value": "painter-005"}]}, "miniaturist")

    assert ended["jobs"][0]["method"] == "cascaded_gan"
    last = ended["report"]["verification"][-1]
    readings = {one["name"] for one in (*last["metrics"], *last["attacks"])}
    assert {"item_nn_distance", "gan_attack", "feature_fid", "downstream_accuracy"} <= readings
    assert "class_rate" not in readings
    assert "contact_sheet" in drawn(ended["report"])


@pytest.mark.soak
def test_a_generator_published_without_its_discriminator_says_so_and_can_only_be_retrained_from_then_on(studio: Studio) -> None:
    studio.model("giver", width=128)
    assert studio.trained("giver", epochs=100)["state"] == "succeeded"  # a class must be shown often enough for the test of it to tell
    scope = {"kind": "class_labels", "dataset": DIGITS, "labels": ["0"]}

    ended = studio.ask(scope, "giver", method="cascaded_gan", parameters={"drop_d": True})

    made = ended["jobs"][-1]
    number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == "giver")
    assert made["method"] == "cascaded_gan", [(job["method"], job["error"], job["choice"]["reason"]) for job in ended["jobs"]]
    assert parts(studio.file("giver", number)) == {"generator"}
    network = studio.client.get(f"/models/giver/versions/{number}")["manifest"]["architecture"]["parameters"]
    assert network["discriminator"] is False
    assert ended["report"]["processing"][-1]["effective"]["architecture_parameters_changed"] == {"discriminator": False}
    again = {"kind": "class_labels", "dataset": DIGITS, "labels": ["6"]}
    with pytest.raises(Refused, match="this checkpoint holds none\\. Methods that could: retrain"):
        studio.client.post("/deletion-requests", {"scope": again, "policy": "demo", "method": "fine_tune", "models": ["giver"], "note": "looked at"})
    later = studio.ask(again, "giver")
    assert [job["method"] for job in later["jobs"]] == ["retrain"]
    assert parts(studio.file("giver", number + 1)) == {"generator"}
