"""The one door to object storage: S3 by the minio client. Nothing else imports it.

`minio.put_object` takes no `If-None-Match`, so a conditional put goes over a presigned PUT. A minio client must not cross a fork: build the
store in the process that uses it.
"""

import base64
import io
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import COMPLIANCE, ENABLED
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.versioningconfig import VersioningConfig

from models_store.errors import ObjectMissing, RangeBeyondEnd, StoreRefused, StoreUnavailable
from models_store.objects import CHUNK_BYTES, SINGLE_PUT_BYTES, ObjectInfo, attachment, checked_digest, checked_key, prove_deleted

MULTIPART_ABOVE_BYTES = 64 * 1024 * 1024
PART_BYTES = 16 * 1024 * 1024
PARTS_IN_FLIGHT = 4
_INNER_URL_S = 900
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchObject", "NoSuchUpload"})
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"})


class S3Store:
    """One bucket. `signer` is a client built on the public endpoint: the host is part of a signature (minio/minio#11870)."""

    def __init__(self, *, client: Minio, signer: Minio, http: urllib3.PoolManager, bucket: str) -> None:
        self._client, self._signer, self._http, self._bucket = client, signer, http, bucket

    @classmethod
    def from_parts(
        cls, *, endpoint: str, public_endpoint: str, region: str, bucket: str, access_key: str, secret_key: str, secure: bool
    ) -> "S3Store":
        """Return a store; no call is made yet.

        Endpoints are `host:port`; the public one may have a scheme of its own (`https://files.example.org`), empty it is the other.
        """
        http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5, read=60),
            maxsize=32,
            blocksize=256 * 1024,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
            retries=urllib3.Retry(total=2, backoff_factor=0.1, status_forcelist=[500, 502, 503, 504], raise_on_status=False),
        )

        def build(where: str) -> Minio:
            parts = urlsplit(where if "://" in where else f"{'https' if secure else 'http'}://{where}")
            # a set region means that signing makes no network call
            return Minio(parts.netloc, access_key, secret_key, secure=parts.scheme == "https", region=region, http_client=http)

        return cls(client=build(endpoint), signer=build(public_endpoint or endpoint), http=http, bucket=bucket)

    def ensure_bucket(self, *, versioned: bool = False) -> None:
        """Make the bucket if it is not there, with versioning if asked."""
        with _translated(self._bucket):
            if not self._client.bucket_exists(self._bucket):
                try:
                    self._client.make_bucket(self._bucket)
                except S3Error as error:
                    if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                        raise
            if versioned:
                self._client.set_bucket_versioning(self._bucket, VersioningConfig(ENABLED))

    def ensure_locked_bucket(self, *, days: int) -> bool:
        """Make the bucket with object lock, nothing in it to be changed for `days`; say whether the store confirms that.

        A store without object lock gets a plain bucket. What the store confirms is its word: tests/contract tries it.
        """
        with _translated(self._bucket):
            if not self._client.bucket_exists(self._bucket):
                try:
                    self._client.make_bucket(self._bucket, object_lock=True)
                except S3Error as error:
                    if error.code not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                        self._client.make_bucket(self._bucket)
            try:
                self._client.set_object_lock_config(self._bucket, ObjectLockConfig(COMPLIANCE, days, DAYS))
                held = self._client.get_object_lock_config(self._bucket)
            except (S3Error, ServerError, InvalidResponseError, ValueError):
                return False
        return (held.mode, held.duration, held.duration_unit) == (COMPLIANCE, days, DAYS)

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = True) -> bool:
        """Store `data`; return False when `if_absent` and the key was there already."""
        return self.put_stream(key, io.BytesIO(data), size_bytes=len(data), if_absent=if_absent)

    def put_file(self, key: str, path: Path, *, if_absent: bool = True) -> bool:
        """Store a file; return False when `if_absent` and the key was there already."""
        with path.open("rb") as file:
            return self.put_stream(key, file, size_bytes=os.fstat(file.fileno()).st_size, if_absent=if_absent)

    def put_stream(self, key: str, source: BinaryIO, *, size_bytes: int, if_absent: bool = True) -> bool:
        """Store `size_bytes` bytes read from `source`: one PUT up to 64 MiB, else parts of 16 MiB, four in flight, aborted on any error."""
        checked_key(key)
        if if_absent and self.head(key) is not None:  # spares the transfer; the condition of the PUT decides between two writers
            return False
        if size_bytes <= MULTIPART_ABOVE_BYTES:
            return self._put_whole(key, source, size_bytes, if_absent=if_absent)
        with _translated(key):
            try:
                self._client.put_object(self._bucket, key, source, size_bytes, part_size=PART_BYTES, num_parallel_uploads=PARTS_IN_FLIGHT)
            except (KeyboardInterrupt, SystemExit):  # the client aborts on every other error by itself
                self.abort_uploads(key)
                raise
        return True

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes from `start`."""
        return b"".join(self.open(key, start=start, length=length))

    def open(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` in chunks of at most 1 MiB; the connection is given back however the reading ends."""
        checked_key(key)
        if length == 0:
            return
        with _translated(key, start=start):
            response = self._client.get_object(self._bucket, key, offset=start, length=length or 0)
            ended = False
            try:
                while chunk := response.read(CHUNK_BYTES, decode_content=False):
                    yield chunk
                ended = True
            finally:
                if not ended:
                    response.close()  # unread bytes would poison the next call on this connection
                response.release_conn()

    def download(self, key: str, path: Path) -> int:
        """Write the object to a new file and return its size in bytes."""
        with path.open("xb") as file:
            return sum(file.write(chunk) for chunk in self.open(key))

    def head(self, key: str) -> ObjectInfo | None:
        """Return the current version, or None."""
        try:
            with _translated(checked_key(key)):
                found = self._client.stat_object(self._bucket, key)
        except ObjectMissing:
            return None
        return ObjectInfo(
            key,
            found.version_id or "null",
            found.size or 0,
            is_latest=True,
            marker=False,
            modified_at=found.last_modified or datetime.fromtimestamp(0, UTC),
        )

    def list_versions(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every version and deletion marker of every key that begins with `prefix`."""
        with _translated(prefix):
            for found in self._client.list_objects(self._bucket, prefix=prefix, recursive=True, include_version=True):
                yield ObjectInfo(
                    found.object_name or "",
                    found.version_id or "null",
                    found.size or 0,
                    is_latest=str(found.is_latest).lower() == "true",  # the client hands the XML text through
                    marker=found.is_delete_marker,
                    modified_at=found.last_modified or datetime.fromtimestamp(0, UTC),
                )

    def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version for good."""
        try:
            with _translated(checked_key(key)):
                self._client.remove_object(self._bucket, key, version_id=version_id)
        except ObjectMissing:
            return

    def delete(self, key: str) -> None:
        """Delete every version of exactly this key and prove it by listing."""
        prove_deleted(self, checked_key(key))

    def abort_uploads(self, prefix: str, *, older_than_s: float = 0.0) -> int:
        """Abort unfinished uploads of keys that begin with `prefix`; return how many."""
        # the client has no public call for these two operations of S3
        list_page, abort = self._client._list_multipart_uploads, self._client._abort_multipart_upload  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        before = datetime.fromtimestamp(time.time() - older_than_s, UTC)
        aborted, key_marker = 0, None
        with _translated(prefix):
            while True:
                page = list_page(self._bucket, prefix=prefix, key_marker=key_marker)
                stray = [upload for upload in page.uploads if upload.initiated_time is None or upload.initiated_time <= before]
                for upload in stray:
                    abort(self._bucket, upload.object_name, upload.upload_id or "")
                aborted += len(stray)
                if not page.is_truncated:
                    return aborted
                if not stray:  # the client loses the upload-id marker, so a page that shrank is read again before the next
                    key_marker = page.next_key_marker

    def presign_get(self, key: str, expires_s: int, filename: str, *, public: bool = True) -> str:
        """Return a URL that reads this one object for `expires_s` seconds and offers it as `filename`."""
        return (self._signer if public else self._client).get_presigned_url(
            "GET",
            self._bucket,
            checked_key(key),
            expires=timedelta(seconds=expires_s),
            response_headers={"response-content-disposition": attachment(filename), "response-content-type": "application/octet-stream"},
        )

    def presign_put(self, key: str, expires_s: int, size: int, sha256: str, *, public: bool = True) -> str:
        """Return a URL that takes the bytes with digest `sha256`: the checksum is part of the signed query, so it fixes the length as well."""
        if not 0 <= size <= SINGLE_PUT_BYTES:
            raise ValueError("one PUT takes at most 5 GiB")
        checksum = base64.b64encode(bytes.fromhex(checked_digest(sha256))).decode()
        return (self._signer if public else self._client).get_presigned_url(
            "PUT",
            self._bucket,
            checked_key(key),
            expires=timedelta(seconds=expires_s),
            extra_query_params={"x-amz-checksum-sha256": checksum},
        )

    def _put_whole(self, key: str, source: BinaryIO, size_bytes: int, *, if_absent: bool) -> bool:
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        if if_absent:
            headers["If-None-Match"] = "*"
        url = self._client.get_presigned_url("PUT", self._bucket, key, expires=timedelta(seconds=_INNER_URL_S))
        with _translated(key):
            response = self._http.request("PUT", url, body=source, headers=headers)
        if response.status == HTTPStatus.OK:
            return True
        if if_absent and response.status in {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.NOT_IMPLEMENTED}:
            # SeaweedFS 4.48 answers 412 for a key `x` where only `x/y` exists, and some stores know no condition: HEAD decides
            if self.head(key) is not None:
                return False
            source.seek(0)
            return self._put_whole(key, source, size_bytes, if_absent=False)
        detail = f"PUT answered {response.status}"
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status == HTTPStatus.CONFLICT:
            raise StoreUnavailable(detail=detail)
        raise StoreRefused(code=response.status, detail=detail)


@contextmanager
def _translated(key: str, *, start: int = 0) -> Generator[None]:
    """Turn what minio and urllib3 raise into our own errors."""
    try:
        yield
    except S3Error as error:
        if error.code in _MISSING:
            raise ObjectMissing(key=key) from error
        if error.code == "InvalidRange":
            raise RangeBeyondEnd(key=key, start=start) from error
        if error.code in _BUSY or error.response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise StoreUnavailable(detail=error.code) from error
        raise StoreRefused(code=error.code, detail=error.message) from error
    except (ServerError, InvalidResponseError, urllib3.exceptions.HTTPError) as error:
        raise StoreUnavailable(detail=type(error).__name__) from error
