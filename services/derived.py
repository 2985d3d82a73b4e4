"""Derived artifacts on a local folder: tensors computed from records, kept so that they need not be computed again, and destroyed with the records.

```
<root>/<tenant>/<dataset>/<key>.safetensors   the value
                          <key>.json          its manifest: kind, digest, size, created, layout, records
                          <job>.forget        the keyed digests of the records that a job forgets, from before its first step
                          .lock               held while anything here is read or changed
```
A key is the SHA-256 of the document that says what the value depends on. A value whose bytes are not those of its manifest is no value. Records
appear by the keyed digests that the caller hands in, never by their ids. A process may be killed at any time: a file appears whole or not at
all, the lock goes with its holder, and what belongs to no manifest is swept.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from services.clock import Clock, SystemClock

KEY = re.compile(r"[0-9a-f]{64}")
DIGEST_LENGTH = 32

Arrays = dict[str, np.ndarray[Any, Any]]
Layout = Literal["rows", "aggregate"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be kept, in bytes, and for how long, in seconds. A size of 0 keeps nothing."""

    size_bytes: int
    ttl_s: float


class Manifest(BaseModel):
    """What an entry is. `records` are digests, row by row for layout `rows`; None stands for everything that the checkpoint has learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["lethe-derived/1"] = "lethe-derived/1"
    key: str
    kind: str
    digest: str
    size_bytes: int
    created: float
    layout: Layout
    records: tuple[str, ...] | None

    def touched(self, digests: Collection[str]) -> bool:
        """Say whether the entry was computed from one of the records."""
        return bool(digests) and (self.records is None or any(record in digests for record in self.records))


@dataclass(frozen=True, slots=True)
class Disposition:
    """What became of an entry when records were forgotten: `destroyed`, `rows dropped` or `kept`; `rows` is how many were dropped."""

    key: str
    kind: str
    layout: Layout
    disposition: Literal["destroyed", "rows dropped", "kept"]
    rows: int
    expires: datetime

    def described(self) -> dict[str, object]:
        """Return the disposition for the report."""
        facts: dict[str, object] = {"kind": self.kind, "key": self.key, "layout": self.layout, "disposition": self.disposition}
        if self.disposition == "rows dropped":
            facts["rows"] = self.rows
        return facts if self.disposition == "destroyed" else {**facts, "expires": self.expires.isoformat()}


def key_of(kind: str, document: Mapping[str, object]) -> str:
    """Return the SHA-256 over the sorted JSON of kind and document, 64 hexadecimal digits."""
    whole = json.dumps([kind, dict(document)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(whole.encode()).hexdigest()


def short(digest: bytes) -> str:
    """Return the form in which a record's keyed digest is kept here: its first 128 bits in hexadecimal digits."""
    return digest.hex()[:DIGEST_LENGTH]


