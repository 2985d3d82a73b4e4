import hashlib
from uuid import UUID

import pytest

from models_store.checkpoints import fetch_blob, open_blob, open_object, put_blob, verify_blob
from models_store.errors import DigestWrong, ObjectMissing, Refused
from models_store.memory import MemoryStore
from models_store.objects import blob_key, upload_key

DATA = b"weights" * 1000


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def digest(store, tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    digest, _ = put_blob(store, tmp_path / "source")
    (tmp_path / "source").unlink()
    return digest


def test_a_blob_is_named_by_the_digest_of_its_bytes(store, digest):
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert store.head(f"blobs/sha256/{digest}").size_bytes == len(DATA)
    assert verify_blob(store, digest) == len(DATA)


def test_a_fetched_blob_replaces_what_was_there_and_leaves_nothing_else(store, digest, tmp_path):
    (tmp_path / "target").write_bytes(b"stale")

    assert fetch_blob(store, digest, tmp_path / "target", size_bytes=len(DATA)) == len(DATA)

    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("target", DATA)]


@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"!", lambda data: data[:-1], lambda data: data + b"!", lambda _: b""])
def test_other_bytes_are_refused_and_leave_no_file(store, digest, tmp_path, change):
    store.put_bytes(blob_key(digest), change(DATA), if_absent=False)

    with pytest.raises(DigestWrong):
        fetch_blob(store, digest, tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size_bytes", [len(DATA) - 1, len(DATA) + 1, 0])
def test_a_size_other_than_the_manifests_is_refused(store, digest, tmp_path, size_bytes):
    with pytest.raises(Refused) as caught:
        fetch_blob(store, digest, tmp_path / "target", size_bytes=size_bytes)

    assert caught.value.gate == "file-too-large"
    assert list(tmp_path.iterdir()) == []


def test_a_file_over_the_cap_is_refused_whatever_its_manifest_says(store, digest, tmp_path):
    with pytest.raises(Refused) as caught:
        fetch_blob(store, digest, tmp_path / "target", size_bytes=len(DATA), limit_bytes=100)

    assert caught.value.gate == "file-too-large"


def test_the_descriptor_that_was_hashed_stays_good_when_the_name_points_elsewhere(store, digest, tmp_path):
    with open_blob(store, digest, tmp_path / "target") as file:
        (tmp_path / "other").write_bytes(b"exchanged")
        (tmp_path / "other").replace(tmp_path / "target")

        assert file.read() == DATA


def test_an_upload_is_checked_like_a_blob(store, tmp_path):
    key = upload_key(UUID(int=1), "model.safetensors")
    store.put_bytes(key, DATA)

    with open_object(store, key, hashlib.sha256(DATA).hexdigest(), tmp_path / "upload") as file:
        assert file.read() == DATA
    with pytest.raises(DigestWrong):
        open_object(store, key, "0" * 64, tmp_path / "upload")


def test_a_missing_blob_is_missing_and_not_empty(store, tmp_path):
    with pytest.raises(ObjectMissing):
        fetch_blob(store, "0" * 64, tmp_path / "target")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
def test_only_a_digest_names_a_blob(digest):
    with pytest.raises(ValueError, match="64 lower-case"):
        blob_key(digest)


def test_an_upload_path_cannot_leave_its_folder():
    for path in ("../x", "/x", "a/../../x", ""):
        with pytest.raises(ValueError, match="object key"):
            upload_key(UUID(int=1), path)


def test_a_link_and_a_sparse_file_are_not_put(store, tmp_path):
    (tmp_path / "real").write_bytes(DATA)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)

    for name in ("link", "sparse"):
        with pytest.raises(Refused) as caught:
            put_blob(store, tmp_path / name)
        assert caught.value.gate == "file-refused"
