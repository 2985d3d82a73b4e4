"""The doorbell: Celery as configured here carries job ids, and nothing depends on their arrival.

The work itself is a row of table `job`. A lost bell costs at most one poll interval, a doubled one finds nothing to do.
"""

# Celery ships no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from functools import lru_cache
from typing import Any
from uuid import UUID

import structlog
from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from services.settings import Settings

TASK = "lethe.run_job"
PUBLISH_TIMEOUT_S = 1.0

CONFIGURATION: dict[str, Any] = {
    "task_acks_late": False,
    "task_ignore_result": True,
    "task_store_errors_even_if_ignored": False,
    "result_backend": None,
    "worker_prefetch_multiplier": 1,
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    "task_send_sent_event": False,
    "task_serializer": "json",
    "accept_content": ["json"],
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {"socket_keepalive": True, "health_check_interval": 30, "retry_on_timeout": True, "socket_timeout": 5},
}
"""What worker and producer share. Early acknowledgement and no results, because the claim of the job row decides who runs it."""

PRODUCER: dict[str, Any] = {
    **CONFIGURATION,
    "broker_transport_options": {
        "socket_keepalive": True,
        "retry_on_timeout": False,
        "socket_timeout": PUBLISH_TIMEOUT_S,
        "socket_connect_timeout": PUBLISH_TIMEOUT_S,
        "max_retries": 0,
    },
    "broker_connection_timeout": PUBLISH_TIMEOUT_S,
    "broker_pool_limit": 1,
}
"""What the bell uses: it gives up after a second."""

log = structlog.get_logger()


def make_app(url: str, configuration: dict[str, Any] = CONFIGURATION) -> Celery:
    """Return a Celery application on the broker `url` without tasks; the worker adds its one task to it."""
    app = Celery("lethe", broker=url, set_as_current=False)
    app.conf.update(configuration)
    return app


class Bell:
    """Rings for jobs on one broker; keeps one connection."""

    def __init__(self, url: str) -> None:
        self.app = make_app(url, PRODUCER)

    def ring(self, job_id: UUID, queue: str) -> bool:
        """Tell the workers of `queue` that a job waits; say whether the broker took the message within a second.

        A failure is logged and nothing else: workers poll.
        """
        try:
            self.app.send_task(TASK, args=[str(job_id)], queue=queue, retry=False, ignore_result=True)
        except (OSError, CeleryError, KombuError, RedisError) as error:
            log.warning("bell.failed", job_id=str(job_id), queue=queue, error=type(error).__name__)
            return False
        return True

    def close(self) -> None:
        """Give the connection back."""
        self.app.close()


@lru_cache(maxsize=4)
def bell(url: str) -> Bell:
    """Return the process's own bell for a broker."""
    return Bell(url)


@lru_cache(maxsize=1)
def _configured_url() -> str:
    return Settings().queue.url.get_secret_value()


def ring(job_id: UUID, queue: str, *, url: str | None = None) -> bool:
    """Ring on the broker `url`, by default the configured one; an empty URL means that there is no broker, and rings nothing."""
    broker = _configured_url() if url is None else url
    return bool(broker) and bell(broker).ring(job_id, queue)
