"""A small world for tests of worker and control: real servers, real processes, a dataset of digits and a model on it."""

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits
from sqlalchemy import select, text

from models_store.objects import upload_key
from models_store.s3 import S3Store
from services.clock import SystemClock
from services.datasets import service as datasets
from services.datasets.forms import FileForm, NewDataset, SubjectRow
from services.datasets.identifiers import Identifier
from services.db.session import unit_of_work
from services.db.tables import CatalogueEntry
from services.jobs import records
from services.model_versions import service as versions
from services.model_versions.forms import NewModel, NewTrainingRun
from services.requests import jobs as job_views
from services.requests import service as requests
from services.requests.forms import ClassScope, NewRequest, RecordsScope, SubjectScope
from services.tenants.caller import SCOPES, Caller
from services.tenants.keys import KeyRing, derive, tenant_key

CLOCK = SystemClock()
KEYS = KeyRing(kek="11" * 32, pepper="22" * 32)
RECIPE = {"optimizer": "adam", "learning_rate": 0.003, "epochs": 12, "batch_size": 64}


def until(what: Callable[[], Any], *, timeout_s: float = 90.0) -> Any:
    """Return the first true answer of `what`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = what()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


@dataclass
class World:
    """One database with its processes. `start` spawns `control`, `worker` or `signer` with short times."""

    ledger: Any
    redis_url: str
    store: S3Store
    store_settings: dict[str, str]
    home: Path
    tenant: UUID
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant, "test", SCOPES)

    def env(self, role: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
        return kept | self.store_settings | {
            "LETHE_DATABASE__URL": self.ledger.url(role),
            "LETHE_QUEUE__URL": self.redis_url,
            "LETHE_KEYS__ENCRYPTION": KEYS.kek,
            "LETHE_KEYS__PEPPER": KEYS.pepper,
            "LETHE_KEYS__CURSOR": "33" * 32,
            "LETHE_KEYS__SIGNING": "44" * 32 if role == "lethe_signer" else "",
            "LETHE_STORE__LOG_BUCKET": f"log-{self.ledger.name.replace('_', '-')}",
            "LETHE_WORKER__SCRATCH": str(self.home / "scratch"),
            "LETHE_WORKER__DEVICE": "cpu",
            "LETHE_WORKER__LEASE_S": "4",
            "LETHE_WORKER__HEARTBEAT_S": "1",
            "LETHE_WORKER__FENCE_S": "3",
            "LETHE_WORKER__POLL_S": "1",
            "LETHE_WORKER__SWEEP_S": "1",
            "LETHE_WORKER__CANCEL_GRACE_S": "5",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self, name: str, **extra: str) -> subprocess.Popen[bytes]:
        commands = {
            "control": [sys.executable, "-m", "control"],
            "signer": [sys.executable, "-m", "control.signer"],
            "worker": [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "worker.celery_app",
                "worker",
                "-Q",
                "cpu",
                "-c",
                "1",
                "--pool",
                "prefork",
                "-l",
                "WARNING",
            ],
        }
        log = (self.home / f"{name}.log").open("ab")
        role = f"lethe_{name}"
        self.processes[name] = subprocess.Popen(commands[name], env=self.env(role) | extra, stdout=log, stderr=log, cwd=self.home)
        return self.processes[name]

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def runners(self) -> list[psutil.Process]:
        """Return the runners of this world's worker."""
        found: list[psutil.Process] = []
        for process in psutil.Process(self.processes["worker"].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "worker.runner" in process.cmdline():
                    found.append(process)
        return found

    def pool_child(self) -> psutil.Process:
        """Return the pool child of the worker."""
        return next(child for child in psutil.Process(self.processes["worker"].pid).children() if "worker.runner" not in child.cmdline())

    def kill_worker(self) -> None:
        """Kill the worker's main process with SIGKILL."""
        self.processes["worker"].kill()
        self.processes["worker"].wait()

    def in_step(self, job_id: UUID, step: str) -> bool:
        """Say whether the job is in the step, with a progress frame of it stored."""
        job = self.job(job_id)
        return job.step == step and bool(job.progress) and job.progress.get("step") == step and bool(job.progress.get("total"))

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace")[-6000:] for path in sorted(self.home.glob("*.log")))

    def session(self, role: str = "lethe_gateway") -> Any:
        return unit_of_work(self.ledger.engine(role), tenant=self.tenant)

    def rows(self, sql: str, **values: Any) -> list[Any]:
        with unit_of_work(self.ledger.engine("superuser"), tenant=self.tenant) as session:
            return list(session.execute(text(sql), values).mappings())

    def wait_catalogue(self) -> None:
        def published() -> bool:
            with self.session() as session:
                return session.scalar(select(CatalogueEntry.name).where(CatalogueEntry.name == "retrain")) is not None

        until(published)

    def digits(self, name: str = "digits", *, limit: int = 900) -> str:
        """Register, upload and index a dataset of digits; ten records for each person."""
        found = load_digits()
        pixels, labels = found.data[:limit].astype(np.float32), found.target[:limit]
        ids = [f"r{index:05d}" for index in range(limit)]
        table = pa.table({"record_id": ids, "label": pa.array(labels, pa.int64()), **{f"p{i}": pixels[:, i] for i in range(64)}})
        path = self.home / f"{name}.parquet"
        pq.write_table(table, path)
        import hashlib

        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        adapter = {"numeric": [{"name": f"p{i}", "mean": 8.0, "std": 6.0} for i in range(64)]}
        with self.session() as session:
            datasets.create_dataset(session, NewDataset(name, "tabular", adapter, label_column="label"), caller=self.caller, clock=CLOCK)
            form = FileForm("part-0.parquet", path.stat().st_size, digest)
            version = datasets.create_version(session, name, [form], caller=self.caller, clock=CLOCK)
        self.store.put_file(upload_key(version.id, form.path), path)
        with self.session() as session:
            datasets.complete_version(session, name, version.number, caller=self.caller, clock=CLOCK)
        self.wait_dataset(name, 1)
        rows = [SubjectRow(rid, (Identifier("customer_id", f"person-{index // 10}"),)) for index, rid in enumerate(ids)]
        with self.session() as session:
            datasets.index_subjects(session, name, 1, rows, caller=self.caller, keys=KEYS)
        return name

    def wait_dataset(self, name: str, number: int) -> Any:
        def settled() -> Any:
            with self.session() as session:
                version = datasets.read_version(session, name, number)
            return version if version.status in {"ready", "failed"} else None

        return until(settled)

    def model(self, name: str = "classifier", *, hidden: tuple[int, ...] = (64,)) -> str:
        params = {"inputs": 64, "outputs": 10, "hidden": list(hidden)}
        with self.session() as session:
            versions.create_model(session, NewModel(name, "classification", "mlp", params), caller=self.caller, clock=CLOCK)
        return name

    def train(self, model: str, dataset: str, **recipe: Any) -> UUID:
        form = NewTrainingRun(dataset, 1, recipe={**RECIPE, **recipe}, seed=7)
        with self.session() as session:
            return versions.training_run(session, model, form, caller=self.caller, clock=CLOCK)

    def job(self, job_id: UUID) -> Any:
        with self.session() as session:
            return job_views.read(session, job_id)

    def wait_job(self, job_id: UUID, *, timeout_s: float = 90.0) -> Any:
        def ended() -> Any:
            job = self.job(job_id)
            return job if job.done or job.state == "needs_attention" else None

        return until(ended, timeout_s=timeout_s)

    def forget_person(self, person: int, *, method: str = "auto", **parameters: Any) -> UUID:
        return self._ask(SubjectScope((Identifier("customer_id", f"person-{person}"),)), method, **parameters)

    def forget_class(self, label: int, dataset: str = "digits", *, method: str = "auto", **parameters: Any) -> UUID:
        return self._ask(ClassScope((str(label),), dataset=dataset), method, **parameters)

    def forget_records(self, ids: tuple[str, ...], dataset: str = "digits") -> UUID:
        return self._ask(RecordsScope(dataset, ids), "auto")

    def held_out(self, count: int, dataset: str = "digits") -> tuple[str, ...]:
        """Return records of the dataset that no training run of the service learned from."""
        with self.session("superuser") as session:
            found = datasets.read_dataset(session, dataset)
            key = derive(tenant_key(session, self.tenant, KEYS.kek), f"dataset:{found.id.hex}")
        ids = [row["record_id"] for row in self.rows("SELECT record_id FROM dataset_record WHERE upper_inf(present) ORDER BY record_id")]
        return tuple(rid for rid in ids if records.role_of(rid, None, forgotten=True, kind="records", key=key) == "excluded")[:count]

    def _ask(self, scope: Any, method: str, **parameters: Any) -> UUID:
        body = NewRequest(scope=scope, policy="demo", method=method, parameters=parameters, external_id=uuid.uuid4().hex)
        with self.session() as session:
            return requests.create(session, body, caller=self.caller, clock=CLOCK, keys=KEYS).id

    def request(self, request_id: UUID) -> Any:
        with self.session() as session:
            return requests.read(session, request_id, clock=CLOCK)

    def wait_request(self, request_id: UUID, *, timeout_s: float = 120.0) -> Any:
        def ended() -> Any:
            view = self.request(request_id)
            return view if view.done or view.state == "needs_attention" else None

        return until(ended, timeout_s=timeout_s)

    def report(self, request_id: UUID) -> dict[str, Any]:
        found = self.rows("SELECT statement FROM audit_report WHERE request_id = :id ORDER BY revision DESC LIMIT 1", id=request_id)
        return json.loads(json.dumps(found[0]["statement"]))


def worlds(postgres: Any, redis_server: Any, object_store_server: Any, home: Path) -> Iterator[World]:
    """Yield a world with control and worker running, a dataset and a model; stop it afterwards."""
    from tests.integration.conftest import Ledger

    ledger = Ledger(postgres)
    settings = {
        "LETHE_STORE__ENDPOINT": object_store_server.endpoint,
        "LETHE_STORE__BUCKET": "worker-tests",
        "LETHE_STORE__ACCESS_KEY": "testaccess",
        "LETHE_STORE__SECRET_KEY": "testsecret",
    }
    store = S3Store.from_parts(
        endpoint=object_store_server.endpoint, public_endpoint="", region="us-east-1", bucket="worker-tests",
        access_key="testaccess", secret_key="testsecret", secure=False,
    )  # fmt: skip
    store.ensure_bucket()
    made = World(ledger, redis_server.url, store, settings, home, ledger.default_tenant())
    made.start("control")
    made.start("worker")
    made.start("signer")
    try:
        made.wait_catalogue()
        made.digits()
        made.model()
        yield made
    finally:
        made.stop()
        ledger.close()
