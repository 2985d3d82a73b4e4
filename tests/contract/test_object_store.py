"""One oracle for every object store: what holds for the real server holds for the one in memory, too."""

import hashlib
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

import pytest
import urllib3

from control.signer import BucketCopies
from models_store.checkpoints import fetch_blob, put_blob, verify_blob
from models_store.errors import DigestWrong, ObjectMissing, RangeBeyondEnd, StoreRefused, StoreUnavailable
from models_store.memory import MemoryStore
from models_store.objects import ObjectStore, blob_key
from models_store.s3 import MULTIPART_ABOVE_BYTES, S3Store

MIB = 1024 * 1024


@dataclass(frozen=True)
class Shelf:
    """A store under test, and how one speaks to its presigned URLs."""

    store: ObjectStore
    speak: Callable[[str, str, bytes], tuple[int, bytes]]
    with_wrong_secret: ObjectStore


def s3(server, bucket: str, *, secret: str | None = None, public: str = "", endpoint: str | None = None) -> S3Store:
    return S3Store.from_parts(
        endpoint=endpoint or server.endpoint,
        public_endpoint=public,
        region="us-east-1",
        bucket=bucket,
        access_key=server.access_key,
        secret_key=secret or server.secret_key,
        secure=False,
    )


def over_http(method: str, url: str, body: bytes = b"") -> tuple[int, bytes]:
    with urllib3.PoolManager(retries=False, timeout=30) as http:
        answer = http.request(method, url, body=body if method == "PUT" else None)
        return answer.status, answer.data


def build(kind: str, request: pytest.FixtureRequest, *, versioned: bool) -> Shelf:
    if kind == "memory":
        store = MemoryStore()
        store.ensure_bucket(versioned=versioned)
        return Shelf(store, store.answer, MemoryStore())
    server = request.getfixturevalue("object_store_server")
    bucket = f"contract-{uuid4().hex[:12]}"
    store = s3(server, bucket)
    store.ensure_bucket(versioned=versioned)
    return Shelf(store, over_http, s3(server, bucket, secret="not-the-secret-of-this-key"))


@pytest.fixture(params=["memory", "seaweedfs"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    return build(request.param, request, versioned=False)


@pytest.fixture
def store(shelf: Shelf) -> ObjectStore:
    return shelf.store


@pytest.fixture(params=["memory", "seaweedfs"])
def versioned(request: pytest.FixtureRequest) -> ObjectStore:
    return build(request.param, request, versioned=True).store


@pytest.fixture
def server_store(object_store_server) -> S3Store:
    store = s3(object_store_server, f"contract-{uuid4().hex[:12]}")
    store.ensure_bucket()
    return store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wait_for(condition: Callable[[], bool], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_what_was_put_is_read_back(store):
    assert store.put_bytes("a/one", b"hello")

    assert b"".join(store.open("a/one")) == b"hello"
    found = store.head("a/one")
    assert found is not None
    assert (found.key, found.size_bytes, found.marker, found.is_latest) == ("a/one", 5, False, True)


def test_an_empty_object_is_an_object(store):
    store.put_bytes("empty", b"")

    assert b"".join(store.open("empty")) == b""
    found = store.head("empty")
    assert found is not None
    assert found.size_bytes == 0


def test_making_the_bucket_again_keeps_what_is_in_it(store):
    store.put_bytes("kept", b"x")

    store.ensure_bucket()

    assert store.get_range("kept", 0, 1) == b"x"


def test_conditional_put_keeps_the_first_bytes(store):
    assert store.put_bytes("k", b"first")

    assert not store.put_bytes("k", b"second")

    assert b"".join(store.open("k")) == b"first"


def test_unconditional_put_replaces_the_bytes(store):
    store.put_bytes("k", b"first")

    assert store.put_bytes("k", b"second", if_absent=False)

    assert b"".join(store.open("k")) == b"second"


def test_the_server_itself_refuses_a_second_conditional_put(object_store_server, server_store):
    url = server_store._client.get_presigned_url("PUT", server_store._bucket, "raw")

    with urllib3.PoolManager(retries=False) as http:
        answers = [http.request("PUT", url, body=body, headers={"If-None-Match": "*"}).status for body in (b"1", b"2")]

    assert answers == [200, 412]
    assert server_store.get_range("raw", 0, 9) == b"1"


def test_of_two_writers_that_both_saw_nothing_the_second_is_told_so(server_store):
    assert server_store._put_whole("raced", io.BytesIO(b"1"), 1, if_absent=True)

    assert not server_store._put_whole("raced", io.BytesIO(b"2"), 1, if_absent=True)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 1, b"0"), (3, 4, b"3456"), (9, 1, b"9"), (8, 100, b"89"), (0, 10, b"0123456789"), (4, 0, b"")],
)
def test_a_range_is_cut_at_the_end_of_the_object(store, start, length, expected):
    store.put_bytes("digits", b"0123456789")

    assert store.get_range("digits", start, length) == expected


