"""What the runner drew of an evaluation: read from its file, checked against the closed forms, made into rows.

A figure that is not of these forms is left out with its reason; it never fails the job.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.audit import figure_forms

FILE_BYTES = 8 * 1024 * 1024
MOST = 32
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
REASON_LENGTH = 120


def figure_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of table `figure` {name, data, digest, reason}, each name once; none where the runner left no readable file."""
    if not path.is_file() or path.stat().st_size > FILE_BYTES:
        return []
    try:
        entries = json.loads(path.read_bytes())
    except ValueError:
        return []
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries[:MOST] if isinstance(entries, list) else []:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and NAME.fullmatch(name):
            rows.setdefault(name, _row(name, entry))
    return list(rows.values())


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if "document" not in entry:
        return {"name": name, "data": None, "digest": None, "reason": str(entry.get("reason") or "not_drawn")[:REASON_LENGTH]}
    try:
        document = figure_forms.plain(figure_forms.form_of(entry["document"]))
    except ValidationError:
        return {"name": name, "data": None, "digest": None, "reason": "malformed"}
    return {"name": name, "data": document, "digest": figure_forms.data_digest(document), "reason": None}
