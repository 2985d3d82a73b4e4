"""Durable POST /v1/deletion-requests against a bare app that writes the same rows: same database, same load, in turns."""

import asyncio
import json
import statistics
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import Load, cpu_seconds, post_many
from bench.row import Row
from bench.service import deletion, rest, service, superuser, uuid_of, with_model
from cli.embedded.processes import Child, free_port, spawn, wait_until
from cli.embedded.stack import DATABASE, Stack

CALLS = 500
WARM_UP = 60
CONNECTIONS = 32
REPEATS = 3
APPS = ("gateway", "bare", "one_insert")


@dataclass(frozen=True, slots=True)
class Target:
    """An app under load."""

    url: str
    pid: int
    headers: Callable[[int], Mapping[str, str]]
    body: Callable[[int], bytes]

    def load(self, calls: int) -> Load:
        """Send it `calls` requests."""
        return post_many(self.url, calls=calls, connections=CONNECTIONS, headers=self.headers, body=self.body, expected=202)


def measure() -> Row:
    """Return the gateway's rate over the bare app's; medians of alternating repeats. The policy sends every request to review: no job starts."""
    with service() as (stack, client):
        records = iter(with_model(client, stack.home))
        first = uuid_of(client.post("/deletion-requests", deletion([next(records)], policy="gdpr-default"))["id"])
        rest(stack, "worker", "control")
        rows = asyncio.run(rows_of(stack, first))
        with bare_app(stack, first, one_insert=False) as bare, bare_app(stack, first, one_insert=True) as one:
            targets = dict(zip(APPS, (gateway(stack, records), bare, one), strict=True))
            loads, cpu, written = alternate(stack, targets)
        with superuser(stack) as connection:
            jobs = connection.execute("SELECT count(*) FROM job WHERE kind = 'unlearn'").fetchone()[0]
    rates = {name: statistics.median(load.rate for load in found) for name, found in loads.items()}
    return Row("gateway", rates["gateway"] / rates["bare"], 0.5, "higher", detail(loads, cpu, rates, written) | {"rows": rows, "jobs_started": jobs})


def alternate(stack: Stack, targets: Mapping[str, Target]) -> tuple[dict[str, list[Load]], dict[str, float], dict[str, int]]:
    """Load the apps in turns; return their loads, CPU seconds, and how many requests each wrote."""
    for target in targets.values():
        target.load(WARM_UP)
    loads: dict[str, list[Load]] = {name: [] for name in targets}
    cpu, written = dict.fromkeys(targets, 0.0), dict.fromkeys(targets, 0)
    for _ in range(REPEATS):
        for name, target in targets.items():
            used, held = cpu_seconds(target.pid), requests_held(stack)
            loads[name].append(target.load(CALLS))
            cpu[name] += cpu_seconds(target.pid) - used
            written[name] += requests_held(stack) - held
    return loads, cpu, written


def detail(loads: Mapping[str, list[Load]], cpu: Mapping[str, float], rates: Mapping[str, float], written: Mapping[str, int]) -> dict[str, Any]:
    """Return what the ratio was made of, for each app. The client shares the machine: its own CPU is told as well."""
    calls = CALLS * REPEATS
    apps = {
        name: {
            "requests_per_s": round(rates[name], 1),
            "app_cpu_ms_per_request": round(1000 * cpu[name] / calls, 3),
            "client_cpu_ms_per_request": round(1000 * sum(load.client_cpu_s for load in found) / calls, 3),
            "p50_ms": round(statistics.median(load.p50_ms for load in found), 1),
            "p99_ms": round(statistics.median(load.p99_ms for load in found), 1),
            "failures": sum(load.failures for load in found),
            "requests_written": written[name],
        }
        for name, found in loads.items()
    }
    return {
        **apps,
        "calls": CALLS,
        "repeats": REPEATS,
        "connections": CONNECTIONS,
        "ratio_to_one_insert": round(rates["gateway"] / rates["one_insert"], 3),
        "setting": "one uvicorn worker each, policy gdpr-default, one new record a request; worker and control at rest",
    }


def gateway(stack: Stack, records: Iterator[str]) -> Target:
    """Return the gateway; each call names a record that none named before."""

    def headers(_: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {stack.api_key}", "Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}

    def body(_: int) -> bytes:
        return json.dumps(deletion([next(records)], policy="gdpr-default")).encode()

    return Target(f"{stack.url}/v1/deletion-requests", stack.children["gateway"].pid, headers, body)


@contextmanager
def bare_app(stack: Stack, request: str, *, one_insert: bool) -> Iterator[Target]:
    """Run the bare app on a port of its own; `request` is the one whose rows it writes again."""
    port = free_port()
    env = stack.env("gateway") | {
        "BENCH_REQUEST": request,
        "BENCH_SUPERUSER_URL": superuser_url(stack),
        "BENCH_URL": stack.database_url("gateway"),
        "BENCH_ONE_INSERT": "1" if one_insert else "0",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [sys.executable, "-m", "uvicorn", "bench.bare_app:app", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "warning", "--no-server-header", "--lifespan", "on"]
    log = stack.home / "logs" / f"bare-{one_insert}.log"
    child = spawn("bare app", command, log=log, env=env, cwd=stack.home)
    try:
        wait_until(lambda: listens(port), child, timeout_s=30)
        yield Target(f"http://127.0.0.1:{port}/", child.pid, lambda _: {"Content-Type": "application/json"}, lambda _: b"{}")
        report_end(child)
    finally:
        child.stop()


def report_end(child: Child) -> None:
    """Print what the app logged: it is silent unless something failed."""
    if child.tail().strip():
        print(child.tail(), file=sys.stderr)


def listens(port: int) -> bool:
    """Say whether somebody listens on the port."""
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def superuser_url(stack: Stack) -> str:
    """Return the URL of the database for the superuser."""
    return stack.postgres.url("postgres", stack.postgres.password, DATABASE)


def requests_held(stack: Stack) -> int:
    """Return how many deletion requests the database holds."""
    with superuser(stack) as connection:
        return connection.execute("SELECT count(*) FROM deletion_request").fetchone()[0]


async def rows_of(stack: Stack, request: str) -> dict[str, int]:
    """Return how many rows of each table one request writes."""
    import asyncpg

    from bench.bare_app import Rows

    rows = Rows()
    connection = await asyncpg.connect(superuser_url(stack))
    await rows.read(connection, uuid.UUID(request), only_request=False)
    await connection.close()
    return {table: len(found) for table, _, _, found in rows.statements}