@pytest.mark.parametrize("start", [10, 11, 1_000_000])
def test_a_range_beyond_the_end_is_an_error(store, start):
    store.put_bytes("digits", b"0123456789")

    with pytest.raises(RangeBeyondEnd):
        store.get_range("digits", start, 1)


def test_a_stream_comes_in_chunks_of_at_most_one_mebibyte(store):
    data = os.urandom(3 * MIB + 17)
    store.put_bytes("big", data)

    chunks = list(store.open("big"))

    assert max(map(len, chunks)) <= MIB
    assert b"".join(chunks) == data
    assert b"".join(store.open("big", start=MIB + 3)) == data[MIB + 3 :]
    assert b"".join(store.open("big", start=5, length=2 * MIB)) == data[5 : 5 + 2 * MIB]


def test_an_abandoned_stream_does_not_spoil_the_next_read(store):
    data = os.urandom(3 * MIB)
    store.put_bytes("big", data)

    for _ in range(40):
        chunks = store.open("big")
        next(chunks)
        chunks.close()

    assert b"".join(store.open("big")) == data


def test_a_download_writes_a_new_file_and_never_over_one(store, tmp_path):
    store.put_bytes("k", b"hello")

    assert store.download("k", tmp_path / "file") == 5

    assert (tmp_path / "file").read_bytes() == b"hello"
    with pytest.raises(FileExistsError):
        store.download("k", tmp_path / "file")


def test_reading_what_is_not_there_says_so(store):
    assert store.head("nothing") is None
    assert list(store.list_versions("nothing")) == []
    with pytest.raises(ObjectMissing):
        store.get_range("nothing", 0, 1)
    with pytest.raises(ObjectMissing):
        list(store.open("nothing"))


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a b", "a?b", "a\nb", "é", "a" * 513])
def test_a_key_that_could_leave_its_place_is_refused(store, key):
    with pytest.raises(ValueError, match="object key"):
        store.put_bytes(key, b"x")


def test_a_presigned_get_reads_one_object(shelf):
    shelf.store.put_bytes("k", b"hello")

    url = shelf.store.presign_get("k", 60, "model.safetensors")

    assert shelf.speak("GET", url, b"") == (200, b"hello")


def test_a_presigned_get_offers_the_file_name_as_an_attachment(server_store):
    server_store.put_bytes("k", b"hello")

    with urllib3.PoolManager(retries=False) as http:
        answer = http.request("GET", server_store.presign_get("k", 60, 'a"b\r\nX: y.safetensors'))

    assert answer.headers["Content-Disposition"] == 'attachment; filename="a_b__X__y.safetensors"'
    assert "X" not in answer.headers


def test_an_expired_url_is_refused(shelf):
    shelf.store.put_bytes("k", b"hello")

    url = shelf.store.presign_get("k", 1, "f")

    assert wait_for(lambda: shelf.speak("GET", url, b"")[0] == 403, within_s=15)


