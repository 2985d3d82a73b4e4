"""`python -m control.signer`: the sequencer and the signer, with a key and a database role of their own, until SIGTERM. Of several one acts.

It signs what is in the log, never what a caller sends. Without its key, or with another one than the log knows, it still makes leaves of the
events, signs nothing, and says so: reports stay pending and `/readyz` of the gateway turns red. A log that is not what was signed before gets
neither leaves nor signatures. `python -m control.signer revoke` revokes a key.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from control.cosigners import Cosigners
from control.loops import Loop
from models_store.errors import StoreError
from models_store.s3 import S3Store
from services.audit import heads, receipts, revocation, sequencer, signer
from services.audit.heads import Copies, Pace
from services.audit.notes import SigningKeyPair
from services.db import leaves
from services.db.crash import crash_point
from services.db.session import make_engine, unit_of_work
from services.errors import InvalidInput, KeyRefused, LetheError, LogBehind, LogRefused, StoreDown
from services.settings import Settings
from services.telemetry import configure_logging

log = structlog.get_logger()
HEADS, ERASURES, EPOCHS = "checkpoints/", "erasures/", "epoch-"
ENTRY_BYTES = 256 * 1024**2
TOLD_EVERY_S = 5.0
LAG_S = 10.0
ALONE_S = 20.0


class BucketCopies:
    """Heads and the journal in a bucket of their own, one object each; where the store can lock objects it refuses to change or delete them.

    The objects of epoch 0 lie under `checkpoints/` and `erasures/`, those of later ones under `epoch-NNNN/` before that.
    """

    def __init__(self, store: S3Store, *, days: int) -> None:
        self._store, self._days, self._locked = store, days, None

    _locked: bool | None

    def keep(self, size: int, note: str, *, epoch: int = 0) -> None:
        """Put a note under its size, once. Raises StoreDown."""
        self._put(f"{_folder(epoch)}{HEADS}{size:020d}", note)
        crash_point("after copy")

    def newest(self) -> tuple[int, str] | None:
        """Return the newest epoch that has a note, with that of the greatest size. Raises StoreDown."""
        for prefix in (EPOCHS, HEADS):
            last = max((key for key in self._keys(prefix) if f"/{HEADS}" in f"/{key}"), default=None)
            if last is not None:
                return int(last.removeprefix(EPOCHS).partition("/")[0]) if prefix == EPOCHS else 0, self._get(last, heads.NOTE_BYTES)
        return None

    def keep_erasure(self, leaf: int, sealed: str, *, epoch: int = 0) -> None:
        """Put an entry of the journal under its leaf, once. Raises StoreDown."""
        self._put(f"{_folder(epoch)}{ERASURES}{leaf:020d}", sealed)

    def erasures(self, epoch: int, first: int) -> Iterator[str]:
        """Yield the entries of an epoch from leaf `first` on, in order. Raises StoreDown."""
        prefix = f"{_folder(epoch)}{ERASURES}"
        for key in sorted(key for key in self._keys(prefix) if key >= f"{prefix}{first:020d}"):
            yield self._get(key, ENTRY_BYTES)

    def _put(self, key: str, body: str) -> None:
        try:
            self._prepare()
            self._store.put_bytes(key, body.encode())
        except StoreError as error:
            raise StoreDown(detail="the bucket of the log") from error

    def _get(self, key: str, limit: int) -> str:
        try:
            return self._store.get_range(key, 0, limit).decode()
        except StoreError as error:
            raise StoreDown(detail="the bucket of the log") from error

    def _keys(self, prefix: str) -> list[str]:
        try:
            self._prepare()
            return [found.key for found in self._store.list_versions(prefix) if not found.marker]
        except StoreError as error:
            raise StoreDown(detail="the bucket of the log") from error

    def _prepare(self) -> None:
        if self._locked is None:
            self._locked = self._store.ensure_locked_bucket(days=self._days)
            log.info("log_bucket.ready", state="locked" if self._locked else "not locked")


def _folder(epoch: int) -> str:
    return f"{EPOCHS}{epoch:04d}/" if epoch else ""


class Signer:
    """One signer. `turn` does what is due now and can be called at any time, any number of times."""

    def __init__(self, engine: Engine, settings: Settings, copies: Copies) -> None:
        self.engine, self.settings, self.copies = engine, settings, copies
        self._pace = Pace(settings.signer.head_leaves, settings.signer.head_s, settings.signer.receipt_s)
        self._cosigners = Cosigners(settings.signer)
        self._key: SigningKeyPair | None = None
        self._stale = True
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
            signer.check_name(session, name)
            key = heads.key_of(name, keys.signing.get_secret_value())
            signer.adopt(session, key, heads.key_of(name, previous) if previous else None)
            signer.tell_epoch(session)
            heads.keep_older_erasures(session, key, self.copies)
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
        """Sign a head if one is due, ask the witnesses for theirs, then sign the reports and receipts below the newest head."""
        key = self._key
        if key is None:
            return 0
        with unit_of_work(self.engine, tenant=None) as session:
            if not leaves.alone(session):
                return 0
            signer.check_current(session, key)
            if heads.due(session, self._pace):
                head = heads.extend(session, key, self.copies)
                log.info("head.signed", count=head.size if head is not None else 0)
        self._cosigners.cosign(self.engine)
        with unit_of_work(self.engine, tenant=None) as session:
            head = leaves.newest_head(session)
            if head is None or not leaves.alone(session):
                return 0
            signer.check_current(session, key)
            renewed = revocation.renew(session, head, key) if self._stale else 0
            self._stale = self._stale and (renewed > 0 or head.size < leaves.size(session))
            return renewed + signer.sign_reports(session, head, key) + receipts.sign(session, head, key)

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


def revoke(engine: Engine, settings: Settings, key_id: str, *, reason: str, fresh_key: bool) -> None:
    """Revoke a key, and where the operator says so begin with the key of the settings; both in one transaction.

    Raises InvalidInput, KeyRefused; LogBehind where another signer keeps the log to itself.
    """
    deadline = time.monotonic() + ALONE_S
    while time.monotonic() < deadline:
        with unit_of_work(engine, tenant=None) as session:
            if leaves.alone(session):
                revocation.revoke(session, key_id, reason=reason)
                if fresh_key:
                    revocation.start_afresh(session, heads.key_of(settings.signer.origin, settings.keys.signing.get_secret_value()))
                return
        time.sleep(0.05)
    raise LogBehind


def main(arguments: Sequence[str]) -> int:
    """Serve, or revoke a key; return 2 where that is refused."""
    configure_logging("signer")
    parser = argparse.ArgumentParser(prog="python -m control.signer", description="Number events, sign heads, reports and receipts.")
    commands = parser.add_subparsers(dest="command")
    told = commands.add_parser("revoke", help="revoke a key of the log, as after it was stolen; what is included later is not its to sign")
    told.add_argument("key_id", help="its id, name+hash, as the key set shows it")
    told.add_argument("--reason", required=True, help="what the log says, such as compromised; no name of a person")
    told.add_argument("--fresh-key", action="store_true", help="go on with LETHE_KEYS__SIGNING, on your word alone: no old key vouches for it")
    options = parser.parse_args(arguments)
    settings = Settings()
    engine = make_engine(settings.database.url.get_secret_value(), pool_size=3)
    if options.command is None:
        serve(settings, engine)
        return 0
    try:
        revoke(engine, settings, options.key_id, reason=options.reason, fresh_key=options.fresh_key)
    except LetheError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def serve(settings: Settings, engine: Engine) -> None:
    """Run until told to stop."""
    stopping = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        log.info("signer.stopping", signal=number)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        made = Signer(engine, settings, bucket_of(settings))
    except InvalidInput as error:
        log.error("signer.refuses", code=error.code, reason=str(error))  # noqa: TRY400  the settings are wrong: no trace is wanted
        raise SystemExit(2) from error
    loop = Loop("signer", engine, made.turn, every_s=settings.signer.poll_s, again=True, stopping=stopping)
    loop.start()
    while not stopping.wait(0.5):
        if not loop.is_alive():
            raise SystemExit(1)
    loop.join(timeout=10.0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
