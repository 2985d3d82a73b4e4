"""A client of a running stack with two halves of the digits, and models that learned from the first: what requests of every kind are tried on."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from cli.client import Client, sha256_of
from cli.demo import register_dataset, settled
from cli.importers import import_sklearn

IMAGES = {"height": 8, "width": 8, "channels": 1}
NETWORK = {"task": "classification", "architecture": "tiny_cnn", "architecture_params": {"channels": 1, "width": 16, "outputs": 10}}
RECIPE = {"optimizer": "adam", "learning_rate": 0.002, "epochs": 25, "batch_size": 128}
JUDGED_LABELS = (5, 6)
PAPERS = ("unsir", "bad_teacher", "lra_npp", "concept_poisoning", "gkt", "emmn")
"""The methods of the papers for classifiers."""


class Desk:
    """Two halves of the digits, `NAME-seen` and `NAME-unseen`, model `NAME-trained`, which learned from the first, and uploads of its weights.

    All are uploaded before the first request: the service takes no version that learned from what has been forgotten since.
    """

    def __init__(self, client: Client, folder: Path, name: str, *, seed: int) -> None:
        self.client, self.folder, self.seed = client, folder, seed
        self.learned, self.judged, self.trained, self.person = f"{name}-seen", f"{name}-unseen", f"{name}-trained", f"{name}-person-"
        self.checkpoint, self.copies = folder / "model.safetensors", 0

    def prepare(self, uploads: Iterable[str]) -> None:
        """Register both halves, train a model on the first, and upload what it learned under each of the names `uploads`."""
        import_sklearn("digits", self.folder / "all.parquet", records_per_subject=20, subject_prefix=self.person)
        table = pq.read_table(self.folder / "all.parquet")
        labels = np.asarray(table.column("label"))
        unseen = np.zeros(len(labels), dtype=bool)
        for label in JUDGED_LABELS:
            unseen[np.flatnonzero(labels == label)[-150:]] = True
        for name, part in ((self.learned, table.filter(~unseen)), (self.judged, table.filter(unseen))):
            pq.write_table(part, self.folder / f"{name}.parquet")
            register_dataset(self.client, name, self.folder / f"{name}.parquet", adapter="image", adapter_params=IMAGES)
        self.client.post("/models", {"name": self.trained, **NETWORK})
        job = self.client.post(
            f"/models/{self.trained}/training-runs", {"dataset": self.learned, "dataset_version": 1, "recipe": RECIPE, "seed": self.seed}
        )
        assert self.wait(f"/jobs/{job['id']}")["state"] == "succeeded"
        listed = self.client.get(f"/models/{self.trained}/versions/1")["manifest"]["files"]
        digest = next(file["sha256"] for file in listed if file["path"] == "model.safetensors")
        self.client.download(f"/models/{self.trained}/versions/1/files/model.safetensors", self.checkpoint, sha256=digest)
        for name in uploads:
            self.uploaded(name, trained_on=[{"dataset": self.learned, "version": 1}], recipe=RECIPE)

    def wait(self, path: str) -> dict[str, Any]:
        return self.client.wait(path, lambda seen: bool(seen["done"]) or "needs_attention" in {seen.get("status"), seen.get("state")}, timeout_s=240)

    def uploaded(self, name: str, **origin: Any) -> str:
        """Register a model whose first version is the checkpoint but for a hair, since nobody may upload weights that were put away elsewhere."""
        self.client.post("/models", {"name": name, **NETWORK})
        weights, own = load_file(self.checkpoint), self.folder / f"{name}-1.safetensors"
        self.copies += 1
        first = next(key for key, tensor in weights.items() if tensor.dtype == np.float32)
        weights[first] = weights[first] * np.float32(1 + 1e-6 * self.copies)
        save_file(weights, own)
        file = {"path": "model.safetensors", "size_bytes": own.stat().st_size, "sha256": sha256_of(own)}
        version = self.client.post(f"/models/{name}/versions", {"files": [file], **origin})
        self.client.upload(version["uploads"][0]["url"], own, version["uploads"][0].get("headers"))
        self.client.post(f"/models/{name}/versions/1/complete", {})
        self.client.wait(f"/models/{name}/versions/1", settled, timeout_s=60)
        return name

    def ask(self, scope: dict[str, Any], *, models: list[str] | None = None, **members: Any) -> dict[str, Any]:
        """Make a request of policy `demo`, wait for its end, and return it with its report under `report`."""
        narrowed = {"models": models, "note": "only this model is looked at here"} if models else {}
        made = self.client.post("/deletion-requests", {"scope": scope, "policy": "demo", **narrowed, **members})
        ended = self.wait(f"/deletion-requests/{made['id']}")
        report = self.client.report(made["id"]) if ended["done"] else None
        jobs = self.client.get("/jobs", request=made["id"])["items"]
        return {**ended, "report": report["predicate"] if report else None, "jobs": sorted(jobs, key=lambda job: job["rung"])}

    def checked_download(self, ended: dict[str, Any], model: str) -> None:
        """Download the version that a request published; its digest is the manifest's."""
        number = next(one["version"] for one in ended["result"]["versions"] if one["model"] == model)
        listed = self.client.get(f"/models/{model}/versions/{number}")["manifest"]["files"]
        digest = next(file["sha256"].removeprefix("sha256:") for file in listed if file["path"] == "model.safetensors")
        got = self.folder / f"{model}.safetensors"
        self.client.download(f"/models/{model}/versions/{number}/files/model.safetensors", got, sha256=digest)
        assert hashlib.sha256(got.read_bytes()).hexdigest() != sha256_of(self.checkpoint)

    def check_passed(self, ended: dict[str, Any], model: str) -> None:
        """A request ended with a verdict that passed and a version that can be downloaded."""
        assert ended["status"] == "completed", ended
        assert ended["report"]["verdict"] == "passed"
        self.checked_download(ended, model)

    def check_published_or_explained(self, ended: dict[str, Any], model: str) -> None:
        """A request that cannot end in retraining published what passed, or left the version as it stood and says why.

        So small a network learns little from pseudo-images, and the run, or its verdict, may end with that.
        """
        if ended["status"] == "completed":
            self.check_passed(ended, model)
        else:
            assert ended["status"] == "needs_attention"
            assert ended["attention"]["code"] in {"verdict-not-passed", "diverged"}
            assert ended["attention"]["detail"]
            assert self.client.get(f"/models/{model}")["current_version"] == 1