def test_a_tampered_url_is_refused(shelf):
    shelf.store.put_bytes("k", b"hello")
    shelf.store.put_bytes("secret", b"other")
    url = shelf.store.presign_get("k", 60, "f")

    assert shelf.speak("GET", url.replace("/k?", "/secret?"), b"")[0] == 403
    assert shelf.speak("GET", url.replace("=60", "=6000") if "=60" in url else url.replace("expires=", "expires=9"), b"")[0] == 403
    assert shelf.speak("GET", url[:-1] + ("0" if url[-1] != "0" else "1"), b"")[0] == 403
    assert shelf.speak("PUT", url, b"over")[0] == 403
    assert shelf.store.get_range("k", 0, 9) == b"hello"


def test_a_url_signed_with_another_secret_is_refused(shelf):
    shelf.store.put_bytes("k", b"hello")

    assert shelf.speak("GET", shelf.with_wrong_secret.presign_get("k", 60, "f"), b"")[0] == 403


def test_an_anonymous_reader_is_refused(shelf):
    shelf.store.put_bytes("k", b"hello")
    unsigned = shelf.store.presign_get("k", 60, "f").partition("?")[0]

    assert shelf.speak("GET", unsigned, b"")[0] == 403


def test_a_call_with_a_wrong_secret_is_refused_as_such(object_store_server, server_store):
    stranger = s3(object_store_server, server_store._bucket, secret="not-the-secret-of-this-key")

    with pytest.raises(StoreRefused):
        stranger.put_bytes("k", b"x")
    with pytest.raises(StoreRefused):
        list(stranger.list_versions("k"))


def test_a_presigned_put_takes_the_bytes_it_was_signed_for(shelf):
    url = shelf.store.presign_put("uploads/k", 60, 5, sha256(b"hello"))

    assert shelf.speak("PUT", url, b"hello")[0] == 200

    assert shelf.store.get_range("uploads/k", 0, 9) == b"hello"


@pytest.mark.parametrize("body", [b"hellO", b"hello, and more", b"hell", b""])
def test_a_presigned_put_refuses_every_other_body(shelf, body):
    url = shelf.store.presign_put("uploads/k", 60, 5, sha256(b"hello"))

    assert shelf.speak("PUT", url, body)[0] == 400

    assert shelf.store.head("uploads/k") is None


def test_a_presigned_put_whose_digest_was_exchanged_is_refused(shelf):
    good, other = (shelf.store.presign_put("uploads/k", 60, 5, sha256(data)) for data in (b"hello", b"other"))
    names = {"x-amz-checksum-sha256", "sha256"}
    mixed = good
    for mine, theirs in zip(good.partition("?")[2].split("&"), other.partition("?")[2].split("&"), strict=True):
        if mine.partition("=")[0].lower() in names:
            mixed = mixed.replace(mine, theirs)
    assert mixed != good

    assert shelf.speak("PUT", mixed, b"other")[0] == 403


def test_urls_carry_the_public_name_unless_asked_otherwise(object_store_server):
    store = s3(object_store_server, "anything", public="https://files.example.org")

    assert store.presign_get("k", 60, "f").startswith("https://files.example.org/anything/k?")
    assert store.presign_put("k", 60, 1, sha256(b"x")).startswith("https://files.example.org/")
    assert store.presign_get("k", 60, "f", public=False).startswith(f"http://{object_store_server.endpoint}/")


def test_two_versions_are_deleted_by_id_and_the_listing_proves_it(versioned):
    versioned.put_bytes("dir/k", b"one", if_absent=False)
    versioned.put_bytes("dir/k", b"two!", if_absent=False)
    found = list(versioned.list_versions("dir/k"))
    assert len({version.version_id for version in found}) == 2
    assert sorted(version.size_bytes for version in found) == [3, 4]
    assert [version.size_bytes for version in found if version.is_latest] == [4]

    for version in found:
        versioned.delete_version("dir/k", version.version_id)

    assert list(versioned.list_versions("dir/k")) == []
    assert versioned.head("dir/k") is None
    with pytest.raises(ObjectMissing):
        versioned.get_range("dir/k", 0, 1)


