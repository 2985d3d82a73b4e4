"""The audit log at scale, on the service's own database: sequencing, proofs, merge delay, what the log adds to a create, and a report checked offline.

The leaves of the scale are events without payloads, written by SQL; everything measured is the service's own code under the service's own roles.
"""

import argparse
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

import psutil
import structlog
from sqlalchemy import Engine, text

from bench.row import Row
from bench.service import DATASET, STEP_TIMEOUT_S, deletion, rest, service, superuser, with_model
from cli import verifier
from cli.client import Client
from cli.demo import fetch_report
from cli.embedded.stack import Stack
from services.audit import log, sequencer
from services.clock import SystemClock, uuid7
from services.db import leaves
from services.db.session import make_engine, unit_of_work
from services.requests import service as requests
from services.requests.forms import NewRequest, RecordsScope
from services.tenants.caller import SCOPES, Caller
from services.tenants.keys import KeyRing

LEAVES = 20_000
WRITERS = 8
CREATES = 15
TURNS = 5
PROOFS = 1000
DELAY_S = 8.0
POLL_S = 0.1
MOST_IN_FLIGHT = 50_000
CLOCK = SystemClock()

_FILL = "INSERT INTO audit_event (tenant_id, type, commitment) SELECT %s, 'bench.filler', sha256(int8send(n)) FROM generate_series(%s::bigint, %s::bigint) AS n"
_SINCE = text("SELECT extract(epoch FROM clock_timestamp() - at) FROM audit_event WHERE id = ANY(:ids)")


@dataclass(frozen=True, slots=True)
class Scene:
    """A database with a model, of which the service's processes are at rest; `records` have not been asked for yet."""

    stack: Stack
    tenant: UUID
    signer: Engine
    gateway: Engine
    records: Iterator[str]


def main(arguments: Sequence[str]) -> int:
    """Run the bench and print one line for each number."""
    parser = argparse.ArgumentParser(prog="python -m bench log", description="Measure the audit log.")
    parser.add_argument("--leaves", type=int, default=LEAVES, help="the size of the log; 1000000 is the full form")
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # the lines alone go to standard output
    for row in measured(options.leaves):
        print(row.line(), flush=True)
        if options.json is not None:
            with options.json.open("a") as lines:
                lines.write(row.line() + "\n")
    return 0


def measured(size: int) -> Iterator[Row]:
    """Yield the rows: the report's first, since it needs the service awake; the rest over a log of `size` leaves."""
    with service() as (stack, client):
        names = with_model(client, stack.home)
        yield verified(client, stack.home, names[:4])
        rest(stack, "worker", "control", "signer", "gateway")
        tenant, engines = tenant_of(stack), [make_engine(stack.database_url(role), pool_size=WRITERS + 2) for role in ("signer", "gateway")]
        scene = Scene(stack, tenant, *engines, iter(names[4:]))
        try:
            yield integrated(scene, size)
            yield proved(scene)
            yield delayed(scene)
            yield created(scene)
        finally:
            for engine in engines:
                engine.dispose()


def tenant_of(stack: Stack) -> UUID:
    """Return the tenant of the stack."""
    with superuser(stack) as connection:
        return UUID(str(connection.execute("SELECT id FROM tenant").fetchone()[0]))


def verified(client: Client, home: Path, records: list[str]) -> Row:
    """Return the seconds that the offline verifier takes for a real report, its start included."""
    made = client.post("/deletion-requests", deletion(records, policy="demo", method="retrain"))
    path = f"/deletion-requests/{made['id']}"
    done = client.wait(path, lambda found: bool(found["done"]) or found["status"] == "needs_attention", timeout_s=STEP_TIMEOUT_S)
    if done["status"] != "completed":
        raise RuntimeError(f"the request ended {done['status']}: {done.get('attention')}")
    report, key = home / "report.json", home / "log.vkey"
    fetch_report(client, made["id"], report, digest=done["result"]["audit_report"]["digest"])
    key.write_text(client.log_keys())
    times: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, verifier.__file__, report, "--log-key", key], check=True, capture_output=True)  # noqa: S603  our own file
        times.append(time.perf_counter() - began)
    began = time.process_time()
    verifier.verify(verifier.Given(report, key), lambda _: None)
    detail = {"verify_cpu_ms": round(1000 * (time.process_time() - began), 1), "max_s": round(max(times), 3), "report_bytes": report.stat().st_size,
              "of": "python cli/verifier.py as a new process, median of 5"}  # fmt: skip
    return Row("log.verify_s", statistics.median(times), 1.0, "lower", detail)


def integrated(scene: Scene, size: int) -> Row:
    """Return the leaves that the sequencer integrates in a second, until the log has `size` of them."""
    seconds, count, held, used = 0.0, 0, size_of(scene), cpu_of(scene)
    with superuser(scene.stack) as connection:
        while held < size:
            portion = min(MOST_IN_FLIGHT, size - held)
            connection.execute(_FILL, (scene.tenant, held, held + portion - 1))
            began = time.perf_counter()
            while integrate(scene):
                pass
            seconds += time.perf_counter() - began
            count, held = count + portion, size_of(scene)
        tables = connection.execute("SELECT sum(pg_total_relation_size(c)) FROM unnest(ARRAY['audit_leaf', 'tree_node']::regclass[]) AS c").fetchone()
    detail = {
        "leaves": held,
        "integrated": count,
        "seconds": round(seconds, 2),
        "batch": sequencer.BATCH,
        "cpu_us_per_leaf": {
            name: round(1e6 * (after - before) / max(1, count), 1)
            for name, before, after in zip(("sequencer", "postgres_with_the_filling"), used, cpu_of(scene), strict=True)
        },
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "tree_mib": round(int(tables[0]) / 2**20, 1),
        "load_before": load(),
    }
    return Row("log.leaves_per_s", count / seconds if seconds else 0.0, 5000.0, "higher", detail)


