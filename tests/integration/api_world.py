"""The gateway over HTTP on real servers, with a dataset and a model that came in through it; control's upload checks run in the test."""

import contextlib
import hashlib
import io
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn

from api.app import create_app
from control.ingest import Ingest
from models_store.s3 import S3Store
from services.catalogue.service import EntryIn
from services.catalogue.service import publish as publish_catalogue
from services.clock import SystemClock
from services.db.session import unit_of_work
from services.settings import Settings
from services.tenants import service as tenants
from services.tenants.caller import SCOPES
from services.tenants.policies import seed_policies

CLOCK = SystemClock()
PEPPER = "22" * 32
BUCKET = "api-tests"
EPOCHS = {"type": "object", "properties": {"epochs": {"type": "integer", "minimum": 1, "maximum": 100}}, "additionalProperties": False}
BOTH = {"tasks": ["classification"], "granularities": ["class", "records"]}
CATALOGUE = [
    EntryIn("dataset_adapter", "tabular", facts={"tasks": ["classification"]}),
    EntryIn("dataset_adapter", "series", facts={"tasks": ["forecasting", "regression"], "label_column": "target"}),
    EntryIn("task", "classification"),
    EntryIn("architecture", "mlp", facts={"tasks": ["classification"]}),
    EntryIn("metric", "accuracy"),
    EntryIn("method", "retrain", guarantee="exact", needs=("retain_set", "recipe"), facts=BOTH),
    EntryIn("method", "unsir", schema=EPOCHS, needs=("retain_set",), facts={**BOTH, "granularities": ["class"]}),
    EntryIn("method", "bad_teacher", needs=("retain_set",), facts=BOTH),
]