def test_deleting_the_newest_version_by_id_uncovers_the_older(versioned):
    versioned.put_bytes("k", b"one", if_absent=False)
    versioned.put_bytes("k", b"two!", if_absent=False)
    newest = next(version for version in versioned.list_versions("k") if version.is_latest)

    versioned.delete_version("k", newest.version_id)

    assert versioned.get_range("k", 0, 9) == b"one"


def test_delete_takes_every_version_and_leaves_neighbours_alone(versioned):
    for body in (b"1", b"2", b"3"):
        versioned.put_bytes("dir/k", body, if_absent=False)
    versioned.put_bytes("dir/k2", b"neighbour", if_absent=False)

    versioned.delete("dir/k")

    assert [version.key for version in versioned.list_versions("dir/k")] == ["dir/k2"]


def test_a_deletion_marker_is_listed_and_taken_away_too(object_store_server):
    store = s3(object_store_server, f"contract-{uuid4().hex[:12]}")
    store.ensure_bucket(versioned=True)
    store.put_bytes("k", b"one")
    store._client.remove_object(store._bucket, "k")
    assert store.head("k") is None
    assert sorted(version.marker for version in store.list_versions("k")) == [False, True]

    store.delete("k")

    assert list(store.list_versions("k")) == []


def test_deleting_what_is_not_there_is_done_already(store):
    store.delete("nothing")
    store.delete_version("nothing", "null")

    assert list(store.list_versions("nothing")) == []


def test_a_deleted_object_is_gone_and_its_url_answers_404(shelf):
    shelf.store.put_bytes("k", b"hello")
    url = shelf.store.presign_get("k", 60, "f")

    shelf.store.delete("k")

    assert shelf.speak("GET", url, b"")[0] == 404


@pytest.mark.soak
def test_a_thousand_and_one_objects_are_listed_and_deleted(store):
    keys = [f"many/{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda key: store.put_bytes(key, b"x"), keys))
    found = list(store.list_versions("many/"))
    assert [version.key for version in found] == keys

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda version: store.delete_version(version.key, version.version_id), found))

    assert list(store.list_versions("many/")) == []


@pytest.mark.parametrize("order", [("x", "x/y"), ("x/y", "x")])
def test_a_key_may_be_the_beginning_of_another(store, order):
    for key in order:
        store.put_bytes(key, key.encode())
    assert b"".join(store.open("x")) == b"x"
    assert b"".join(store.open("x/y")) == b"x/y"
    assert sorted(version.key for version in store.list_versions("x")) == ["x", "x/y"]

    store.delete("x")

    assert store.head("x") is None
    assert b"".join(store.open("x/y")) == b"x/y"
    store.delete("x/y")
    assert list(store.list_versions("x")) == []


class Faltering(io.RawIOBase):
    """A file that fails after some bytes, as a broken disk does."""

    def __init__(self, good_bytes: int) -> None:
        self.left = good_bytes

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.left <= 0:
            raise OSError("the disk is gone")
        self.left -= size
        return b"z" * size


def test_a_multipart_upload_that_fails_is_aborted(server_store):
    with pytest.raises(OSError, match="the disk is gone"):
        server_store.put_stream("big", Faltering(40 * MIB), size_bytes=MULTIPART_ABOVE_BYTES + 1)

    assert server_store.abort_uploads("") == 0
    assert server_store.head("big") is None


def test_stray_uploads_are_aborted_once_they_are_old_enough(server_store):
    upload = server_store._client._create_multipart_upload(server_store._bucket, "stray/a", {})
    server_store._client._upload_part(server_store._bucket, "stray/a", b"z" * 5 * MIB, None, upload, 1)

    assert server_store.abort_uploads("stray/", older_than_s=3600) == 0
    assert server_store.abort_uploads("elsewhere/") == 0
    assert wait_for(lambda: server_store.abort_uploads("stray/") == 1, within_s=10)

    assert server_store.abort_uploads("stray/") == 0


