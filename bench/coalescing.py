"""200 queued requests on one model against one request: what the worker spends on them."""

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg

from bench.load import cpu_seconds, post_many
from bench.row import Row
from bench.service import MODEL, STEP_TIMEOUT_S, deletion, rest, service, superuser, wait_warm, with_model
from cli.client import Client
from cli.embedded.stack import DATABASE, Stack

REQUESTS = 200
SINGLE_RECORDS = 4
EPOCHS = 15
WIDTH = 16
CONNECTIONS = 8
POLICY = "bench-batch"
METHOD = "retrain"
WINDOW_S = 3600

_DONE = "SELECT count(*) FROM deletion_request r JOIN policy p ON p.id = r.policy_id WHERE p.key = %s AND r.state = 'completed'"
_ENDED = "SELECT state, count(*) FROM deletion_request r JOIN policy p ON p.id = r.policy_id WHERE p.key = %s GROUP BY state"
_COST = """
SELECT count(DISTINCT j.id), coalesce(sum(extract(epoch FROM a.ended_at - a.started_at)), 0),
       coalesce(sum((j.step_state -> 'steps' -> 'unlearn' ->> 'seconds')::float), 0),
       coalesce(sum((j.step_state -> 'steps' -> 'evaluate' ->> 'seconds')::float), 0), count(*)
  FROM job j JOIN policy p ON p.id = j.policy_id JOIN job_attempt a ON a.job_id = j.id WHERE j.kind = 'unlearn' AND p.key = %s
"""
_REQUESTS_OF_JOBS = (
    "SELECT count(*) FROM job_target x JOIN job j ON j.id = x.job_id JOIN policy p ON p.id = j.policy_id WHERE p.key = %s GROUP BY j.id"
)


def measure() -> Row:
    """Return the worker's seconds for the jobs of 200 requests over those of one; method retrain for all, so that like is compared with like."""
    with service() as (stack, client), superuser(stack) as connection:
        records = with_model(client, stack.home, epochs=EPOCHS, width=WIDTH)
        write_policy(stack, connection)
        wait_warm(stack)
        single(client, records[:SINGLE_RECORDS])
        one = cost(connection, "demo")
        rest(stack, "worker", "control")
        queue(stack, records[SINGLE_RECORDS : SINGLE_RECORDS + REQUESTS])
        stack.start_process("worker")
        wait_warm(stack)
        began = time.monotonic()
        control = stack.start_process("control")
        wait_all(connection)
        release_to_done_s, control_cpu_s = time.monotonic() - began, cpu_seconds(control.pid)
        many = cost(connection, POLICY)
        batches = sorted((count for (count,) in connection.execute(_REQUESTS_OF_JOBS, (POLICY,))), reverse=True)
    detail = {
        "requests": REQUESTS,
        "jobs": many["jobs"],
        "requests_of_jobs": batches,
        "one": one,
        "many": many,
        "release_to_done_s": round(release_to_done_s, 2),
        "control_cpu_s": round(control_cpu_s, 2),
        "model": f"tiny_cnn of width {WIDTH}, {EPOCHS} epochs on 1,797 digits ({MODEL})",
        "method": METHOD,
        "policy": f"no caps; the batch closes with request {REQUESTS}",
        "cost": "seconds from claim to end of all attempts of all jobs; on a warm worker; release_to_done_s adds the start of control and 200 reports",
    }
    return Row("coalescing", many["worker_s"] / one["worker_s"], 1.5, "lower", detail)


def write_policy(stack: Stack, connection: psycopg.Connection[Any]) -> None:
    """Write a policy as `demo`, whose batch is full with the last of the requests."""
    from services.clock import SystemClock, uuid7
    from services.db.session import make_engine, unit_of_work
    from services.tenants.policies import DEMO
    from services.tenants.policies import write_policy as write

    tenant = UUID(str(connection.execute("SELECT id FROM tenant").fetchone()[0]))
    body = DEMO.model_copy(update={"batch_window_s": WINDOW_S, "max_batch": REQUESTS})
    engine = make_engine(stack.postgres.url("postgres", stack.postgres.password, DATABASE))
    with unit_of_work(engine, tenant=tenant) as session:
        write(session, tenant_id=tenant, policy_id=uuid7(SystemClock()), key=POLICY, body=body)
    engine.dispose()


def single(client: Client, records: list[str]) -> None:
    """Carry one request to its end. Raises RuntimeError where it is not completed."""
    made = client.post("/deletion-requests", deletion(records, policy="demo", method=METHOD))
    path = f"/deletion-requests/{made['id']}"
    ended = client.wait(path, lambda found: bool(found["done"]) or found["status"] == "needs_attention", timeout_s=STEP_TIMEOUT_S)
    if ended["status"] != "completed":
        raise RuntimeError(f"the single request ended {ended['status']}: {ended.get('attention')}")


def queue(stack: Stack, records: list[str]) -> None:
    """POST one request for each record while nothing works on them. Raises RuntimeError where one is refused."""
    bodies = [deletion([record], policy=POLICY, method=METHOD) for record in records]

    def headers(number: int) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {stack.api_key}", "Content-Type": "application/json", "Idempotency-Key": f"coalescing-{number}"}

    url = f"{stack.url}/v1/deletion-requests"
    load = post_many(url, calls=len(bodies), connections=CONNECTIONS, headers=headers, body=lambda n: json_bytes(bodies[n]), expected=202)
    if load.failures:
        raise RuntimeError(f"{load.failures} of {load.calls} requests were refused")


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON."""
    import json

    return json.dumps(document).encode()


def wait_all(connection: psycopg.Connection[Any]) -> None:
    """Wait until every request is completed. Raises TimeoutError with the states they are in."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while time.monotonic() < deadline:
        if connection.execute(_DONE, (POLICY,)).fetchone()[0] == REQUESTS:
            return
        time.sleep(0.25)
    raise TimeoutError(f"requests are {dict(connection.execute(_ENDED, (POLICY,)).fetchall())}")


def cost(connection: psycopg.Connection[Any], policy: str) -> dict[str, float]:
    """Return what the worker spent on the jobs of a policy."""
    jobs, worker, unlearn, evaluate, attempts = connection.execute(_COST, (policy,)).fetchone()
    return {
        "jobs": int(jobs),
        "attempts": int(attempts),
        "worker_s": round(float(worker), 3),
        "method_s": round(float(unlearn), 3),
        "evaluation_s": round(float(evaluate), 3),
    }
