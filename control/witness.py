"""`python -m control.witness`: a witness of audit logs, for a second host and a second key. It reaches no database and no store.

It cosigns a checkpoint only where a log that it was told of has signed it, and where it begins with what this witness cosigned before; what it cosigned
last is on the disk before the answer leaves. `python -m control.witness begin` makes the file of that state, once: a witness without it does not
start, since one that forgot could be shown another history. A witness that lost its file is retired with its key and name.
"""

import asyncio
import base64
import fcntl
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import structlog
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from services.audit import notes, tree
from services.audit.notes import SigningKeyPair, VerifierKey
from services.audit.witness import LONGEST_BODY, Submission, parse_submission, trusted
from services.clock import Clock, SystemClock
from services.errors import InvalidInput
from services.settings import WitnessSettings
from services.telemetry import configure_logging

log = structlog.get_logger()
BODY_S = 10.0
SIZE_TYPE = "text/x.tlog.size"
FORM = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """The tree of a log that was cosigned last."""

    size: int
    root: bytes


class StateFile:
    """What the witness cosigned last, by the log's origin: one file, replaced as a whole and synced before anybody is answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self._alone(path)
        self._seen = self._read(path)

    @staticmethod
    def begin(path: Path) -> None:
        """Make the file of a witness that has seen nothing. Raises InvalidInput where there is one."""
        if path.exists():
            raise InvalidInput(detail=f"{path} is there already; a witness begins once")
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, {})

    @staticmethod
    def _alone(path: Path) -> int:
        if not path.exists():
            raise InvalidInput(
                detail=f"{path} is not there. A new witness begins with `python -m control.witness begin`; one that lost it is retired"
            )
        held = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(held)
            raise InvalidInput(detail=f"another witness holds {path}") from error
        return held

    @staticmethod
    def _read(path: Path) -> dict[str, Seen]:
        try:
            body = json.loads(path.read_bytes())
            held = {origin: Seen(int(one["size"]), base64.b64decode(one["root"], validate=True)) for origin, one in body["logs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(detail=f"{path} is not a witness's state; this witness is retired") from error
        if body.get("form") != FORM:
            raise InvalidInput(detail=f"{path} is of a form that this witness does not know")
        return held

    def close(self) -> None:
        """Let another process have the file."""
        os.close(self._lock)

    def last(self, origin: str) -> Seen:
        """Return what was cosigned last of a log: the empty tree where nothing was."""
        return self._seen.get(origin, Seen(0, tree.EMPTY_ROOT))

    def keep(self, origin: str, seen: Seen) -> None:
        """Write what is about to be cosigned; it is on the disk when this returns."""
        held = {**self._seen, origin: seen}
        _replace(self.path, held)
        self._seen = held


def _replace(path: Path, held: Mapping[str, Seen]) -> None:
    logs = {origin: {"size": one.size, "root": base64.b64encode(one.root).decode()} for origin, one in held.items()}
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump({"form": FORM, "logs": logs}, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with its body."""

    status: int
    body: str = ""
    media_type: str = "text/plain; charset=utf-8"


class Witness:
    """The rules of add-checkpoint, in the order of the protocol's text."""

    def __init__(self, key: SigningKeyPair, logs: Sequence[VerifierKey], state: StateFile, clock: Clock) -> None:
        self._key, self._state, self._clock = key, state, clock
        self._logs: dict[str, list[VerifierKey]] = {}
        for one in logs:
            self._logs.setdefault(one.name, []).append(one)
        self._one_at_a_time = threading.Lock()

    def add(self, body: bytes) -> Answer:
        """Answer a request; a cosignature leaves only when the state that it stands for is on the disk."""
        try:
            asked = parse_submission(body)
        except InvalidInput as error:
            return Answer(400, f"{error}\n")
        head = asked.checkpoint
        if head.origin not in self._logs:
            return Answer(404, "this witness does not know the log\n")
        if not trusted(head, self._logs[head.origin]):
            return Answer(403, "the checkpoint is not signed by a key of the log\n")
        if asked.old > head.size:
            return Answer(400, "the old size is above the checkpoint's\n")
        with self._one_at_a_time:
            return self._judged(asked)

    def _judged(self, asked: Submission) -> Answer:
        head, last = asked.checkpoint, self._state.last(asked.checkpoint.origin)
        if asked.old != last.size:
            return Answer(409, f"{last.size}\n", SIZE_TYPE)
        if asked.old == head.size and last.root != head.root:
            log.error("witness.forked", count=head.size)
            return Answer(409, "another root was cosigned for this size\n")
        if not tree.verify_consistency(last.size, head.size, asked.proof, last.root, head.root):
            log.error("witness.forked", count=head.size)
            return Answer(422, "the checkpoint does not begin with the one before\n")
        self._state.keep(head.origin, Seen(head.size, head.root))
        line = self._key.cosign(head.text, int(self._clock.now().timestamp()))
        log.info("witness.cosigned", count=head.size)
        return Answer(200, f"{line}\n")


def create_app(witness: Witness) -> FastAPI:
    """Return the HTTP face of a witness: one route."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    async def add_checkpoint(request: Request) -> Response:
        try:
            body = await asyncio.wait_for(_body(request), BODY_S)
        except TimeoutError:
            return Response("the body did not come in time\n", 408, media_type="text/plain")
        if body is None:
            return Response("the body is too long\n", 413, media_type="text/plain")
        answer = await run_in_threadpool(witness.add, body)
        return Response(answer.body, answer.status, headers={"Content-Type": answer.media_type})

    app.add_api_route("/add-checkpoint", add_checkpoint, methods=["POST"], response_model=None)
    return app


async def _body(request: Request) -> bytes | None:
    held = bytearray()
    async for piece in request.stream():
        held += piece
        if len(held) > LONGEST_BODY:
            return None
    return bytes(held)


def key_of(settings: WitnessSettings) -> SigningKeyPair:
    """Return the witness's key. Raises InvalidInput."""
    pair = SigningKeyPair.from_hex(settings.name, settings.key.get_secret_value())
    return SigningKeyPair(pair.name, pair.seed, notes.WITNESS_KEY)


def witness_of(settings: WitnessSettings, clock: Clock) -> Witness:
    """Return the witness that the settings describe. Raises InvalidInput."""
    key = key_of(settings)
    logs = [VerifierKey.parse(line) for line in settings.logs]
    if not logs or any(one.kind != notes.NOTE_KEY for one in logs):
        raise InvalidInput(detail="LETHE_WITNESS__LOGS is a JSON list of the verifier keys of logs, at least one")
    return Witness(key, logs, StateFile(settings.state), clock)


def main(arguments: Sequence[str]) -> int:
    """Begin, show the key, or serve until told to stop; return 2 where the settings or the state do not allow it."""
    configure_logging("witness")
    settings = WitnessSettings()
    if list(arguments) not in ([], ["begin"], ["key"]):
        _say("usage: python -m control.witness [begin | key]", sys.stderr)
        return 2
    try:
        if list(arguments) == ["begin"]:
            StateFile.begin(settings.state)
            return 0
        if list(arguments) == ["key"]:
            _say(key_of(settings).public.text)
            return 0
        made = witness_of(settings, SystemClock())
    except InvalidInput as error:
        _say(str(error), sys.stderr)
        return 2
    uvicorn.run(create_app(made), host=settings.host, port=settings.port, log_config=None, access_log=False, timeout_keep_alive=60)
    return 0


def _say(text: str, stream: TextIO = sys.stdout) -> None:
    stream.write(f"{text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
