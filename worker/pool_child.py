"""What happens when a pool child begins and ends: it gets its supervisor, and a line to its parent.

The line is a pipe that the worker main holds open. A byte on it means: stop, give the job back. Its end means that the main is gone.
"""

import os
import threading
from typing import Any

import structlog
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

from models_store.s3 import S3Store
from services.db.session import make_engine
from services.settings import Settings
from worker.celery_app import settings as configured
from worker.supervisor import Supervisor

log = structlog.get_logger()

_READ, _WRITE = os.pipe()
_held: dict[str, Supervisor] = {}


def supervisor() -> Supervisor:
    """Return the supervisor of this pool child."""
    return _held["supervisor"]


def make_supervisor(settings: Settings) -> Supervisor:
    """Return a supervisor with connections of its own."""
    engine = make_engine(settings.database.url.get_secret_value(), pool_size=max(4, settings.database.pool_size))
    store = settings.store
    return Supervisor(
        engine,
        S3Store.from_parts(
            endpoint=store.endpoint,
            public_endpoint=store.public_endpoint or store.endpoint,
            region=store.region,
            bucket=store.bucket,
            access_key=store.access_key.get_secret_value(),
            secret_key=store.secret_key.get_secret_value(),
            secure=store.secure,
        ),
        settings,
    )


@worker_process_init.connect
def begin(**_: Any) -> None:
    """Make the supervisor after the fork, and start its threads."""
    os.close(_WRITE)
    _held["supervisor"] = make_supervisor(configured)
    _held["supervisor"].start()
    threading.Thread(target=_hold_the_line, args=(_held["supervisor"],), name="lifeline", daemon=True).start()


def _hold_the_line(held: Supervisor) -> None:
    said = os.read(_READ, 1)
    log.info("worker.stopping", state="asked" if said else "parent gone")
    held.stop()
    if not said:
        os._exit(0)


@worker_shutting_down.connect
def say_stop(**_: Any) -> None:
    """In the worker main: tell the pool child to give its job back."""
    os.write(_WRITE, b"s")


@worker_process_shutdown.connect
def end(**_: Any) -> None:
    """In a pool child that ends by itself: leave no runner behind."""
    if "supervisor" in _held:
        _held["supervisor"].stop()
