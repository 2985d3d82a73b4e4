"""`python -m control`: the outbox at its bell and every 50 ms, the sweeper and the purges every 5 s, until SIGTERM. Several may run; for each loop one of them acts."""

import signal
import threading
from types import FrameType

import structlog

from control.ingest import Ingest
from control.loops import Control, Loop
from control.purge import Purge
from models_store.s3 import S3Store
from services.clock import SystemClock
from services.db.session import make_engine
from services.settings import Settings
from services.telemetry import configure_logging

log = structlog.get_logger()


def main() -> None:
    """Run until told to stop."""
    configure_logging("control")
    settings = Settings()
    engine = make_engine(settings.database.url.get_secret_value(), pool_size=max(10, settings.database.pool_size))
    clock = SystemClock()
    store = S3Store.from_parts(
        endpoint=settings.store.endpoint,
        public_endpoint=settings.store.public_endpoint or settings.store.endpoint,
        region=settings.store.region,
        bucket=settings.store.bucket,
        access_key=settings.store.access_key.get_secret_value(),
        secret_key=settings.store.secret_key.get_secret_value(),
        secure=settings.store.secure,
    )
    ingest = Ingest(engine, store, clock, settings.worker.scratch.absolute() / "control")
    control = Control(engine, settings, ingest, clock=clock)
    purge = Purge(engine, store, control.keys, clock=clock, lease_s=settings.worker.lease_s)
    stopping = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        log.info("control.stopping", signal=number)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    loops = [
        Loop("outbox", engine, control.drain, every_s=settings.worker.outbox_s, again=True, stopping=stopping, bell="lethe_outbox"),
        Loop("sweeper", engine, control.sweep, every_s=settings.worker.sweep_s, again=False, stopping=stopping),
        Loop("purge", engine, purge.turn, every_s=settings.worker.sweep_s, again=True, stopping=stopping),
    ]
    for loop in loops:
        loop.start()
    log.info("control.started")
    while not stopping.wait(0.5):
        if not all(loop.is_alive() for loop in loops):
            raise SystemExit(1)
    for loop in loops:
        loop.join(timeout=10.0)
    control.close()


if __name__ == "__main__":
    main()
