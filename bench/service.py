"""A running stack with digits and a trained model, for the benches that go through HTTP."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cli.client import Client
from cli.demo import register_dataset, settled
from cli.embedded.stack import Stack

MODEL = "bench-model"
DATASET = "bench-digits"


@contextmanager
def service(extra_env: Mapping[str, str] | None = None) -> Iterator[tuple[Stack, Client]]:
    """Start a stack in a temporary folder and stop it at the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        stack = Stack(Path(folder), configured=clean, extra_env=extra_env)
        try:
            stack.start()
            client = Client(stack.url, stack.api_key, timeout_s=120)
            yield stack, client
            client.close()
        finally:
            stack.stop()


def with_model(client: Client, folder: Path) -> None:
    """Register the digits and train a small model on them."""
    from cli.importers import import_sklearn

    parquet = folder / "digits.parquet"
    import_sklearn("digits", parquet, records_per_subject=10)
    register_dataset(client, DATASET, parquet, adapter="image", adapter_params={"height": 8, "width": 8, "channels": 1})
    parameters = {"channels": 1, "width": 4, "outputs": 10}
    client.post("/models", {"name": MODEL, "task": "classification", "architecture": "tiny_cnn", "architecture_params": parameters})
    recipe = {"epochs": 3, "batch_size": 128, "learning_rate": 0.005}
    job = client.post(f"/models/{MODEL}/training-runs", {"dataset": DATASET, "dataset_version": 1, "recipe": recipe, "seed": 1})
    client.wait(f"/jobs/{job['id']}", lambda document: bool(document["done"]), timeout_s=120)


__all__ = ["DATASET", "MODEL", "service", "settled", "with_model"]