def until(what: Callable[[], Any], *, timeout_s: float = 20.0) -> Any:
    """Return the first true answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = what()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet(rows: list[tuple[str, str | None]]) -> bytes:
    """Return a parquet file of records with two features and a label."""
    values = {"record_id": [name for name, _ in rows], "x": [float(index) for index in range(len(rows))], "y": [1.0] * len(rows)}
    table = pa.table(values | {"label": pa.array([label for _, label in rows], pa.string())})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def safetensors(tensors: dict[str, list[int]], *, values: float = 0.5, dtype: str = "F32") -> bytes:
    """Return a safetensors file of float tensors of these shapes, all elements alike."""
    header: dict[str, Any] = {}
    data = b""
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        part = struct.pack("<f", values) * count if dtype == "F32" else struct.pack("<d", values) * count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@dataclass
class Gateway:
    """A served gateway. `key` makes a bearer header; `call` sends one request."""

    ledger: Any
    store: S3Store
    scratch: Path
    url: str
    tenant: UUID
    app: Any
    client: httpx2.Client
    secrets: dict[str, str] = field(default_factory=dict)

    def key(self, client: str, *scopes: str, tenant: UUID | None = None) -> str:
        """Return the API key of a client, made at its first use."""
        if client not in self.secrets:
            with unit_of_work(self.ledger.engine("lethe_owner"), tenant=tenant or self.tenant) as session:
                self.secrets[client] = tenants.issue_key(
                    session, tenant_id=tenant or self.tenant, client=client, scopes=scopes or SCOPES, pepper=PEPPER
                )
        return self.secrets[client]

    def call(self, method: str, path: str, body: Any = None, *, by: str | None = "desk", once: str | None = "", **headers: str) -> httpx2.Response:
        """Send one request as a client (None: without a key). `once` is the Idempotency-Key: a new one unless given, none for None."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if by is not None:
            sent["Authorization"] = f"Bearer {self.key(by)}"
        if once is not None and method == "POST":
            sent["Idempotency-Key"] = once or uuid.uuid4().hex
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            sent["Content-Type"] = "application/json"
        return self.client.request(method, path if path.startswith("/") else f"/v1/{path}", content=content, headers=sent)

    def ask(self, scope: dict[str, Any], **members: Any) -> httpx2.Response:
        """Create a deletion request under the policy `demo`."""
        return self.call("POST", "deletion-requests", {"scope": scope, "policy": "demo"} | members)

    def ingest(self) -> Ingest:
        """Return control's upload checks."""
        return Ingest(self.ledger.engine("lethe_control"), self.store, CLOCK, self.scratch)

    def upload(self, version: dict[str, Any], *contents: bytes) -> None:
        """PUT each content where the version says."""
        for target, content in zip(version["uploads"], contents, strict=True):
            answer = httpx2.put(target["url"], content=content, headers=target["headers"])
            assert answer.status_code == 200, answer.text

    def dataset(self, name: str, content: bytes, **members: Any) -> dict[str, Any]:
        """Register a dataset, upload its first version, check it, and return the version as it is read."""
        made = self.call("POST", "datasets", {"name": name, "adapter": "tabular", "label_column": "label"} | members)
        assert made.status_code == 201, made.text
        return self.dataset_version(name, content)

    def dataset_version(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload one version of a dataset, check it, and return it as it is read."""
        file = {"path": "records.parquet", "size_bytes": len(content), "sha256": sha256(content)}
        made = self.call("POST", f"datasets/{name}/versions", {"files": [file]})
        assert made.status_code == 201, made.text
        self.upload(made.json(), content)
        place = f"datasets/{name}/versions/{made.json()['version']}"
        assert self.call("POST", f"{place}/complete").status_code == 202
        self.ingest().dataset(self.tenant, UUID(made.json()["id"].removeprefix("dsv_")))
        return self.call("GET", place).json()

    def model(self, name: str, content: bytes, *, dataset: str = "digits") -> dict[str, Any]:
        """Register a model, upload its first version, check it, and return the version as it is read."""
        made = self.call("POST", "models", {"name": name, "task": "classification", "architecture": "mlp"})
        assert made.status_code == 201, made.text
        return self.model_version(name, content, trained_on=[{"dataset": dataset, "version": 1}], recipe={"epochs": 1})

    def model_version(self, name: str, content: bytes, *, sent: bytes | None = None, size: int | None = None, **members: Any) -> dict[str, Any]:
        """Upload one version of a model, check it, and return it as it is read. `sent` are the bytes that arrive in place of `content`."""
        file = {"path": "model.safetensors", "size_bytes": size or len(content), "sha256": sha256(content)}
        made = self.call("POST", f"models/{name}/versions", {"files": [file]} | members)
        assert made.status_code == 201, made.text
        version_id = UUID(made.json()["id"].removeprefix("mv_"))
        if sent is None:
            self.upload(made.json(), content)
        else:
            self.store.put_bytes(f"uploads/{version_id}/model.safetensors", sent)
        place = f"models/{name}/versions/{made.json()['number']}"
        done = self.call("POST", f"{place}/complete")
        assert done.status_code == 202, done.text
        self.ingest().model_version(self.tenant, version_id)
        return self.call("GET", place).json()

    def sql(self, statement: Any, role: str = "superuser") -> Any:
        """Run one statement and commit."""
        with unit_of_work(self.ledger.engine(role), tenant=self.tenant) as session:
            return session.execute(statement)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app by uvicorn on a free port and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False, server_header=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@contextlib.contextmanager
def gateways(postgres: Any, object_store_server: Any, scratch: Path) -> Iterator[Gateway]:
    """Yield a served gateway with an empty database of its own (tenant and policies are there)."""
    from tests.integration.conftest import Ledger

    ledger = Ledger(postgres)
    part = {"endpoint": object_store_server.endpoint, "bucket": BUCKET, "access_key": "testaccess", "secret_key": "testsecret"}
    store = S3Store.from_parts(public_endpoint="", region="us-east-1", secure=False, **part)
    store.ensure_bucket()
    keys = {"encryption": "11" * 32, "pepper": PEPPER, "cursor": "33" * 32}
    app = create_app(Settings(embedded=True, database={"url": ledger.url("lethe_gateway")}, store=part, keys=keys))
    try:
        with served(app) as url, httpx2.Client(base_url=url, timeout=30) as client:
            yield Gateway(ledger, store, scratch, url, ledger.default_tenant(), app, client)
    finally:
        ledger.close()


def populate(gateway: Gateway) -> None:
    """Publish a catalogue and bring in dataset `digits` (20 records of each label 0 to 4), its subjects, and model `reader` at version 1."""
    with unit_of_work(gateway.ledger.engine("lethe_worker"), tenant=None) as session:
        publish_catalogue(session, CATALOGUE, worker="w1", queue="cpu")
    with unit_of_work(gateway.ledger.engine("lethe_owner"), tenant=gateway.tenant) as session:
        seed_policies(session, tenant_id=gateway.tenant, clock=CLOCK)
    assert gateway.dataset("digits", parquet([(f"r{index:03}", str(index // 20)) for index in range(100)]))["status"] == "ready"
    rows = [{"record_id": f"r{index:03}", "identifiers": [{"type": "customer_id", "value": f"p{index // 2}"}]} for index in range(60)]
    indexed = gateway.call("POST", "datasets/digits/versions/1/subjects", {"rows": rows})
    assert indexed.json() == {"indexed": 60, "total": 60}, indexed.text
    assert gateway.model("reader", safetensors({"0.weight": [8, 2], "0.bias": [8]}))["status"] == "ready"
