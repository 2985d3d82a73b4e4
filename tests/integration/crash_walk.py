"""A purge that dies at a crash point of one's choice."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from control import purge as worker
from services.db import session as transactions


class Killed(BaseException):
    """Stands for a kill: nothing of the service catches it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, passing: int, act: Callable[[], object]) -> str | None:
    """Do `act` and die at the crash point that is the `passing`-th to be passed; return its name, or None where fewer were passed."""
    passed: list[str] = []

    def point(name: str) -> None:
        passed.append(name)
        if len(passed) == passing:
            raise Killed

    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(transactions, "crash_point", point)
        patch.setattr(worker, "crash_point", point)
        act()
    return passed[passing - 1] if len(passed) >= passing else None
