"""A stack with short leases, a small dataset, and a model to kill things around."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client import Client
from cli.demo import register_dataset
from cli.embedded.stack import Stack

SHORT = {
    "LETHE_WORKER__LEASE_S": "4",
    "LETHE_WORKER__HEARTBEAT_S": "1",
    "LETHE_WORKER__FENCE_S": "3",
    "LETHE_WORKER__POLL_S": "1",
    "LETHE_WORKER__SWEEP_S": "1",
}


@pytest.fixture(scope="module")
def stack(server_home: Path) -> Iterator[Stack]:
    """The whole service on free ports."""
    import os

    clean = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    running = Stack(server_home / "stack", configured=clean, extra_env=SHORT)
    try:
        running.start()
        yield running
    finally:
        for part in (*running.children.values(), running.redis, running.store, running.postgres):
            part.kill()  # a graceful end waits for every kept connection, and is tested elsewhere


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[Client]:
    """A caller with the first key."""
    caller = Client(stack.url, stack.api_key)
    yield caller
    caller.close()


@pytest.fixture
def digits(client: Client, tmp_path: Path) -> str:
    """The name of a ready dataset with people of its own: bytes that held forgotten records may not come back under another name."""
    from cli.importers import import_sklearn

    name = f"digits-{uuid.uuid4().hex[:8]}"
    import_sklearn("digits", tmp_path / "digits.parquet", records_per_subject=10, subject_prefix=f"{name}-")
    register_dataset(client, name, tmp_path / "digits.parquet", adapter="image", adapter_params={"height": 8, "width": 8, "channels": 1})
    return name