def test_a_file_over_the_multipart_bound_comes_back_whole(server_store, tmp_path):
    block = os.urandom(MIB)
    path = tmp_path / "big"
    path.write_bytes(b"".join(number.to_bytes(8, "big") + block[8:] for number in range(MULTIPART_ABOVE_BYTES // MIB + 3)))

    digest, size_bytes = put_blob(server_store, path)

    assert size_bytes == path.stat().st_size > MULTIPART_ABOVE_BYTES
    assert digest == sha256(path.read_bytes())
    assert server_store.abort_uploads("") == 0
    assert fetch_blob(server_store, digest, tmp_path / "back", size_bytes=size_bytes) == size_bytes


def test_a_blob_is_put_once_and_fetched_by_its_digest(store, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")

    first, second = put_blob(store, path), put_blob(store, path)

    assert first == second == (sha256(b"weights"), 7)
    assert fetch_blob(store, first[0], tmp_path / "back") == 7
    assert (tmp_path / "back").read_bytes() == b"weights"


def test_a_flipped_byte_in_the_store_is_found_on_every_read(store, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    digest, _ = put_blob(store, path)
    store.put_bytes(blob_key(digest), b"weightS", if_absent=False)

    with pytest.raises(DigestWrong):
        fetch_blob(store, digest, tmp_path / "back")
    with pytest.raises(DigestWrong):
        verify_blob(store, digest)
    with pytest.raises(DigestWrong):
        put_blob(store, path)

    assert [found.name for found in tmp_path.iterdir()] == ["weights"]


def test_a_store_that_does_not_answer_is_unavailable_in_every_call(object_store_server):
    store = s3(object_store_server, "anything", endpoint="127.0.0.1:1")
    calls: list[Callable[[], object]] = [
        store.ensure_bucket,
        lambda: store.put_bytes("k", b"x"),
        lambda: store.put_bytes("k", b"x", if_absent=False),
        lambda: store.get_range("k", 0, 1),
        lambda: store.head("k"),
        lambda: list(store.list_versions("k")),
        lambda: store.delete("k"),
        lambda: store.delete_version("k", "null"),
        lambda: store.abort_uploads("k"),
    ]

    for call in calls:
        with pytest.raises(StoreUnavailable):
            call()


def test_a_bucket_that_is_not_there_is_refused_and_not_taken_for_an_empty_one(object_store_server):
    store = s3(object_store_server, f"missing-{uuid4().hex[:12]}")

    with pytest.raises(StoreRefused):
        list(store.list_versions("k"))
    with pytest.raises(StoreRefused):
        store.get_range("k", 0, 1)


def test_a_locked_bucket_keeps_what_was_put_into_it_whoever_asks(object_store_server) -> None:
    store = s3(object_store_server, f"locked-{uuid4().hex[:12]}")

    assert store.ensure_locked_bucket(days=1)
    assert store.ensure_locked_bucket(days=1)
    assert store.put_bytes("checkpoints/1", b"head")
    (kept,) = store.list_versions("checkpoints/")
    with pytest.raises(StoreRefused):
        store.delete_version(kept.key, kept.version_id)
    with pytest.raises((StoreRefused, StoreUnavailable)):
        store.delete(kept.key)

    assert not store.put_bytes("checkpoints/1", b"another head")
    assert store.get_range("checkpoints/1", 0, 100) == b"head"
    assert [found.version_id for found in store.list_versions("checkpoints/")] == [kept.version_id]


def test_the_copies_of_the_log_lie_in_such_a_bucket_each_once(object_store_server) -> None:
    store = s3(object_store_server, f"locked-{uuid4().hex[:12]}")
    copies = BucketCopies(store, days=1)

    assert copies.newest() is None
    copies.keep(5, "head of five")
    copies.keep(12, "head of twelve")
    copies.keep(12, "a forked head of twelve")
    copies.keep_erasure(7, "sealed")

    assert copies.newest() == (0, "head of twelve")
    assert BucketCopies(store, days=1).newest() == (0, "head of twelve")
    assert list(copies.erasures(0, 7)) == ["sealed"]
    for found in list(store.list_versions("")):
        with pytest.raises(StoreRefused):
            store.delete_version(found.key, found.version_id)
    copies.keep(3, "head of a later epoch", epoch=1)
    assert copies.newest() == (1, "head of a later epoch")
