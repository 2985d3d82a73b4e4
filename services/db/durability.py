"""What the server must be set to, so that an answered request is on disk."""

from sqlalchemy import text
from sqlalchemy.orm import Session

_REQUIRED = ("fsync", "synchronous_commit", "full_page_writes")
_SHOW = text("SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'data_checksums')")
_FLOOR = 160000


def unsafe_settings(session: Session) -> list[str]:
    """Return the settings that make an acknowledged write unsafe; `/readyz` is red unless the list is empty.

    `synchronous_commit` counts as on for `on`, `remote_write` and `remote_apply`.
    """
    held = {row.name: row.setting for row in session.execute(_SHOW)}
    return [f"{name}={held[name]}" for name in _REQUIRED if held[name] not in {"on", "remote_write", "remote_apply"}]


def checksums_off(session: Session) -> bool:
    """Say whether the server would not notice a page that the disk changed."""
    return {row.name: row.setting for row in session.execute(_SHOW)}["data_checksums"] != "on"


def too_old(session: Session) -> bool:
    """Say whether the server is older than PostgreSQL 16."""
    return int(session.scalar(text("SELECT current_setting('server_version_num')")) or 0) < _FLOOR
