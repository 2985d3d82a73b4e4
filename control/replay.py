"""`python -m control.replay`: after the database was put back to an older state, do the erasures again that it does not know, and let the log go on.

It reads the copies of heads and the journal of erasures in the bucket of the log. The versions that an erasure had put away are put away again; its
requests come back as approved, with their clocks, and are carried out anew when control and workers run. Then the log may go on under another
name, which the signer signs once it is told the same (LETHE_SIGNER__ORIGIN). Run it as the owner role (LETHE_DATABASE__OWNER_URL), with nothing of the
service running; again, it does only what is missing. Standard output: one JSON line.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from control.signer import bucket_of
from services.audit import heads, journal, notes, signer
from services.audit.heads import Copies
from services.audit.notes import Checkpoint, VerifierKey
from services.clock import Clock, SystemClock
from services.db import erasures, leaves
from services.db.session import make_engine, unit_of_work
from services.errors import InvalidInput, LetheError, LogForked
from services.requests.replay import Replayed, replay
from services.settings import Settings
from services.telemetry import configure_logging


@dataclass
class Outcome:
    """What a replay came to. Leaves [lost_from, lost_to) are lost: signed once, and not in this database."""

    origin: str
    lost_from: int
    lost_to: int
    entries: int = 0
    quarantined: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])

    def add(self, done: Replayed) -> None:
        """Count an entry in."""
        self.entries += 1
        self.quarantined += [str(one) for one in done.quarantined]
        self.requests += [f"dr_{one.hex}" for one in done.requests]
        self.skipped += done.skipped

    def line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(vars(self))


def restore(engine: Engine, copies: Copies, origin: str, *, clock: Clock, keys: Iterable[VerifierKey] = ()) -> Outcome:
    """Replay what the database lacks, and open the next epoch of the log under `origin`.

    Args:
        engine: of the owner role.
        copies: the bucket of the log.
        origin: the log's new name, which no epoch has had.
        clock: for the ids of new rows.
        keys: of the log, beside those that the database knows: where a key came into the log after the state that was put back.

    Raises:
        InvalidInput: the log is whole, or the name was used. LogForked: the newest copy is of none of the keys, or this tree is not its beginning.
        IntegrityBroken: an entry of the journal is not sealed by one of them.
    """
    with unit_of_work(engine, tenant=None) as session:
        last_epoch, note, newest, known = _lost(copies, [*signer.known_keys(session), *keys])
        first_epoch, held = heads.epoch_of(session), leaves.size(session)
        opened = erasures.epoch(session)
        again = opened is not None and opened.after_note == note and opened.origin == origin
        if not again:
            _check_lost(session, newest, origin, known, same_epoch=last_epoch == first_epoch)
    outcome = Outcome(origin, held, newest.size)
    for epoch in range(0 if again else first_epoch, last_epoch + 1):
        for sealed in copies.erasures(epoch, held):
            entry = journal.opened(sealed, known)
            with unit_of_work(engine, tenant=UUID(entry["tenant"])) as session:
                outcome.add(replay(session, entry, clock))
    if not again:
        with unit_of_work(engine, tenant=None) as session:
            erasures.add_epoch(
                session, number=last_epoch + 1, origin=origin, after_size=newest.size, after_note=note, held_size=held, replayed=outcome.entries
            )
    return outcome


def _check_lost(session: Session, newest: Checkpoint, origin: str, known: Sequence[VerifierKey], *, same_epoch: bool) -> None:
    """Raise InvalidInput where nothing is lost or the name was used, LogForked where this tree is not the beginning of what was signed."""
    if same_epoch and newest.size <= leaves.size(session):
        heads.check(session, newest.size, newest.root)
        raise InvalidInput(detail=f"the log is whole: it holds the {newest.size} leaves that were signed")
    if origin in {newest.origin, *(key.name for key in known)}:
        raise InvalidInput(detail=f"{origin} is a name that the log has had; give it another, such as {newest.origin}/restored")
    last = leaves.newest_head(session)
    if last is not None:
        heads.check(session, last.size, last.root)


def _lost(copies: Copies, keys: Sequence[VerifierKey]) -> tuple[int, str, Checkpoint, list[VerifierKey]]:
    """Return epoch, note and checkpoint of the newest copy, and the keys, each under the copy's name too. Raises InvalidInput, LogForked."""
    found = copies.newest()
    if found is None:
        raise InvalidInput(detail="the bucket of the log holds no head: there is nothing to go on from")
    epoch, note = found
    newest = notes.parse_checkpoint(note)
    known = [*keys, *(VerifierKey(newest.origin, key.public) for key in keys)]
    if not any(newest.signed_by(key) for key in known):
        raise LogForked(size=newest.size)
    return epoch, note, newest, known


def main(arguments: Sequence[str]) -> int:
    """Run from the command line; return 2 where it is refused."""
    configure_logging("replay")
    parser = argparse.ArgumentParser(prog="python -m control.replay", description="Do erasures again after the database was put back.")
    parser.add_argument("--origin", required=True, help="the name under which the log goes on; LETHE_SIGNER__ORIGIN is set to it afterwards")
    parser.add_argument("--log-key", type=Path, metavar="FILE", help="the log's verifier keys, one a line, where the database may lack some")
    options = parser.parse_args(arguments)
    settings = Settings()
    owner_url = settings.database.owner_url.get_secret_value()
    if not owner_url:
        sys.stderr.write("Set LETHE_DATABASE__OWNER_URL.\n")
        return 2
    engine = make_engine(owner_url, pool_size=2)
    try:
        lines = options.log_key.read_text(encoding="utf-8").splitlines() if options.log_key else []
        keys = [VerifierKey.parse(line.partition(" ")[0]) for line in lines if line.strip() and not line.startswith("#")]
        outcome = restore(engine, bucket_of(settings), options.origin, clock=SystemClock(), keys=keys)
    except (LetheError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        engine.dispose()
    sys.stdout.write(f"{outcome.line()}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
