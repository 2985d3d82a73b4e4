"""The protocol of an object store: keys, versions, streams, presigned URLs. `tests/contract/test_object_store.py` is its oracle."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import UUID

from models_store.errors import DeletionNotProved

CHUNK_BYTES = 1024 * 1024
SINGLE_PUT_BYTES = 5 * 1024**3  # S3 takes no larger body in one PUT

_KEY = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One version of an object. In a bucket without versioning `version_id` is "null". A `marker` stands for a deletion and has no bytes."""

    key: str
    version_id: str
    size_bytes: int
    is_latest: bool
    marker: bool
    modified_at: datetime


class ObjectStore(Protocol):
    """Where bytes are kept. Every call raises StoreUnavailable when the store does not answer and StoreRefused when it will not serve us."""

    def ensure_bucket(self, *, versioned: bool = False) -> None:
        """Make the bucket if it is not there. Blobs live in a bucket without versioning."""
        ...

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        """Store `data`; return False when `if_absent` and the key was there already."""
        ...

    def put_file(self, key: str, path: Path, *, if_absent: bool = True) -> bool:
        """Store a file; return False when `if_absent` and the key was there already. Memory use does not grow with the file."""
        ...

    def put_stream(self, key: str, source: BinaryIO, *, size_bytes: int, if_absent: bool = True) -> bool:
        """Store `size_bytes` bytes read from `source`; nothing is left behind when the source fails."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes from `start`; fewer where the object ends.

        Raises:
            ObjectMissing: no such object. RangeBeyondEnd: `start` is not a byte of it.
        """
        ...

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` in chunks of at most 1 MiB, `length` of them or all to the end. Errors come with the first chunk.

        Raises:
            ObjectMissing: no such object. RangeBeyondEnd: `start` is beyond its end. StoreUnavailable: the stream was cut short.
        """
        ...

    def download(self, key: str, path: Path) -> int:
        """Write the object to a new file and return its size in bytes. The bytes are not checked: see checkpoints.fetch_blob."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return the current version, or None."""
        ...

    def list_versions(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every version and deletion marker of every key that begins with `prefix`, keys in order."""
        ...

    def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version for good. One that is not there counts as deleted."""
        ...

    def delete(self, key: str) -> None:
        """Delete every version of exactly this key and prove it by listing.

        Raises:
            DeletionNotProved: the store still shows a version.
        """
        ...

    def abort_uploads(self, prefix: str, *, older_than_s: float = 0.0) -> int:
        """Abort unfinished uploads of keys that begin with `prefix`; return how many."""
        ...

    def presign_get(self, key: str, expires_s: int, filename: str, *, public: bool = True) -> str:
        """Return a URL that reads this one object for `expires_s` seconds and offers it as `filename`."""
        ...

    def presign_put(self, key: str, expires_s: int, size: int, sha256: str, *, public: bool = True) -> str:
        """Return a URL that writes this one object once its bytes have the digest `sha256` (lower-case hex). `size` in bytes, at most 5 GiB."""
        ...


def blob_key(digest: str) -> str:
    """Return the key of a blob.

    Raises:
        ValueError: `digest` is not 64 lower-case hexadecimal digits.
    """
    return f"blobs/sha256/{checked_digest(digest)}"


def upload_key(version: UUID, path: str) -> str:
    """Return the key under which a client uploads the file `path` of a version."""
    return checked_key(f"uploads/{version}/{path}")


def checked_digest(digest: str) -> str:
    """Return `digest` if it is 64 lower-case hexadecimal digits.

    Raises:
        ValueError: it is not.
    """
    if not _HEX_DIGEST.fullmatch(digest):
        raise ValueError("a digest is 64 lower-case hexadecimal digits")
    return digest


def checked_key(key: str) -> str:
    """Return `key` if it is a plain relative path of at most 512 characters `[A-Za-z0-9_.-/]`.

    Raises:
        ValueError: it is not, or a segment is `.` or `..`.
    """
    if len(key) > 512 or not _KEY.fullmatch(key) or not {".", ".."}.isdisjoint(key.split("/")):
        raise ValueError("an object key is a relative path of letters, digits, '_', '.', '-' and '/', without '.' and '..' as segments")
    return key


def attachment(filename: str) -> str:
    """Return a Content-Disposition for `filename`, every character that could end the quotes or a header replaced by `_`."""
    return f'attachment; filename="{re.sub(r"[^A-Za-z0-9_.-]", "_", filename)[:200]}"'


def prove_deleted(store: ObjectStore, key: str) -> None:
    """Delete every version of `key` in `store` by id, then ask the listing and HEAD.

    Raises:
        DeletionNotProved: something of it is still shown.
    """
    for version in [found for found in store.list_versions(key) if found.key == key]:
        store.delete_version(key, version.version_id)
    left = sum(found.key == key for found in store.list_versions(key))
    if left or store.head(key) is not None:
        raise DeletionNotProved(key=key, left=left or 1)
