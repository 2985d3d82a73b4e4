"""A purge that dies at a crash point of one's choice: by an exception that nothing catches, or as a process that is killed."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

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


EVERY_TURN = (
    "import sys\nfrom control.purge import Purge\nfrom models_store.s3 import S3Store\nfrom services.clock import SystemClock\n"
    "from services.db.session import make_engine\nfrom services.tenants.keys import KeyRing\n"
    "url, endpoint, bucket, kek = sys.argv[1:]\n"
    "store = S3Store.from_parts(endpoint=endpoint, public_endpoint='', region='us-east-1', bucket=bucket, access_key='testaccess',"
    " secret_key='testsecret', secure=False)\n"
    "purge = Purge(make_engine(url), store, KeyRing(kek, ''), clock=SystemClock())\n"
    "while purge.turn(): pass\n"
)
KILLED = 137


def purge_process(ledger: Any, server: Any, bucket: str, kek: str) -> list[str]:
    """Return the arguments of a process that does every due purge job and ends."""
    return [sys.executable, "-c", EVERY_TURN, ledger.url("lethe_control"), server.endpoint, bucket, kek]


def killed_for_real(arguments: list[str], point: int) -> bool:
    """Run a purge that kills its own process where the `point`-th crash point is passed; say whether it came so far. One that fails otherwise raises."""
    done = subprocess.run(arguments, env={**os.environ, "LETHE_CRASH_AT": str(point)}, check=False, capture_output=True)
    if done.returncode not in {0, KILLED}:
        raise AssertionError(done.stderr.decode()[-2000:])
    return done.returncode == KILLED
