"""Who calls: an API key in `Authorization: Bearer`, turned into a Caller; and the ledger, opened for that caller alone."""

import hashlib
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from services.clock import SystemClock
from services.db.session import async_unit_of_work
from services.errors import Conflict, DatabaseDown, Unauthenticated
from services.tenants import service as tenants
from services.tenants.caller import Caller
from services.tenants.keys import KeyRing

Answer = TypeVar("Answer")
REMEMBERED_S = 1.0
MAX_TOKEN = 8192
MAX_REMEMBERED = 4096
ATTEMPTS = 3
RACES = frozenset({"40001", "40P01", "23505"})
"""Serialization failure, deadlock, unique violation: the next attempt sees what the other transaction wrote."""


class Door:
    """Authenticates keys; an answer is remembered for a second, so that a revoked key stops within one."""

    def __init__(self, engine: AsyncEngine, keys: KeyRing) -> None:
        self.engine = engine
        self.keys = keys
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Return the caller. Raises Unauthenticated."""
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret or len(secret) > MAX_TOKEN or not secret.isascii():
            raise Unauthenticated
        digest = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(digest)
        if known is not None and time.monotonic() - known[0] < REMEMBERED_S:
            return known[1]
        async with async_unit_of_work(self.engine, tenant=None) as session:
            caller = await session.run_sync(tenants.authenticate, secret.strip(), self.keys.pepper)
        if len(self._known) > MAX_REMEMBERED:
            self._known.clear()
        self._known[digest] = (time.monotonic(), caller)
        return caller


class Ledger:
    """The ledger as one caller sees it: each call is one transaction of the caller's tenant."""

    def __init__(self, door: Door, caller: Caller) -> None:
        self.caller = caller
        self.keys = door.keys
        self.clock = SystemClock()
        self._engine = door.engine

    async def __call__(self, work: Callable[[Session], Answer]) -> Answer:
        """Run `work` in one transaction and return what it returns; it runs again where another transaction came in between.

        Raises: DatabaseDown; Conflict where it lost three times.
        """
        for _ in range(ATTEMPTS):
            try:
                async with async_unit_of_work(self._engine, tenant=self.caller.tenant_id) as session:
                    return await session.run_sync(work)
            except (DatabaseDown, IntegrityError) as error:
                if sqlstate(error) not in RACES:
                    raise
        raise Conflict(detail="other calls changed it at the same time; send it again")


def sqlstate(error: BaseException | None) -> str | None:
    """Return PostgreSQL's code of an error or of its cause."""
    origin = getattr(error.__cause__ if isinstance(error, DatabaseDown) else error, "orig", None)
    return getattr(origin, "sqlstate", None)


class Needs:
    """A dependency: the ledger of an authenticated caller who has `scope` (None: any authenticated caller)."""

    def __init__(self, scope: str | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Ledger:
        """Return the ledger. Raises Unauthenticated, MissingScope."""
        door: Door = request.app.state.door
        caller = await door.caller(request.headers.get("authorization"))
        if self.scope is not None:
            caller.require(self.scope)
        return Ledger(door, caller)
