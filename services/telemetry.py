"""Logs and metric names. A log line is one JSON object with fields from an allow-list: what is not listed is not written.

Metric labels are closed sets (routes, states, topics), never ids.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

ALLOWED_KEYS = frozenset(
    {
        "event", "level", "timestamp", "process", "pid", "request_id", "trace_id", "tenant_id", "principal", "route", "method", "status",
        "duration_ms", "code", "error", "retry_class", "job_id", "deletion_request_id", "report_id", "target_id", "model_id", "version_id", "dataset_id",
        "dataset_version_id", "policy_id", "epoch", "attempt", "crashes", "state", "step", "kind", "queue", "topic", "outbox_id", "worker", "device",
        "count", "limit", "round", "rung", "verdict", "component", "component_kind", "distribution", "digest", "size_bytes", "gate", "seconds",
        "delay_s", "timeout_s", "host", "port", "revision", "signal", "exit_status", "stack", "reason", "entries", "places", "frames", "codes",
        "number", "superseded", "records", "targets", "event_name", "hold_id",
    }
)  # fmt: skip
"""Every key that a log line may hold. None of them can carry an identifier of a person."""

HTTP_REQUESTS = Counter("lethe_http_requests_total", "Answered HTTP requests.", ["route", "method", "status"])
HTTP_SECONDS = Histogram("lethe_http_request_seconds", "Time to answer an HTTP request.", ["route", "method"])
REQUESTS_CREATED = Counter("lethe_deletion_requests_created_total", "Deletion requests recorded.", ["scope"])
JOBS_ENDED = Counter("lethe_jobs_ended_total", "Jobs that reached a state without a lease.", ["kind", "state"])
JOB_STEP_SECONDS = Histogram(
    "lethe_job_step_seconds", "Time of one step of a job.", ["step"], buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
)
CLAIM_SECONDS = Histogram("lethe_claim_seconds", "Time of one claim statement.")
OUTBOX_DONE = Counter("lethe_outbox_done_total", "Outbox rows carried out.", ["topic", "outcome"])
OUTBOX_OPEN = Gauge("lethe_outbox_open", "Outbox rows that are due.")
LEASES_EXPIRED = Counter("lethe_leases_expired_total", "Leases found expired by the sweeper.")
BELLS = Counter("lethe_bells_total", "Bells rung.", ["outcome"])


def keep_allowed(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop every field that is not in the allow-list; count them, so that a missing one is noticed."""
    dropped = [key for key in line if key not in ALLOWED_KEYS]
    for key in dropped:
        del line[key]
    if dropped:
        line["dropped"] = len(dropped)
    return line


def name_error(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the class of an exception in place of the exception: its text may quote what a caller sent."""
    info: Any = line.pop("exc_info", None)
    error: BaseException | None = info if isinstance(info, BaseException) else sys.exc_info()[1]
    if info and error is not None:
        line["error"] = type(error).__name__
        frames: list[str] = []
        trace = error.__traceback__
        while trace is not None:
            frames.append(f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}")
            trace = trace.tb_next
        line["stack"] = frames[-8:]
    return line


def configure_logging(process: str, *, level: int = logging.INFO) -> None:
    """Write structlog events as JSON lines on standard error, each with the name of the process (`gateway`, `worker`, `control`, `signer`)."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            name_error,
            keep_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
