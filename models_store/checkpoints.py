"""Checkpoint files as bytes: into the store under their digest, and out of it only if the digest still holds."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from models_store.errors import DigestWrong, Refused
from models_store.header import regular_file
from models_store.manifest import FILE_BYTES
from models_store.objects import ObjectStore, blob_key, checked_digest


def put_blob(store: ObjectStore, path: Path) -> tuple[str, int]:
    """Store a file under its digest and return (digest as 64 hexadecimal digits, size in bytes).

    The stored bytes are read back and hashed, whether they were sent now or were there before.

    Raises:
        DigestWrong: what the store holds is not what the file held. Refused: gate `file-refused`.
    """
    with regular_file(path) as file:
        digest, size_bytes = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        file.seek(0)
        store.put_stream(blob_key(digest), file, size_bytes=size_bytes)
    verify_blob(store, digest)
    return digest, size_bytes


def verify_blob(store: ObjectStore, digest: str) -> int:
    """Read a blob through, and return its size in bytes if its digest holds.

    Raises:
        DigestWrong: it does not. ObjectMissing: there is no such blob.
    """
    running, size_bytes = hashlib.sha256(), 0
    for chunk in store.open(blob_key(digest)):
        running.update(chunk)
        size_bytes += len(chunk)
    _compare(running.hexdigest(), digest)
    return size_bytes


def fetch_blob(store: ObjectStore, digest: str, path: Path, *, size_bytes: int | None = None, limit_bytes: int = FILE_BYTES) -> int:
    """Bring a blob to `path` and return its size in bytes; `path` appears whole and checked, or not at all.

    `size_bytes` is the size that the manifest names; `limit_bytes` bounds it where none is named.

    Raises:
        DigestWrong: the bytes are others. Refused: gate `file-too-large`. ObjectMissing: there is no such blob.
    """
    with open_blob(store, digest, path, size_bytes=size_bytes, limit_bytes=limit_bytes) as file:
        return os.fstat(file.fileno()).st_size


def open_blob(store: ObjectStore, digest: str, path: Path, *, size_bytes: int | None = None, limit_bytes: int = FILE_BYTES) -> BinaryIO:
    """As fetch_blob, and return the file at its beginning: the very descriptor whose bytes were hashed."""
    return open_object(store, blob_key(digest), digest, path, size_bytes=size_bytes, limit_bytes=limit_bytes)


def open_object(store: ObjectStore, key: str, digest: str, path: Path, *, size_bytes: int | None = None, limit_bytes: int = FILE_BYTES) -> BinaryIO:
    """As open_blob, for an object under any key, such as an upload that is not yet a blob (gates 1 and 2)."""
    checked_digest(digest)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w+b")
    try:
        _receive(store, key, file, size_bytes=size_bytes, limit_bytes=limit_bytes)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        _compare(hashlib.file_digest(file, "sha256").hexdigest(), digest)
        partial.replace(path)
        _sync_folder(path.parent)
        file.seek(0)
    except BaseException:
        file.close()
        partial.unlink(missing_ok=True)
        raise
    return file


def _receive(store: ObjectStore, key: str, file: BinaryIO, *, size_bytes: int | None, limit_bytes: int) -> None:
    """Gate 1: stop at the first byte too many."""
    most = limit_bytes if size_bytes is None else min(limit_bytes, size_bytes)
    received = 0
    for chunk in store.open(key):
        received += len(chunk)
        if received > most:
            raise Refused("file-too-large", f"it has more than {most} bytes")
        file.write(chunk)
    if size_bytes is not None and received != size_bytes:
        raise Refused("file-too-large", f"it has {received} bytes, the manifest says {size_bytes}")


def _compare(actual: str, expected: str) -> None:
    """Gate 2."""
    if not hmac.compare_digest(actual, expected):
        raise DigestWrong(name="blob", expected=expected, actual=actual)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
