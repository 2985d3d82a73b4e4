"""An object store in memory, with versions and signed URLs: for fast tests. It keeps the same contract as the real one."""

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, urlencode, urlsplit

from models_store.errors import ObjectMissing, RangeBeyondEnd, StoreUnavailable
from models_store.objects import CHUNK_BYTES, SINGLE_PUT_BYTES, ObjectInfo, attachment, checked_digest, checked_key, prove_deleted


@dataclass(frozen=True, slots=True)
class _Version:
    """One version and its bytes."""

    info: ObjectInfo
    data: bytes


class MemoryStore:
    """Objects in a dictionary, the newest version last. `secret` signs its URLs, which `answer` serves in place of a server."""

    def __init__(self, *, versioned: bool = False) -> None:
        self.versioned = versioned
        self.secret = secrets.token_bytes(32)
        self._versions: dict[str, list[_Version]] = {}
        self._lock = threading.RLock()

    def ensure_bucket(self, *, versioned: bool = False) -> None:
        """Set whether versions are kept."""
        self.versioned = versioned

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        """Store `data`; return False when `if_absent` and the key was there already."""
        checked_key(key)
        with self._lock:
            earlier = self._versions.get(key, [])
            if if_absent and earlier:
                return False
            version_id = secrets.token_hex(16) if self.versioned else "null"
            info = ObjectInfo(key, version_id, len(data), is_latest=True, marker=False, modified_at=datetime.fromtimestamp(time.time(), tz=UTC))
            self._versions[key] = [*(earlier if self.versioned else []), _Version(info, bytes(data))]
            return True

    def put_file(self, key: str, path: Path, *, if_absent: bool = True) -> bool:
        """Store a file; return False when `if_absent` and the key was there already."""
        return self.put_bytes(key, path.read_bytes(), if_absent=if_absent)

    def put_stream(self, key: str, source: BinaryIO, *, size_bytes: int, if_absent: bool = True) -> bool:
        """Store `size_bytes` bytes read from `source`."""
        data = source.read(size_bytes)
        if len(data) != size_bytes:
            raise StoreUnavailable(detail=f"the source ended after {len(data)} of {size_bytes} bytes")
        return self.put_bytes(key, data, if_absent=if_absent)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes from `start`."""
        return b"".join(self.open(key, start=start, length=length))

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` in chunks of at most 1 MiB."""
        if length == 0:
            return
        data = self._current(key).data
        if start and start >= len(data):
            raise RangeBeyondEnd(key=key, start=start)
        end = len(data) if length is None else min(len(data), start + length)
        for at in range(start, end, CHUNK_BYTES):
            yield data[at : min(end, at + CHUNK_BYTES)]

    def download(self, key: str, path: Path) -> int:
        """Write the object to a new file and return its size in bytes."""
        data = self._current(key).data
        with path.open("xb") as file:
            return file.write(data)

    def head(self, key: str) -> ObjectInfo | None:
        """Return the current version, or None."""
        with self._lock:
            versions = self._versions.get(checked_key(key))
            return versions[-1].info if versions else None

    def list_versions(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every version of every key that begins with `prefix`, the newest of a key first."""
        with self._lock:
            found = [
                replace(version.info, is_latest=version is versions[-1])
                for key, versions in sorted(self._versions.items())
                if key.startswith(prefix)
                for version in reversed(versions)
            ]
        yield from found

    def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version for good."""
        with self._lock:
            left = [version for version in self._versions.get(checked_key(key), []) if version.info.version_id != version_id]
            if left:
                self._versions[key] = left
            else:
                self._versions.pop(key, None)

    def delete(self, key: str) -> None:
        """Delete every version of exactly this key and prove it by listing."""
        prove_deleted(self, key)

    def abort_uploads(self, prefix: str, *, older_than_s: float = 0.0) -> int:
        """Return 0: a put here is whole or not at all."""
        del prefix, older_than_s
        return 0

    def presign_get(self, key: str, expires_s: int, filename: str, *, public: bool = True) -> str:
        """Return a URL that `answer` serves for `expires_s` seconds."""
        return self._sign("GET", key, expires_s, public=public, disposition=attachment(filename))

    def presign_put(self, key: str, expires_s: int, size: int, sha256: str, *, public: bool = True) -> str:
        """Return a URL to which `answer` accepts the bytes with digest `sha256`."""
        if not 0 <= size <= SINGLE_PUT_BYTES:
            raise ValueError("one PUT takes at most 5 GiB")
        return self._sign("PUT", key, expires_s, public=public, sha256=checked_digest(sha256))

    def answer(self, method: str, url: str, body: bytes = b"") -> tuple[int, bytes]:
        """Serve a presigned URL: (200, bytes), (400, b"") for a wrong digest, (403, b"") for a wrong or expired signature, (404, b"")."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        signature = query.pop("signature", "")
        key = parts.path.lstrip("/")
        signed = hmac.compare_digest(signature, self._signature(method, key, query))
        if not signed or time.time() > float(query["expires"]):
            return 403, b""
        if method == "GET":
            return (200, self._current(key).data) if self.head(key) else (404, b"")
        if hashlib.sha256(body).hexdigest() != query["sha256"]:
            return 400, b""
        self.put_bytes(key, body, if_absent=False)
        return 200, b""

    def _sign(self, method: str, key: str, expires_s: int, *, public: bool, **facts: str) -> str:
        query = {"expires": str(time.time() + expires_s), **facts}
        host = "public" if public else "internal"
        return f"memory://{host}/{checked_key(key)}?{urlencode({**query, 'signature': self._signature(method, key, query)})}"

    def _signature(self, method: str, key: str, query: dict[str, str]) -> str:
        return hmac.new(self.secret, "\n".join((method, key, urlencode(sorted(query.items())))).encode(), hashlib.sha256).hexdigest()

    def _current(self, key: str) -> _Version:
        with self._lock:
            versions = self._versions.get(checked_key(key))
        if not versions:
            raise ObjectMissing(key=key)
        return versions[-1]
