"""Ranges, conditions and redirects of a checkpoint file."""

import asyncio
import base64
import hashlib
from typing import Any

import pytest

from api.files import File, Wanted, answer
from api.problems import Refusal
from models_store.memory import MemoryStore
from models_store.objects import blob_key
from services.errors import StoreDown

BYTES = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(BYTES).hexdigest()
ETAG = f'"sha256:{DIGEST}"'
FILE = File(DIGEST, len(BYTES), "model.safetensors", "application/octet-stream")
SIZE = len(BYTES)


def fetch(store: Any = None, **wanted: Any) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body."""
    if store is None:
        store = MemoryStore()
        store.put_bytes(blob_key(DIGEST), BYTES)
    form = {"head": False, "stream": True, "byte_range": None, "if_range": None, "if_none_match": None} | wanted
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        made = await answer(store, FILE, Wanted(**form), expires_s=300)
        await made({"type": "http", "method": "GET", "asgi": {"spec_version": "2.4"}, "headers": []}, receive, send)

    asyncio.run(run())
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent)


def test_a_whole_file_comes_with_its_digest() -> None:
    status, headers, body = fetch()
    assert (status, body == BYTES) == (200, True)
    assert (headers["etag"], headers["content-length"], headers["accept-ranges"]) == (ETAG, str(SIZE), "bytes")
    assert headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(BYTES).digest()).decode()}:"
    assert headers["content-disposition"] == 'attachment; filename="model.safetensors"'


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
        ("bytes=5-", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes=10-{SIZE * 2}", 10, SIZE),
    ],
)
def test_one_range_is_206(asked: str, start: int, end: int) -> None:
    status, headers, body = fetch(byte_range=asked)
    assert (status, body == BYTES[start:end]) == (206, True)
    assert headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=9-1",
        "bytes=0-1,5-6",
        ",".join(["bytes=0-1"] * 1000),
        "bytes=-",
        "bytes=a-b",
        "bytes=\u0661-\u0662",
        "lines=1-2",
        "bytes=1",
        "",
        "bytes=" + "9" * 40 + "-",
    ],
)
def test_a_malformed_range_and_several_ranges_give_the_whole_file(asked: str) -> None:
    status, headers, body = fetch(byte_range=asked)
    assert (status, len(body), "content-range" in headers) == (200, SIZE, False)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", "bytes=999999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(asked: str) -> None:
    with pytest.raises(Refusal) as refused:
        fetch(byte_range=asked)
    assert (refused.value.status_code, refused.value.headers) == (416, {"Content-Range": f"bytes */{SIZE}"})


def test_if_range_gives_the_part_only_of_the_same_file() -> None:
    assert fetch(byte_range="bytes=0-4", if_range=ETAG)[0] == 206
    for other in ('"sha256:other"', f"W/{ETAG}", "Fri, 20 Nov 2026 09:12:00 GMT"):
        assert fetch(byte_range="bytes=0-4", if_range=other)[0] == 200


@pytest.mark.parametrize("known", [ETAG, "*", f'"x", {ETAG}', f"W/{ETAG}"])
def test_a_file_that_the_client_holds_is_304(known: str) -> None:
    assert fetch(if_none_match=known, stream=False)[0::2] == (304, b"")


def test_head_tells_the_size_and_never_redirects() -> None:
    status, headers, body = fetch(head=True, stream=False)
    assert (status, headers["content-length"], body) == (200, str(SIZE), b"")


def test_without_stream_the_answer_is_a_redirect_that_is_not_cached() -> None:
    status, headers, _ = fetch(stream=False)
    assert (status, headers["cache-control"]) == (307, "no-store")
    assert DIGEST in headers["location"]


def test_a_blob_that_the_store_lost_is_503_before_the_first_byte() -> None:
    with pytest.raises(StoreDown):
        fetch(store=MemoryStore())
