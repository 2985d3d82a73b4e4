"""A running stack with digits and a trained model, for the benches that go through HTTP."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from cli.client import Client
from cli.demo import register_dataset
from cli.embedded.stack import DATABASE, Stack

MODEL = "bench-model"
DATASET = "bench-digits"
STEP_TIMEOUT_S = 120.0
WARM_TIMEOUT_S = 60.0
CALM_S = 0.4
CALM_CPU_S = 0.03


@contextmanager
def service(extra_env: Mapping[str, str] | None = None) -> Iterator[tuple[Stack, Client]]:
    """Start a stack in a temporary folder and stop it at the end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        stack = Stack(Path(folder), configured=clean, extra_env=extra_env)
        try:
            stack.start()
            client = Client(stack.url, stack.api_key, timeout_s=STEP_TIMEOUT_S)
            yield stack, client
            client.close()
        finally:
            stack.stop()


def with_model(client: Client, home: Path, *, epochs: int = 3, width: int = 4) -> list[str]:
    """Register the digits, train a small model on them, and return the record ids."""
    import pyarrow.parquet as pq

    from cli.importers import import_sklearn

    parquet = home / "digits.parquet"
    import_sklearn("digits", parquet, records_per_subject=10)
    register_dataset(client, DATASET, parquet, adapter="image", adapter_params={"height": 8, "width": 8, "channels": 1})
    parameters = {"channels": 1, "width": width, "outputs": 10}
    client.post("/models", {"name": MODEL, "task": "classification", "architecture": "tiny_cnn", "architecture_params": parameters})
    recipe = {"optimizer": "adam", "epochs": epochs, "batch_size": 128, "learning_rate": 0.002}
    job = client.post(f"/models/{MODEL}/training-runs", {"dataset": DATASET, "dataset_version": 1, "recipe": recipe, "seed": 1})
    ended = client.wait(f"/jobs/{job['id']}", lambda document: bool(document["done"]), timeout_s=STEP_TIMEOUT_S)
    if ended["state"] != "succeeded":
        raise RuntimeError(f"the training job ended {ended['state']}: {ended.get('error')}")
    return [str(one) for one in pq.read_table(parquet, columns=["record_id"]).column(0).to_pylist()]


def deletion(records: list[str], *, policy: str, method: str = "auto") -> dict[str, Any]:
    """Return the body of a deletion request for records of the digits."""
    return {
        "regulation": "gdpr",
        "policy": policy,
        "scope": {"kind": "records", "dataset": DATASET, "ids": records},
        "identity": {"mode": "asserted_by_controller"},
        "method": method,
    }


def rest(stack: Stack, *names: str) -> None:
    """Stop processes of the service, so that they neither work nor poll while something else is measured."""
    for name in names:
        stack.children[name].stop(timeout_s=20)


def superuser(stack: Stack) -> psycopg.Connection[Any]:
    """Return an autocommit connection that sees every tenant's rows: measurements are read from the database, not asked of the service."""
    return stack.postgres.admin(DATABASE)


def uuid_of(wire_id: str) -> str:
    """Return the UUID behind an id on the wire."""
    return wire_id.partition("_")[2]


def wait_warm(stack: Stack) -> None:
    """Wait until the worker's next runner is up and idle: its processes use no CPU for a while. Raises TimeoutError."""
    deadline = time.monotonic() + WARM_TIMEOUT_S
    while time.monotonic() < deadline:
        before = runners(stack)
        time.sleep(CALM_S)
        after = runners(stack)
        if before and before.keys() == after.keys() and all(after[pid] - before[pid] < CALM_CPU_S for pid in after):
            return
    raise TimeoutError("the worker's runner did not come to rest")


def runners(stack: Stack) -> dict[int, float]:
    """Return the CPU seconds of each runner process under the worker."""
    found: dict[int, float] = {}
    for process in psutil.Process(stack.children["worker"].pid).children(recursive=True):
        try:
            if "worker.runner" in process.cmdline():
                used = process.cpu_times()
                found[process.pid] = used.user + used.system
        except psutil.Error:
            continue
    return found