def integrate(scene: Scene) -> int:
    """Make one batch of leaves, as the signer does."""
    with unit_of_work(scene.signer, tenant=None) as session:
        return sequencer.integrate(session)


def cpu_of(scene: Scene) -> tuple[float, float]:
    """Return the CPU seconds of this process and of the database's backends: they tell the cost where the machine is busy with other things."""
    own, child = psutil.Process().cpu_times(), scene.stack.postgres.child
    used = [one.cpu_times() for one in psutil.Process(child.pid).children(recursive=True)] if child is not None else []
    return own.user + own.system, sum(one.user + one.system for one in used)


def size_of(scene: Scene) -> int:
    """Return the size of the log."""
    with unit_of_work(scene.signer, tenant=None) as session:
        return leaves.size(session)


def proved(scene: Scene) -> Row:
    """Return the milliseconds of an inclusion proof, at the 99th percentile."""
    size, draw, times = size_of(scene), random.Random(1), list[float]()
    with unit_of_work(scene.signer, tenant=None) as session:
        for _ in range(PROOFS):
            seq = draw.randrange(size)
            began = time.perf_counter()
            path = sequencer.inclusion(session, seq, size)
            times.append(1000 * (time.perf_counter() - began))
    detail = {"leaves": size, "p50_ms": round(statistics.median(times), 3), "hashes_of_the_last": len(path), "n": PROOFS, "load_before": load()}
    return Row("log.inclusion_p99_ms", percentile(times, 99), 5.0, "lower", detail)


def delayed(scene: Scene) -> Row:
    """Return the seconds from an event's write to the commit of its leaf, at the 99th percentile, while 8 writers write as fast as they can."""
    stop, delays, written = threading.Event(), list[float](), [0] * WRITERS

    def write(number: int) -> None:
        while not stop.is_set():
            with unit_of_work(scene.gateway, tenant=scene.tenant) as session:
                log.record(session, tenant_id=scene.tenant, object_id=uuid7(CLOCK), type="bench.written", body={"n": number})
            written[number] += 1

    def sequence() -> None:
        while not stop.is_set():
            delays.extend(one_turn(scene))

    threads = [threading.Thread(target=sequence), *(threading.Thread(target=write, args=(number,)) for number in range(WRITERS))]
    for thread in threads:
        thread.start()
    time.sleep(DELAY_S)
    stop.set()
    for thread in threads:
        thread.join()
    detail = {"p50_s": round(statistics.median(delays), 3), "max_s": round(max(delays), 3), "events_per_s": round(sum(written) / DELAY_S),
              "writers": WRITERS, "seconds": DELAY_S, "poll_s": POLL_S, "n": len(delays), "load_before": load()}  # fmt: skip
    return Row("log.merge_delay_p99_s", percentile(delays, 99), 2.0, "lower", detail)


def one_turn(scene: Scene) -> list[float]:
    """Make a batch of leaves, wait a poll's time where nothing waited, and return the ages of the batch's events after its commit."""
    with unit_of_work(scene.signer, tenant=None) as session:
        waiting = [event for event, _ in leaves.waiting(session, sequencer.BATCH)]
        done = sequencer.integrate(session)
    if not done:
        time.sleep(POLL_S)
        return []
    with unit_of_work(scene.signer, tenant=None) as session:
        return [float(age) for age in session.scalars(_SINCE, {"ids": waiting[:done]})]


def created(scene: Scene) -> Row:
    """Return what a create takes with its events over what it takes without them, in turns, by 8 writers."""
    keys = scene.stack.env("gateway")
    ring = KeyRing(keys["LETHE_KEYS__ENCRYPTION"], keys["LETHE_KEYS__PEPPER"])
    caller = Caller(scene.tenant, "bench", SCOPES)

    def one(record: str) -> None:
        with unit_of_work(scene.gateway, tenant=scene.tenant) as session:
            requests.create(session, NewRequest(RecordsScope(DATASET, (record,))), caller=caller, clock=CLOCK, keys=ring)

    with ThreadPoolExecutor(WRITERS) as pool:
        timed(pool, one, [next(scene.records) for _ in range(2 * WRITERS)])
        taken: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(TURNS):
            for logged in (True, False) if turn % 2 else (False, True):
                named = [next(scene.records) for _ in range(WRITERS * CREATES)]
                if logged:
                    taken[logged].append(timed(pool, one, named))
                else:
                    with patch("services.audit.log.record_all", lambda *_, events, **__: [(0, bytes(32))] * len(events)):
                        taken[logged].append(timed(pool, one, named))
    with_log, without = (statistics.median(taken[logged]) / (WRITERS * CREATES) for logged in (True, False))
    detail = {"ms_with": round(1000 * with_log, 3), "ms_without": round(1000 * without, 3), "writers": WRITERS, "creates": WRITERS * CREATES,
              "turns": TURNS, "setting": "services.requests.create in one process, policy gdpr-default, one new record a request", "load_before": load()}  # fmt: skip
    return Row("log.create_cost", with_log / without, 1.1, "lower", detail)


def timed(pool: ThreadPoolExecutor, one: Callable[[str], None], records: Sequence[str]) -> float:
    """Return the seconds that all records take."""
    began = time.perf_counter()
    list(pool.map(one, records))
    return time.perf_counter() - began


def percentile(values: Sequence[float], which: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[which - 1]


def load() -> list[float]:
    """Return the machine's load of the last minutes: numbers of a busy machine are to be read with it."""
    return [round(one, 1) for one in os.getloadavg()]