class Folder:
    """The entries of one tenant and one dataset."""

    def __init__(self, path: Path, limits: Limits, *, clock: Clock | None = None) -> None:
        self.path, self.limits = path, limits
        self._clock = clock or SystemClock()

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the folder; it is made where it does not exist."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.path / ".lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, key: str) -> tuple[Manifest, Arrays] | None:
        """Return an entry and mark it as used; None where there is none, it is too old, or its bytes are not those of its manifest: then it goes."""
        with self.locked():
            manifest = self._manifest(key)
            if manifest is None or self._expired(manifest):
                self._remove(key)
                return None
            try:
                arrays = self._arrays(manifest)
            except (OSError, ValueError, SafetensorError):
                self._remove(key)
                return None
            self._use(key)
            return manifest, arrays

    def write(self, key: str, kind: str, arrays: Arrays, records: Sequence[str] | None, layout: Layout, *, job: str = "") -> bool:
        """Keep an entry and say whether it was: not when it is larger than the limit, nor when `job` is closed and the entry holds what it forgot."""
        raw = to_bytes({name: np.asarray(array, order="C") for name, array in arrays.items()})
        digest = hashlib.sha256(raw).hexdigest()
        kept = None if records is None else tuple(records)
        manifest = Manifest(key=key, kind=kind, digest=digest, size_bytes=len(raw), created=self._now(), layout=layout, records=kept)
        if len(raw) > self.limits.size_bytes:
            return False
        with self.locked():
            marker = self._marker(job) if job else None
            if marker is not None and marker["closed"] and manifest.touched(frozenset(marker["records"])):
                return False
            self._put(manifest, raw)
            self._evict(spare=key)
        return True

    def forget(self, digests: Collection[str]) -> list[Disposition]:
        """Drop the rows of these records, destroy every aggregate that holds one of them, and return what became of each entry of the folder."""
        with self.locked():
            return self._forget(frozenset(digests))

    def open(self, job: str, digests: Iterable[str]) -> None:
        """Note which records a job is to forget, so that what it leaves behind is found after a crash."""
        with self.locked():
            self._mark(job, sorted(digests), closed=False)

    def close(self, job: str) -> list[Disposition]:
        """Forget the records of an opened job and keep the note, under which nothing of them is kept again; return what became of each entry."""
        with self.locked():
            marker = self._marker(job)
            if marker is None:
                return []
            self._mark(job, marker["records"], closed=True)
            return self._forget(frozenset(marker["records"]))

    def sweep(self, *, spare: str = "", touched: bool = True) -> None:
        """Remove what is too old, incomplete or over the limit, and what the records of any noted job but `spare` have `touched`."""
        with self.locked():
            keys = {path.stem for path in self.path.iterdir() if path.suffix in {".json", ".safetensors"}}
            for key in keys:
                manifest = self._manifest(key)
                if manifest is None or self._expired(manifest) or not self._value(key).exists():
                    self._remove(key)
            for path in list(self.path.iterdir()):
                if path.suffix == ".forget":
                    self._sweep_marker(path, spare, touched=touched)
                elif path.name != ".lock" and path.suffix not in {".json", ".safetensors"}:
                    path.unlink(missing_ok=True)
            self._evict()

    def entries(self) -> list[tuple[float, Manifest]]:
        """Return the time of last use and the manifest of every entry, least recently used first."""
        found: list[tuple[float, Manifest]] = []
        for path in self.path.glob("*.json"):
            manifest = self._manifest(path.stem)
            if manifest is not None:
                found.append((path.stat().st_mtime, manifest))
        return sorted(found, key=lambda entry: entry[0])

    def remove(self, key: str) -> None:
        """Destroy an entry."""
        with self.locked():
            self._remove(key)

    def _forget(self, digests: frozenset[str]) -> list[Disposition]:
        found: list[Disposition] = []
        for _, manifest in self.entries():
            rows, outcome = 0, "kept"
            if manifest.touched(digests):
                rows = self._drop(manifest, digests)
                outcome = "rows dropped" if rows else "destroyed"
            expires = datetime.fromtimestamp(manifest.created + self.limits.ttl_s, tz=UTC)
            found.append(Disposition(manifest.key, manifest.kind, manifest.layout, outcome, rows, expires))  # pyright: ignore[reportArgumentType]
        return sorted(found, key=lambda each: (each.kind, each.key))

    def _drop(self, manifest: Manifest, digests: frozenset[str]) -> int:
        """Write the entry without the rows of these records and return how many went; 0 where the whole entry was destroyed."""
        records = manifest.records or ()
        stay = [row for row, record in enumerate(records) if record not in digests]
        if manifest.layout == "aggregate" or not stay:
            self._remove(manifest.key)
            return 0
        try:
            rest = to_bytes({name: np.asarray(array[stay], order="C") for name, array in self._arrays(manifest).items()})
        except (OSError, ValueError, IndexError, SafetensorError):
            self._remove(manifest.key)
            return 0
        self._remove(manifest.key)
        facts = {"digest": hashlib.sha256(rest).hexdigest(), "size_bytes": len(rest), "records": tuple(records[row] for row in stay)}
        self._put(manifest.model_copy(update=facts), rest)
        return len(records) - len(stay)

    def _sweep_marker(self, path: Path, spare: str, *, touched: bool) -> None:
        marker = self._marker(path.stem)
        if marker is not None and path.stem != spare and (touched or marker["closed"]):
            self._forget(frozenset(marker["records"]))
        if marker is None or (path.stem != spare and self._now() - float(marker["at"]) > self.limits.ttl_s):
            path.unlink(missing_ok=True)

    def _marker(self, job: str) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.path / f"{job}.forget").read_bytes())
            return {"records": [str(record) for record in marker["records"]], "closed": bool(marker["closed"]), "at": float(marker["at"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _mark(self, job: str, records: Sequence[str], *, closed: bool) -> None:
        body = {"records": list(records), "closed": closed, "at": self._now()}
        self._write(self.path / f"{job}.forget", json.dumps(body).encode())

    def _put(self, manifest: Manifest, raw: bytes) -> None:
        self._remove(manifest.key)
        self._write(self._value(manifest.key), raw)
        self._write(self.path / f"{manifest.key}.json", manifest.model_dump_json().encode())
        self._use(manifest.key)

    def _write(self, path: Path, raw: bytes) -> None:
        """Write a file that appears whole or not at all."""
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _manifest(self, key: str) -> Manifest | None:
        try:
            manifest = Manifest.model_validate_json((self.path / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return manifest if manifest.key == key and KEY.fullmatch(key) else None

    def _arrays(self, manifest: Manifest) -> Arrays:
        """Return the value of an entry. Raises OSError, ValueError, SafetensorError where it is missing, another, or no such file."""
        raw = self._value(manifest.key).read_bytes()
        if hashlib.sha256(raw).hexdigest() != manifest.digest:
            raise ValueError("the bytes are not those of the manifest")
        return from_bytes(raw)

    def _value(self, key: str) -> Path:
        return self.path / f"{key}.safetensors"

    def _remove(self, key: str) -> None:
        """Remove the value first: a manifest without its value is no entry."""
        self._value(key).unlink(missing_ok=True)
        (self.path / f"{key}.json").unlink(missing_ok=True)

    def _use(self, key: str) -> None:
        now = self._now()
        os.utime(self.path / f"{key}.json", (now, now))

    def _evict(self, *, spare: str = "") -> None:
        found = self.entries()
        total = sum(manifest.size_bytes for _, manifest in found)
        for _, manifest in found:
            if total <= self.limits.size_bytes:
                return
            if manifest.key != spare:
                self._remove(manifest.key)
                total -= manifest.size_bytes

    def _expired(self, manifest: Manifest) -> bool:
        return self._now() - manifest.created > self.limits.ttl_s

    def _now(self) -> float:
        return self._clock.now().timestamp()


class Root:
    """The folders of all tenants of one worker; no tenant is ever given another's."""

    def __init__(self, path: Path, limits: Limits, *, clock: Clock | None = None) -> None:
        self.path, self.limits = path, limits
        self._clock = clock

    def folder(self, tenant: str, dataset: str) -> Folder | None:
        """Return the folder of a tenant's dataset, None where nothing is to be kept. Raises ValueError for a name that is none of a folder."""
        if not (re.fullmatch(r"[0-9a-f]{32}", tenant) and re.fullmatch(r"[0-9a-f]{32}", dataset)):
            raise ValueError("a tenant and a dataset are named by 32 hexadecimal digits")
        return Folder(self.path / tenant / dataset, self.limits, clock=self._clock) if self.limits.size_bytes else None

    def sweep(self, *, touched: bool = True) -> None:
        """Sweep every folder, then remove what was least recently used, whosever it is, until all of it is within the limit."""
        folders = [Folder(path, self.limits, clock=self._clock) for path in sorted(self.path.glob("*/*")) if path.is_dir()]
        for folder in folders:
            folder.sweep(touched=touched)
        found = sorted(((used, manifest, folder) for folder in folders for used, manifest in folder.entries()), key=lambda entry: entry[0])
        total = sum(manifest.size_bytes for _, manifest, _ in found)
        for _, manifest, folder in found:
            if total <= self.limits.size_bytes:
                return
            folder.remove(manifest.key)
            total -= manifest.size_bytes
