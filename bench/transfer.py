"""A 1 GiB checkpoint streamed by the gateway against the raw presigned GET of the same object, in turns; the gateway's memory meanwhile."""

import hashlib
import http.client
import os
import shutil
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from bench.row import Row
from bench.service import rest, service, superuser
from cli.embedded.stack import Stack
from models_store.objects import ObjectStore, blob_key
from models_store.s3 import S3Store

MIB = 1024 * 1024
SIZE_BYTES = 1024 * MIB
NEEDED_BYTES = 8 * SIZE_BYTES
REPEATS = 3
SAMPLE_S = 0.02
GROWTH_GOAL_MIB = 32.0
TIMEOUT_S = 300.0
FILE = "model.safetensors"
MODEL = "bench-large"

_MODEL = """
INSERT INTO model (id, tenant_id, name, task, architecture, architecture_params)
SELECT %s, id, %s, 'classification', 'tiny_cnn', '{}' FROM tenant LIMIT 1
"""
_VERSION = "INSERT INTO model_version (id, tenant_id, model_id, number, status, fresh_start) SELECT %s, tenant_id, id, 1, 'ready', true FROM model WHERE id = %s"
_FILE = """
INSERT INTO model_file (tenant_id, version_id, path, digest, size_bytes, media_type)
SELECT tenant_id, id, %s, %s, %s, 'application/octet-stream' FROM model_version WHERE id = %s
"""
_OBJECT = "INSERT INTO object (digest, size_bytes) VALUES (%s, %s)"


class Memory:
    """The highest resident set of a process above what it had at the start, sampled from a thread."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._start = self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def growth_mib(self) -> float:
        """Highest growth so far, in MiB."""
        return (self._peak - self._start) / MIB

    @contextmanager
    def watched(self) -> Iterator["Memory"]:
        """Sample as long as the block runs."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._peak = max(self._peak, self._process.memory_info().rss)


def measure() -> Row:
    """Return the rate of the gateway's stream over that of the raw GET; medians of alternating repeats."""
    with service() as (stack, client):
        rest(stack, "worker", "control")
        path = stack.home / FILE
        if shutil.disk_usage(stack.home).free < NEEDED_BYTES:
            raise OSError(f"the bench needs {NEEDED_BYTES // MIB} MiB of free disk")
        digest = random_file(path)
        store = store_of(stack)
        gateway = stack.children["gateway"].pid
        with Memory(gateway).watched() as on_upload:
            upload_s = put(store.presign_put(blob_key(digest), 600, SIZE_BYTES, digest), path)
        path.unlink()
        register(stack, digest)
        ours = f"{stack.url}/v1/models/{MODEL}/versions/1/files/{FILE}?delivery=stream"
        bearer = {"Authorization": f"Bearer {stack.api_key}"}
        get(ours, {**bearer, "Range": "bytes=0-1048575"}, MIB)  # the first answer loads code and opens connections
        streamed, raw = [], []
        with Memory(gateway).watched() as on_download:
            for _ in range(REPEATS):
                raw.append(get(store.presign_get(blob_key(digest), 600, FILE), {}, SIZE_BYTES))
                streamed.append(get(ours, bearer, SIZE_BYTES))
        client.get("/models")
    return row(streamed, raw, upload_s, on_download, on_upload)


def row(streamed: list[float], raw: list[float], upload_s: float, on_download: Memory, on_upload: Memory) -> Row:
    """Return the row of what was measured."""
    own, other = SIZE_BYTES / MIB / statistics.median(streamed), SIZE_BYTES / MIB / statistics.median(raw)
    detail = {
        "size_mib": SIZE_BYTES // MIB,
        "repeats": REPEATS,
        "stream_mib_per_s": round(own, 1),
        "raw_get_mib_per_s": round(other, 1),
        "rss_growth_mib": round(on_download.growth_mib, 1),
        "rss_growth_goal_mib": GROWTH_GOAL_MIB,
        "rss_reached": on_download.growth_mib < GROWTH_GOAL_MIB,
        "upload": "a presigned PUT goes to the store, so the gateway carries no byte of it",
        "upload_put_s": round(upload_s, 2),
        "upload_put_mib_per_s": round(SIZE_BYTES / MIB / upload_s, 1),
        "upload_rss_growth_mib": round(on_upload.growth_mib, 1),
    }
    return Row("transfer", own / other, 0.7, "higher", detail)


def random_file(path: Path) -> str:
    """Write a file of random bytes and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(SIZE_BYTES // (4 * MIB)):
            block = os.urandom(4 * MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def store_of(stack: Stack) -> ObjectStore:
    """Return the stack's object store."""
    held: dict[str, Any] = {"endpoint": stack.store.endpoint, "public_endpoint": stack.store.endpoint, "region": "us-east-1", "bucket": "lethe"}
    return S3Store.from_parts(**held, access_key=stack.store.access_key, secret_key=stack.store.secret_key, secure=False)


def register(stack: Stack, digest: str) -> None:
    """Write the rows of a model version that holds the object; the checks of an upload would ask for an architecture of that size."""
    model, version = uuid.uuid4(), uuid.uuid4()
    with superuser(stack) as connection:
        connection.execute(_OBJECT, (digest, SIZE_BYTES))
        connection.execute(_MODEL, (model, MODEL))
        connection.execute(_VERSION, (version, model))
        connection.execute(_FILE, (FILE, digest, SIZE_BYTES, version))


def get(url: str, headers: Mapping[str, str], size: int) -> float:
    """GET and discard `size` bytes in reads of 1 MiB; return the seconds it took. Raises OSError for another answer."""
    connection, target = dial(url)
    buffer = memoryview(bytearray(MIB))
    began = time.perf_counter()
    connection.request("GET", target, headers=dict(headers))
    answer = connection.getresponse()
    if answer.status not in {200, 206}:
        raise OSError(f"GET answered {answer.status}: {answer.read(500)!r}")
    got = 0
    while count := answer.readinto(buffer):
        got += count
    took = time.perf_counter() - began
    connection.close()
    if got != size:
        raise OSError(f"got {got} bytes instead of {size}")
    return took


def put(url: str, path: Path) -> float:
    """PUT the file and return the seconds it took. Raises OSError for a refusal."""
    connection, target = dial(url)
    connection.blocksize = MIB
    began = time.perf_counter()
    with path.open("rb") as file:
        connection.request("PUT", target, body=file, headers={"Content-Length": str(SIZE_BYTES)})
        answer = connection.getresponse()
        text = answer.read()
    took = time.perf_counter() - began
    connection.close()
    if answer.status >= 300:
        raise OSError(f"PUT answered {answer.status}: {text[:500]!r}")
    return took


def dial(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection to a loopback address, and path with query."""
    parts = urlsplit(url)
    if parts.hostname != "127.0.0.1":
        raise ValueError("a transfer goes to 127.0.0.1 only")
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S), f"{parts.path}?{parts.query}"
