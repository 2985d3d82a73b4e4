"""The witnesses that the signer asks for each head: all at once, for a bounded time, and none of them can keep it from signing.

A witness that does not answer, or refuses, is asked again later, after a pause that doubles. What each of them last said stands in `signer_state`
under `witness NAME`. One that knows a smaller tree than it has cosigned has lost its state: its lines are not taken any more until it is named anew.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Any

import httpx2
import structlog
from sqlalchemy import Engine

from services.audit import notes, sequencer
from services.audit.notes import Checkpoint, VerifierKey
from services.audit.witness import Submission, good_line, known_size
from services.db import leaves
from services.db.session import unit_of_work
from services.db.tables import TreeHead
from services.errors import InvalidInput
from services.settings import SignerSettings

log = structlog.get_logger()
ANSWER_BYTES = 16 * 1024
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
CLOCKS_APART_S = 300


@dataclass(frozen=True, slots=True)
class Heard:
    """What a witness said: a state (`ok`, or why there is no line), its line, and the size it says it knows where it asked for another proof."""

    state: str
    line: str = ""
    known: int | None = None


@dataclass(slots=True)
class Cosigner:
    """One witness, and when it may be asked again."""

    url: str
    key: VerifierKey
    pause_s: float = 0.0
    not_before: float = 0.0
    told: str = ""
    cosigned: int = -1

    def rest(self, now: float) -> None:
        """Leave it alone for a while, twice as long as the last time."""
        self.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self.pause_s))
        self.not_before = now + self.pause_s


class Cosigners:
    """All witnesses of a signer."""

    def __init__(self, settings: SignerSettings) -> None:
        self._all = [_cosigner(one.url, one.vkey) for one in settings.witnesses]
        if len({one.key.name for one in self._all}) != len(self._all):
            raise InvalidInput(detail="LETHE_SIGNER__WITNESSES names a witness twice")
        self._wait_s = settings.witness_wait_s
        self._http = httpx2.Client(timeout=settings.witness_wait_s)
        self._threads = ThreadPoolExecutor(max_workers=max(1, 2 * len(self._all)), thread_name_prefix="witness")

    def cosign(self, engine: Engine) -> int:
        """Ask for the lines that the newest head lacks, store what came in time, and return how many lines that were."""
        now = time.monotonic()
        due = [one for one in self._all if now >= one.not_before]
        if not due:
            return 0
        with unit_of_work(engine, tenant=None) as session:
            head = leaves.newest_head(session)
            if head is None:
                return 0
            origin = notes.parse_checkpoint(head.note).origin
            held = {one.key.name: leaves.cosigned_size(session, origin, one.key.name) for one in due if one.cosigned != head.size}
            due = [one for one in due if held.get(one.key.name, head.size) < head.size]
            asked = {one.key.name: self._submission(session, held[one.key.name], head) for one in due}
        if not due:
            return 0
        answers = self._ask(due, asked, now + self._wait_s)
        later = [one for one in due if self._asks_for_more(answers[one.key.name], held[one.key.name], head.size)]
        if later:
            with unit_of_work(engine, tenant=None) as session:
                asked = {one.key.name: self._submission(session, answers[one.key.name].known or 0, head) for one in later}
            answers |= self._ask(later, asked, now + self._wait_s)
        return self._store(engine, due, answers, held, head)

    @staticmethod
    def _submission(session: Any, old: int, head: TreeHead) -> Submission:
        return Submission(old, tuple(sequencer.consistency(session, old, head.size)), notes.parse_checkpoint(head.note))

    @staticmethod
    def _asks_for_more(heard: Heard, cosigned: int, size: int) -> bool:
        """Say whether the witness is ahead of the lines that are stored, as after a crash between its answer and their storing."""
        return heard.known is not None and cosigned < heard.known <= size

    def _ask(self, due: Sequence[Cosigner], asked: Mapping[str, Submission], until: float) -> dict[str, Heard]:
        """Ask all of them at once; whoever has not answered by `until` is away."""
        running: dict[str, Future[Heard]] = {one.key.name: self._threads.submit(self._one, one, asked[one.key.name], until) for one in due}
        wait_for(running.values(), timeout=max(0.0, until - time.monotonic()))
        return {name: future.result() if future.done() else Heard("away") for name, future in running.items()}

    def _one(self, cosigner: Cosigner, asked: Submission, until: float) -> Heard:
        """Ask one of them. It raises nothing."""
        try:
            with self._http.stream("POST", f"{cosigner.url}/add-checkpoint", content=asked.body) as answer:
                body = bytearray()
                for piece in answer.iter_bytes():
                    body += piece
                    if len(body) > ANSWER_BYTES or time.monotonic() > until:
                        return Heard("away")
                return heard(answer.status_code, answer.headers.get("content-type", ""), bytes(body), asked.checkpoint, cosigner.key)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError):
            return Heard("away")

    def _store(self, engine: Engine, due: Sequence[Cosigner], answers: Mapping[str, Heard], held: Mapping[str, int], head: TreeHead) -> int:
        count = 0
        with unit_of_work(engine, tenant=None) as session:
            for one in due:
                said = judged(answers[one.key.name], held[one.key.name], head.size)
                if said.state == "ok":
                    leaves.add_cosignature(session, head.size, one.key.name, said.line)
                    one.pause_s, one.not_before, one.cosigned = 0.0, 0.0, head.size
                    count += 1
                else:
                    one.rest(time.monotonic())
                leaves.tell(session, f"witness {one.key.name}", said.state, _DETAILS.get(said.state, ""))
                if said.state != one.told:
                    (log.info if said.state == "ok" else log.error)("witness.answered", state=said.state, host=one.key.name, count=head.size)
                    one.told = said.state
        return count


_DETAILS = {
    "away": "it did not answer in time",
    "refused": "it refuses the head: its reason is in its own log",
    "forked": "it has cosigned another history of this log: compare the heads of both",
    "ahead": "it has cosigned a longer log than this one: was the database put back?",
    "rolled-back": "it knows less than it has cosigned: it lost its state, and is to be retired with its key and name",
    "no good line": "its answer holds no cosignature of its key on the head",
}


def heard(status: int, media_type: str, body: bytes, checkpoint: Checkpoint, key: VerifierKey) -> Heard:
    """Return what an answer says."""
    if status == 200:
        line = good_line(body, checkpoint, key, not_after=int(time.time()) + CLOCKS_APART_S)
        return Heard("no good line") if line is None else Heard("ok", line)
    if status == 409:
        known = known_size(body) if media_type.partition(";")[0].strip() == "text/x.tlog.size" else None
        return Heard("forked") if known is None else Heard("refused", known=known)
    if status == 422:
        return Heard("forked")
    return Heard("refused" if 400 <= status < 500 else "away")


def judged(said: Heard, cosigned: int, size: int) -> Heard:
    """Return what an answer means, given what the witness cosigned before."""
    if said.known is None:
        return said
    if said.known > size:
        return Heard("ahead")
    return Heard("rolled-back") if said.known < cosigned else said


def _cosigner(url: str, line: str) -> Cosigner:
    key = VerifierKey.parse(line)
    if key.kind != notes.WITNESS_KEY:
        raise InvalidInput(detail="LETHE_SIGNER__WITNESSES: the key of a witness is of the type for cosignatures (4)")
    return Cosigner(url.rstrip("/"), key)
