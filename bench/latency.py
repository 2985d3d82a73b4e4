"""From the commit of a request to the first step of its job on an idle, warm worker: database times of requests made one after another."""

import statistics
from typing import Any

import psycopg

from bench.row import Row
from bench.service import deletion, service, superuser, uuid_of, wait_warm, with_model
from cli.client import Client

REQUESTS = 12
WARM_UP = 1
RECORDS = 4
GOAL_P50_MS = 100.0
GOAL_P99_MS = 1000.0

_TIMES = """
SELECT j.kind, extract(epoch FROM o.available_at), extract(epoch FROM j.created_at), extract(epoch FROM a.started_at),
       extract(epoch FROM min(s.started_at))
  FROM deletion_request r JOIN outbox o ON o.ref = r.id JOIN target t ON t.request_id = r.id JOIN job_target x ON x.target_id = t.id JOIN job j ON j.id = x.job_id
  JOIN job_attempt a ON a.job_id = j.id AND a.attempt = 1 JOIN job_step s ON s.job_id = j.id AND s.attempt = 1
 WHERE r.id = %s AND j.rung = 1 GROUP BY j.id, o.available_at, j.created_at, a.started_at ORDER BY o.available_at, j.created_at LIMIT 1
"""


def measure() -> Row:
    """Return the median latency over 100 ms; it counts from the request's outbox row, a little before its commit."""
    with service() as (stack, client), superuser(stack) as connection:
        records = with_model(client, stack.home)
        parts: list[dict[str, float]] = []
        for number in range(WARM_UP + REQUESTS):
            wait_warm(stack)
            named = records[number * RECORDS : (number + 1) * RECORDS]
            parts.append(one(client, connection, named))
    parts = parts[WARM_UP:]
    total = [part["first_step"] for part in parts]
    p50, p99 = statistics.median(total), statistics.quantiles(total, n=100, method="inclusive")[98]
    detail = {
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "max_ms": round(max(total), 1),
        "p99_goal_ms": GOAL_P99_MS,
        "p99_reached": p99 <= GOAL_P99_MS,
        "n": len(total),
        "p50_ms_to_job": round(statistics.median(part["job"] for part in parts), 1),
        "p50_ms_to_claim": round(statistics.median(part["claim"] for part in parts), 1),
        "from": "the outbox row of the request (database clock), the last insert before its commit but for the idempotency row",
        "to": "start of the first step of its job, in the database",
    }
    return Row("latency", p50 / GOAL_P50_MS, 1.0, "lower", detail)


def one(client: Client, connection: psycopg.Connection[Any], records: list[str]) -> dict[str, float]:
    """Make one request, wait until it is done, and return milliseconds from its outbox row to job, claim and first step."""
    made = client.post("/deletion-requests", deletion(records, policy="demo", method="retrain"))
    settled = {"needs_attention", "awaiting_release"}
    client.wait(f"/deletion-requests/{made['id']}", lambda found: bool(found["done"]) or found["status"] in settled, timeout_s=60, every_s=0.5)
    row = connection.execute(_TIMES, (uuid_of(made["id"]),)).fetchone()
    if row is None:
        raise RuntimeError("the request got no job")
    _, created, job, attempt, step = row
    return {"job": 1000 * float(job - created), "claim": 1000 * float(attempt - created), "first_step": 1000 * float(step - created)}
