"""The yardstick of the gateway bench: a bare ASGI app that writes rows with asyncpg in one transaction.

The rows are those of one real request, read at start (BENCH_REQUEST names it) and written again with new ids for each call; with BENCH_ONE_INSERT=1
only the request's own row. No validation, no authentication, no idempotency check, no framework.
"""

import json
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

Send = Callable[[dict[str, Any]], Awaitable[None]]
TABLES = (
    ("deletion_request", "id = $1"),
    ("target", "request_id = $1"),
    ("target_record", "target_id IN (SELECT id FROM target WHERE request_id = $1)"),
    ("audit_event", "id IN (SELECT event_id FROM audit_payload WHERE object_id = $1)"),
    ("audit_payload", "object_id = $1"),
    ("outbox", "ref = $1"),
    ("idempotency", "body ->> 'id' = 'dr_' || replace($1::uuid::text, '-', '')"),
)
ALWAYS = frozenset(table for table, _ in TABLES) - {"outbox"}  # a request that waits for review rings for nobody
GENERATED = {"audit_event": {"id", "seq"}, "outbox": {"id"}}  # by the database, or later by the sequencer


class Rows:
    """The rows of one request, with the statements that write them again."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, str, list[str], list[asyncpg.Record]]] = []
        self.tenant = ""

    async def read(self, connection: asyncpg.Connection, request: uuid.UUID, *, only_request: bool) -> None:
        """Read the rows of `request`."""
        for table, condition in TABLES[:1] if only_request else TABLES:
            found = await connection.fetch(f"SELECT * FROM {table} WHERE {condition}", request)  # noqa: S608  names of our own tables
            if not found and table in ALWAYS:
                raise LookupError(f"the request left no row in {table}")
            if not found:
                continue
            columns = [name for name in found[0].keys() if name not in GENERATED.get(table, ())]  # noqa: SIM118  a Record iterates over values
            slots = ", ".join(f"${i + 1}" for i in range(len(columns)))
            returning = " RETURNING id" if table == "audit_event" else ""
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({slots}){returning}"  # noqa: S608
            self.statements.append((table, statement, columns, found))
            self.tenant = str(found[0]["tenant_id"])

    async def write(self, connection: asyncpg.Connection) -> None:
        """Write them again as another request."""
        fresh: dict[Any, Any] = {}
        events: list[int] = []
        for table, statement, columns, rows in self.statements:
            for number, row in enumerate(rows):
                values = [self._value(table, name, row[name], fresh) for name in columns]
                if table == "audit_payload":
                    values[columns.index("event_id")] = events[number]
                if table == "audit_event":
                    events.append(await connection.fetchval(statement, *values))
                else:
                    await connection.execute(statement, *values)

    @staticmethod
    def _value(table: str, name: str, value: Any, fresh: dict[Any, Any]) -> Any:
        if name in {"id", "request_id", "target_id", "object_id", "ref"}:
            return fresh.setdefault(value, uuid.uuid4())
        if (table, name) == ("deletion_request", "scope_hmac"):
            return uuid.uuid4().bytes * 2
        if (table, name) == ("deletion_request", "external_id"):
            return None
        if (table, name) == ("idempotency", "key"):
            return uuid.uuid4().hex
        return value


class App:
    """The ASGI application."""

    def __init__(self) -> None:
        self.pool: asyncpg.Pool | None = None
        self.rows = Rows()

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        """Answer one call, or live through start and stop."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        await receive()
        assert self.pool is not None
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.tenant', $1, true)", self.rows.tenant)
            await self.rows.write(connection)
        body = json.dumps({"id": uuid.uuid4().hex}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
        await receive()
        request = uuid.UUID(os.environ["BENCH_REQUEST"])
        reader = await asyncpg.connect(os.environ["BENCH_SUPERUSER_URL"])
        await self.rows.read(reader, request, only_request=os.environ.get("BENCH_ONE_INSERT") == "1")
        await reader.close()
        self.pool = await asyncpg.create_pool(os.environ["BENCH_URL"], min_size=10, max_size=10)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.pool.close()
        await send({"type": "lifespan.shutdown.complete"})


app = App()
