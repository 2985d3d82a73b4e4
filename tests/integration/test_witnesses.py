"""Signer and witnesses as processes of their own: lines are stored with heads, and nothing that befalls a witness keeps the signer from signing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from cli import verifier
from cli.embedded.processes import free_port
from control.signer import Signer
from control.witness import StateFile
from services.audit.notes import WITNESS_KEY, SigningKeyPair, parse_checkpoint
from services.db import leaves
from services.errors import InvalidInput
from tests.integration.conftest import Ledger
from tests.integration.log_world import Kept, key, settle, signer_over
from tests.integration.test_log import Log

ROOT = Path(__file__).resolve().parents[2]
SEED = "77" * 32
KEY = SigningKeyPair("witness.test/w1", bytes.fromhex(SEED), WITNESS_KEY)


def until(ready: Callable[[], bool], *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@dataclass
class Process:
    """A witness in a process of its own."""

    home: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.home / "witness.json"

    @property
    def address(self) -> dict[str, str]:
        return {"url": f"http://127.0.0.1:{self.port}", "vkey": KEY.public.text}

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")} | {
            "LETHE_WITNESS__NAME": KEY.name, "LETHE_WITNESS__KEY": SEED, "LETHE_WITNESS__LOGS": f'["{key().public.text}"]',
            "LETHE_WITNESS__STATE": str(self.state), "LETHE_WITNESS__PORT": str(self.port), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return subprocess.Popen([sys.executable, "-m", "control.witness", *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def start(self) -> None:
        self.process = self.run()
        until(self._answers, timeout_s=60)

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/", timeout=1).status_code == 404
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            self.process = None


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    StateFile.begin(made.state)
    made.start()
    yield made
    made.kill()


def signer_of(log: Log, *witnesses: Process, **settings: object) -> Signer:
    return signer_over(log.ledger, log.copies, witnesses=[one.address for one in witnesses], **settings)


def lines(log: Log) -> list[str]:
    with log.session() as session:
        head = leaves.newest_head(session)
        return [] if head is None else leaves.cosignatures(session, head.size)


def said(log: Log) -> str:
    with log.session() as session:
        told = leaves.told(session, f"witness {KEY.name}")
        return "nothing" if told is None else told[0]


@pytest.fixture
def held(ledger: Ledger) -> Log:
    return Log(ledger, ledger.default_tenant())


def test_heads_and_reports_carry_its_line_and_a_killed_witness_holds_nothing_up(held: Log, witness: Process):
    signer = signer_of(held, witness, witness_wait_s=10)
    for _ in range(3):
        held.write(4)
        settle(signer, 1)
        (line,) = lines(held)
        assert parse_checkpoint(f"{held.head().note}{line}\n").signed_by(KEY.public)
    request = held.request()
    held.report(request, {"_type": "x", "predicate": {}})
    settle(signer)
    note = verifier.note_of(held.served(request).tlog_proof.partition("\n\n")[2], "the proof")
    assert note.signed_by(verifier.keys_of(KEY.public.text, WITNESS_KEY, "the witness")) == KEY.name
    assert said(held) == "ok"

    witness.kill()
    held.write(3)
    started = time.monotonic()
    settle(signer, 3)
    assert time.monotonic() - started < 10
    assert (held.state(), held.head().size, lines(held), said(held)) == ("ok", held.size(), [], "away")
    witness.start()
    held.write(2)
    until(lambda: settle(signer, 1) is None and lines(held) != [], timeout_s=60)
    assert said(held) == "ok"


@pytest.mark.soak
def test_a_new_witness_begins_by_command_and_shows_its_key(tmp_path: Path):
    made = Process(tmp_path)
    assert made.run().wait() == 2
    assert (made.run("begin").wait(), made.run("begin").wait()) == (0, 2)
    assert made.run("key").communicate()[0].decode().strip() == KEY.public.text
    assert made.run("nonsense").wait() == 2


@pytest.mark.soak
def test_a_witness_that_answers_nothing_is_waited_for_no_longer_than_the_bound(held: Log, witness: Process):
    signer = signer_of(held, witness, witness_wait_s=0.5)
    assert witness.process is not None
    witness.process.send_signal(signal.SIGSTOP)
    held.write()
    started = time.monotonic()
    settle(signer, 3)
    assert time.monotonic() - started < 10
    assert (held.state(), said(held), held.head().size) == ("ok", "away", held.size())
    witness.process.send_signal(signal.SIGCONT)


@pytest.mark.soak
def test_after_a_line_was_lost_the_signer_goes_on_from_what_the_witness_knows(held: Log, witness: Process):
    held.write(5)
    settle(signer_of(held, witness, witness_wait_s=10))
    held.tamper("DELETE FROM cosignature")
    held.write(5)
    settle(signer_of(held, witness, witness_wait_s=10))
    assert len(lines(held)) == 1
    assert said(held) == "ok"


@pytest.mark.soak
def test_a_second_history_under_the_same_key_is_refused_and_said(held: Log, witness: Process, postgres: object):
    held.write(3)
    settle(signer_of(held, witness, witness_wait_s=10))
    other = Ledger(postgres)
    fork = Log(other, other.default_tenant(), Kept())
    fork.write(9)
    settle(signer_of(fork, witness, witness_wait_s=10))
    assert (fork.state(), lines(fork), said(fork)) == ("ok", [], "forked")
    fork_size = fork.head().size
    held.write(fork_size + 5)
    settle(signer_of(held, witness, witness_wait_s=10))
    assert said(held) == "ok"
    fork.write()
    settle(signer_of(fork, witness, witness_wait_s=10))
    assert (lines(fork), said(fork)) == ([], "ahead")
    other.close()


@pytest.mark.soak
def test_the_lines_of_a_witness_whose_state_was_put_back_are_not_taken(held: Log, witness: Process):
    signer = signer_of(held, witness, witness_wait_s=10)
    held.write(3)
    settle(signer, 1)
    older = witness.state.read_bytes()
    held.write(3)
    settle(signer, 1)
    witness.kill()
    witness.state.write_bytes(older)
    witness.start()
    held.write(3)
    settle(signer, 1)
    assert (held.state(), lines(held), said(held)) == ("ok", [], "rolled-back")
    with held.session() as session:
        assert session.scalar(text("SELECT count(*) FROM cosignature")) == 2


def test_a_witness_that_is_named_wrongly_stops_the_signer_at_its_start(held: Log):
    for vkey in ("x", key().public.text):
        with pytest.raises(InvalidInput):
            signer_over(held.ledger, held.copies, witnesses=[{"url": "http://127.0.0.1:1", "vkey": vkey}])
    twice = [{"url": "http://127.0.0.1:1", "vkey": KEY.public.text}] * 2
    with pytest.raises(InvalidInput, match="twice"):
        signer_over(held.ledger, held.copies, witnesses=twice)
