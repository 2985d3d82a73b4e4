"""`python -m control.signer`: the sequencer and the signer, with a key and a database role of their own, until SIGTERM. Of several one acts.

It signs what is in the log, never what a caller sends. Without its key, or with another one than the log knows, it still makes leaves of the
events, signs nothing, and says so: reports stay pending and `/readyz` of the gateway turns red. A log that is not what was signed before gets
neither leaves nor signatures.
"""

import signal
import threading
import time
from types import FrameType

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from control.loops import Loop
from models_store.errors import StoreError
from models_store.s3 import S3Store
from services.audit import heads, sequencer, signer
from services.audit.heads import Copies, Pace
from services.audit.notes import SigningKeyPair
from services.db import leaves
from services.db.crash import crash_point
from services.db.session import make_engine, unit_of_work
from services.errors import KeyRefused, LogRefused, StoreDown
from services.settings import Settings
from services.telemetry import configure_logging

log = structlog.get_logger()
PREFIX = "checkpoints/"
TOLD_EVERY_S = 5.0
LAG_S = 10.0


class BucketCopies:
    """Heads in a bucket of their own, one object for each size; where the store can lock objects it refuses to change or delete them."""

    def __init__(self, store: S3Store, *, days: int) -> None:
        self._store, self._days, self._locked = store, days, None

    _locked: bool | None

    def keep(self, size: int, note: str) -> None:
        """Put a note under its size, once. Raises StoreDown."""
        try:
            self._prepare()
            self._store.put_bytes(f"{PREFIX}{size:020d}", note.encode())
        except StoreError as error:
            raise StoreDown(detail="the bucket of the log") from error
        crash_point("after copy")

    def newest(self) -> str | None:
        """Return the note of the greatest size. Raises StoreDown."""
        try:
            self._prepare()
            last = max((found.key for found in self._store.list_versions(PREFIX) if not found.marker), default=None)
            return None if last is None else self._store.get_range(last, 0, heads.NOTE_BYTES).decode()
        except StoreError as error:
            raise StoreDown(detail="the bucket of the log") from error

    def _prepare(self) -> None:
        if self._locked is None:
            self._locked = self._store.ensure_locked_bucket(days=self._days)
            log.info("log_bucket.ready", state="locked" if self._locked else "not locked")


class Signer:
    """One signer. `turn` does what is due now and can be called at any time, any number of times."""

    def __init__(self, engine: Engine, settings: Settings, copies: Copies) -> None:
        self.engine, self.settings, self.copies = engine, settings, copies
        self._pace = Pace(settings.signer.head_leaves, settings.signer.head_s)
        self._key: SigningKeyPair | None = None
        self._refused: LogRefused | None = None
        self._told: tuple[str, float] = ("", 0.0)

    def turn(self) -> int:
        """Make leaves of what waits, sign what is due, and return how much was done. A refusal stands until the process starts again."""
        try:
            self._begin()
            done = self._sequence()
            done += self._sign()
        except LogRefused as error:
            self._refused = error
            done = self._sequence() if isinstance(error, KeyRefused) else 0
            self._tell(error.code, str(error))
        except StoreDown as error:
            done = self._sequence()
            self._tell(error.code, str(error))
        else:
            self._tell("ok", "")
        return done

    def _begin(self) -> None:
        """Take the key, once it was found to be the log's and the log to be what was signed before. Raises LogRefused, StoreDown."""
        if self._refused is not None:
            raise self._refused
        if self._key is not None:
            return
        keys, name = self.settings.keys, self.settings.signer.origin
        previous = keys.signing_previous.get_secret_value()
        with unit_of_work(self.engine, tenant=None) as session:
            if not leaves.alone(session):
                return
            heads.check_signed(session, self.copies, signer.known_keys(session))
            heads.audit_all(session)
            key = heads.key_of(name, keys.signing.get_secret_value())
            signer.adopt(session, key, heads.key_of(name, previous) if previous else None)
        self._key = key
        log.info("signer.started", digest=key.public.key_id)

    def _sequence(self) -> int:
        with unit_of_work(self.engine, tenant=None) as session:
            try:
                return sequencer.integrate(session)
            except (KeyError, IntegrityError) as error:  # a node or leaf that the next one stands on is not there
                session.rollback()
                raise heads.missing(session) from error

    def _sign(self) -> int:
        """Sign a head if one is due, then the reports below the newest head."""
        key = self._key
        if key is None:
            return 0
        with unit_of_work(self.engine, tenant=None) as session:
            if leaves.alone(session) and heads.due(session, self._pace):
                head = heads.extend(session, key, self.copies)
                log.info("head.signed", count=head.size if head is not None else 0)
        with unit_of_work(self.engine, tenant=None) as session:
            head = leaves.newest_head(session)
            return signer.sign_reports(session, head, key) if head is not None and leaves.alone(session) else 0

    def _tell(self, state: str, detail: str) -> None:
        """Write what the signer is, when it changes and every few seconds."""
        now = time.monotonic()
        changed = state != self._told[0]
        if not changed and now - self._told[1] < TOLD_EVERY_S:
            return
        if changed and state != "ok":
            log.error("signer.refuses", state=state, code=state)
        with unit_of_work(self.engine, tenant=None) as session:
            if state == "ok" and leaves.lag_s(session) > LAG_S:
                state = "log-behind"
            leaves.tell(session, signer.NAME, state, detail)
        self._told = (state, now)


def bucket_of(settings: Settings) -> BucketCopies:
    """Return the bucket of the log that the settings name."""
    part = settings.store
    store = S3Store.from_parts(
        endpoint=part.endpoint,
        public_endpoint="",
        region=part.region,
        bucket=part.log_bucket,
        access_key=part.access_key.get_secret_value(),
        secret_key=part.secret_key.get_secret_value(),
        secure=part.secure,
    )
    return BucketCopies(store, days=part.log_lock_days)


def main() -> None:
    """Run until told to stop."""
    configure_logging("signer")
    settings = Settings()
    engine = make_engine(settings.database.url.get_secret_value(), pool_size=3)
    stopping = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        log.info("signer.stopping", signal=number)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    made = Signer(engine, settings, bucket_of(settings))
    loop = Loop("signer", engine, made.turn, every_s=settings.signer.poll_s, again=True, stopping=stopping)
    loop.start()
    while not stopping.wait(0.5):
        if not loop.is_alive():
            raise SystemExit(1)
    loop.join(timeout=10.0)


if __name__ == "__main__":
    main()
