"""Signed heads: a checkpoint is signed only where the tree still begins with what was signed before, and holds what its events committed to.

Every refusal is a class below LogRefused: the signer then signs nothing, says why, and a person looks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.orm import Session

from services.audit import journal, notes, sequencer, tree
from services.audit.notes import Checkpoint, SigningKeyPair, VerifierKey
from services.db import erasures, leaves, receipts
from services.db.tables import TreeHead
from services.errors import InvalidInput, KeyRefused, LogForked, LogShrunken, LogTampered

BLOCK_LEVEL = 12
BLOCK = 1 << BLOCK_LEVEL
NOTE_BYTES = notes.LONGEST_NOTE


class Copies(Protocol):
    """Where heads, and the journal of erasures, are kept beside the database. An epoch is counted up with each restore, from 0."""

    def keep(self, size: int, note: str, *, epoch: int = 0) -> None:
        """Keep a note; the same one again changes nothing."""
        ...

    def newest(self) -> tuple[int, str] | None:
        """Return the newest epoch of which a note is kept, with its note of the greatest size."""
        ...

    def keep_erasure(self, leaf: int, sealed: str, *, epoch: int = 0) -> None:
        """Keep an entry of the journal of erasures under the number of its leaf; the same one again changes nothing."""
        ...

    def erasures(self, epoch: int, first: int) -> Iterator[str]:
        """Yield the entries of an epoch whose leaf is `first` or later, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """When a head is due: after so many new leaves, or when the last one is so old and there is any new leaf, or a request's receipt among them."""

    leaves: int = 100
    seconds: float = 10.0
    receipt_s: float = 5.0


def key_of(name: str, seed: str) -> SigningKeyPair:
    """Return the key that the settings hold. Raises KeyRefused where there is none, or none of this form."""
    if not seed:
        raise KeyRefused(detail="LETHE_KEYS__SIGNING is not set")
    try:
        return SigningKeyPair.from_hex(name, seed)
    except InvalidInput as error:
        raise KeyRefused(detail="LETHE_KEYS__SIGNING is not 64 hexadecimal digits, or LETHE_SIGNER__ORIGIN is no name") from error


def due(session: Session, pace: Pace) -> bool:
    """Say whether a head is to be signed now: by the pace, or at once where a report's leaf is not below a head yet."""
    last, size = leaves.newest_head(session), leaves.size(session)
    if size == 0 or (last is not None and size == last.size):
        return False
    if last is None or size - last.size >= pace.leaves:
        return True
    waiting = leaves.oldest_unsigned(session)
    age_s = leaves.age_s(session, last)
    if (waiting is not None and waiting >= last.size) or age_s >= pace.seconds:
        return True
    return age_s >= pace.receipt_s and receipts.waits_above(session, last.size)


def extend(session: Session, key: SigningKeyPair, copies: Copies, *, cosigners: Iterable[SigningKeyPair] = ()) -> TreeHead | None:
    """Check the tree, sign its head, keep the copy, store the head and return it; None where there is no leaf.

    Before the copy the journal gets what the head newly covers of erasures: whoever has a head has the erasures below it.

    The copy is put before the head is stored: what a reader may have seen is in the copies even where the database is put back. A crash between
    the two leaves a copy of a tree that the next head extends. `cosigners` are earlier keys that vouch for this one.

    Raises: LogShrunken, LogForked, LogTampered; StoreUnavailable where the copy cannot be kept.
    """
    last, size = leaves.newest_head(session), leaves.size(session)
    if last is not None and size <= last.size:
        if size < last.size:
            raise LogShrunken(size=size, signed=last.size)
        return last
    if size == 0:
        return None
    check(session, last.size if last is not None else 0, last.root if last is not None else tree.EMPTY_ROOT)
    audit(session, (last.size if last is not None else 0) // BLOCK * BLOCK, size)
    head = Checkpoint(key.name, size, sequencer.root(session, size))
    signed = Checkpoint(head.origin, head.size, head.root, tuple(one.line(head.text) for one in (key, *cosigners)))
    epoch = epoch_of(session)
    for entry in journal.entries(session, last.size if last is not None else 0, size):
        copies.keep_erasure(entry["leaf"], journal.seal(entry, key), epoch=epoch)
    copies.keep(size, signed.note, epoch=epoch)
    leaves.add_head(session, size, head.root, signed.note)
    return leaves.head_of(session, size)


def keep_older_erasures(session: Session, key: SigningKeyPair, copies: Copies) -> None:
    """Put into an empty journal what the newest head covers: erasures of before there was one. Raises StoreUnavailable."""
    last = leaves.newest_head(session)
    if last is None or epoch_of(session) or next(iter(copies.erasures(0, 0)), None) is not None:
        return
    for entry in journal.entries(session, 0, last.size):
        copies.keep_erasure(entry["leaf"], journal.seal(entry, key))


def check(session: Session, size: int, root: bytes) -> None:
    """Raise LogShrunken or LogForked where the tree does not begin with the tree of `size` leaves and this root."""
    held = leaves.size(session)
    if held < size:
        raise LogShrunken(size=held, signed=size)
    try:
        same = sequencer.root(session, size) == root
    except KeyError:
        same = False
    if not same:
        raise LogForked(size=size)


def epoch_of(session: Session) -> int:
    """Return how often the log was restored."""
    found = erasures.epoch(session)
    return 0 if found is None else found.number


def check_signed(session: Session, copies: Copies, keys: Iterable[VerifierKey]) -> None:
    """Raise where the tree does not hold what the newest head, or its newest copy, was signed for, as after a database was put back.

    A copy of an earlier epoch counts only where it is not the one after which this epoch began.
    """
    last = leaves.newest_head(session)
    if last is not None:
        check(session, last.size, last.root)
    found = copies.newest()
    if found is None:
        return
    number, note = found
    epoch = erasures.epoch(session)
    copy = notes.parse_checkpoint(note)
    if epoch is not None and number == epoch.number - 1 and note == epoch.after_note:
        return
    if number != (0 if epoch is None else epoch.number):
        raise LogShrunken(size=leaves.size(session), signed=copy.size)
    known = list(keys)
    if known and not any(copy.signed_by(key) for key in known):
        raise LogForked(size=copy.size)
    check(session, copy.size, copy.root)


def audit(session: Session, first: int, last: int) -> None:
    """Raise LogTampered where a leaf in [first, last) does not hash its event, or a node its children; `first` is a multiple of BLOCK."""
    wrong = sum(leaves.wrong_below(session, start, min(start + BLOCK, last)) for start in range(first, last, BLOCK))
    if wrong:
        raise LogTampered(first=first, last=last, count=wrong)


def missing(session: Session) -> LogTampered:
    """Return the refusal of a tree in which a node that is needed is not there."""
    return LogTampered(first=0, last=leaves.size(session), count=1)


def audit_all(session: Session) -> None:
    """Check every leaf and every node. Raises LogTampered."""
    size = leaves.size(session)
    audit(session, 0, size)
    wrong = leaves.wrong_above(session, BLOCK_LEVEL)
    if wrong:
        raise LogTampered(first=0, last=size, count=wrong)
