"""A client of the HTTP API: JSON calls, problem documents as errors, uploads, downloads with their digest checked."""

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

CHUNK_BYTES = 1024 * 1024


class Refused(Exception):
    """The service answered with a problem document."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = dict(problem)
        pointed = "".join(f"\n  {error.get('pointer', '')}: {error.get('detail', '')}" for error in problem.get("errors") or [])
        super().__init__(f"{status} {problem.get('code', '')}: {problem.get('detail') or problem.get('title', '')}{pointed}")


class DigestWrong(Exception):
    """What arrived is not what the service promised."""


class TookTooLong(Exception):
    """The service did not finish in the time the caller gave."""


def sha256_of(path: Path) -> str:
    """Return the lower-case hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def statement_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statement in a report's envelope; no signature is checked: `lethe verify` does."""
    return json.loads(base64.b64decode(report["envelope"]["payload"]))


class Client:
    """One caller of one service."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 30.0) -> None:
        self.http = httpx2.Client(base_url=url.rstrip("/") + "/v1", headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)
        self.plain = httpx2.Client(timeout=timeout_s)

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
        self.plain.close()

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """GET a JSON document."""
        return self._json(self.http.get(path, params=query))

    def post(self, path: str, body: Mapping[str, Any], *, key: str | None = None, **query: str | bool) -> dict[str, Any]:
        """POST a JSON document under an idempotency key (a new one unless given)."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._json(self.http.post(path, json=dict(body), headers=headers, params=query))

    def text(self, path: str) -> str:
        """GET a document as it was sent, byte for byte."""
        answer = self.http.get(path)
        self._json(answer)
        return answer.text

    def report(self, request: str) -> dict[str, Any]:
        """GET the statement of a request's newest audit report."""
        return statement_of(self.get(f"/deletion-requests/{request}/audit-report"))

    def log_keys(self) -> str:
        """GET the verifier keys of the audit log, one a line, as `lethe verify --log-key` takes them; a revoked one says from which leaf on."""
        answer = self.plain.get(str(self.http.base_url.join("/.well-known/jwks.json")))
        revoked = {key["vkey"]: key.get("revoked_at_leaf") for key in self._json(answer)["keys"]}
        return "".join(f"{vkey}\n" if leaf is None else f"{vkey} revoked-at-leaf={leaf}\n" for vkey, leaf in revoked.items())

    def upload(self, url: str, path: Path, headers: Mapping[str, str] | None = None) -> None:
        """PUT a file to an upload URL that the service issued."""
        size = path.stat().st_size
        with path.open("rb") as file:
            answer = self.plain.put(url, content=iter(lambda: file.read(CHUNK_BYTES), b""), headers={**(headers or {}), "Content-Length": str(size)})
        if answer.status_code >= 300:
            raise Refused(answer.status_code, {"code": "upload-failed", "detail": answer.text[:300]})

    def wait(
        self,
        path: str,
        done: Callable[[dict[str, Any]], bool],
        *,
        timeout_s: float,
        every_s: float = 0.3,
        seen: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """GET `path` until `done`; raise TookTooLong after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            document = self.get(path)
            if seen is not None:
                seen(document)
            if done(document):
                return document
            if time.monotonic() > deadline:
                raise TookTooLong(f"{path} was not done after {timeout_s:.0f} s; its last state: {document.get('status') or document.get('state')}")
            time.sleep(every_s)

    def download(self, path: str, to: Path, *, sha256: str) -> str:
        """GET a file (redirects followed), write it under a temporary name, compare its SHA-256, then rename. Returns the digest."""
        part = to.with_name(to.name + ".part")
        digest = hashlib.sha256()
        with self.http.stream("GET", path, follow_redirects=True) as answer:
            if answer.status_code >= 300:
                answer.read()
                self._json(answer)
            with part.open("wb") as file:
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
        if digest.hexdigest() != sha256:
            part.unlink()
            raise DigestWrong(f"{path}: got sha256 {digest.hexdigest()}, expected {sha256}")
        part.rename(to)
        return digest.hexdigest()

    def form_of(self, path: str, media_type: str, *, timeout_s: float = 60.0) -> bytes:
        """GET `path` in one of the forms it has, waiting while that form is still being made. Raises Refused, and DigestWrong for damaged bytes."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.http.get(path, headers={"Accept": media_type})
            if answer.status_code != 404 or "Retry-After" not in answer.headers or time.monotonic() > deadline:
                break
            time.sleep(float(answer.headers["Retry-After"]))
        if answer.status_code >= 300:
            self._json(answer)
        digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
        if answer.headers.get("Content-Digest") != f"sha-256=:{digest}:":
            raise DigestWrong(f"{path}: got sha-256 {digest}, the answer names {answer.headers.get('Content-Digest')}")
        return answer.content

    @staticmethod
    def _json(answer: httpx2.Response) -> dict[str, Any]:
        if answer.status_code >= 300:
            try:
                problem = answer.json()
            except ValueError:
                problem = {"code": "unexpected", "detail": answer.text[:300]}
            raise Refused(answer.status_code, problem)
        return answer.json() if answer.content else {}
