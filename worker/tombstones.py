"""Copies of destroyed files on this worker: found by size, told by digest, removed."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import structlog
from sqlalchemy import Engine

from services.db import objects
from services.db.session import unit_of_work

log = structlog.get_logger()


def drop(engine: Engine, scratch: Path) -> int:
    """Remove every file under `scratch` whose bytes were destroyed; return how many. A file that a job removes meanwhile is no error.

    Raises: DatabaseDown; OSError where a file cannot be read or removed.
    """
    files: dict[int, list[Path]] = {}
    for folder, _, names in os.walk(scratch):
        for path in (Path(folder, name) for name in names):
            try:
                files.setdefault(path.lstat().st_size, []).append(path)
            except FileNotFoundError:
                continue
    if not files:
        return 0
    with unit_of_work(engine, tenant=None) as session:
        dead = objects.gone(session, files)
    return sum(_drop(path, digests) for size_bytes, digests in dead.items() for path in files[size_bytes])


def _drop(path: Path, dead: Collection[str]) -> int:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return 0
    if digest not in dead:
        return 0
    path.unlink(missing_ok=True)
    log.warning("copy.destroyed", digest=digest)
    return 1
