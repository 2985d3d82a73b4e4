"""Event streams over a real socket: shared polls, clients that hang up, servers that stop."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import uvicorn

from api import events
from api.app import create_app
from models_store.memory import MemoryStore
from services.db.session import unit_of_work
from services.settings import Settings
from services.tenants.caller import SCOPES
from services.tenants.service import issue_key
from tests.integration.test_ledger_requests import KEYS, World

STREAM = {"Accept": "text/event-stream"}


class Gateway:
    """uvicorn on a free port, in a thread."""

    def __init__(self, ledger: Any, world: World) -> None:
        keys = {"encryption": KEYS.kek, "pepper": KEYS.pepper, "cursor": "33" * 32}
        self.app = create_app(Settings(embedded=True, database={"url": ledger.url("lethe_gateway")}, keys=keys), store=MemoryStore())
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        with unit_of_work(ledger.engine("lethe_owner"), tenant=world.tenant) as session:
            secret = issue_key(session, tenant_id=world.tenant, client="desk", scopes=SCOPES, pepper=KEYS.pepper)
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{port}/v1", headers={"Authorization": f"Bearer {secret}"}, timeout=20)

    def create(self) -> str:
        body = {"scope": {"kind": "subject", "identifiers": [{"type": "customer_id", "value": "p1"}]}, "policy": "demo"}
        made = self.http.post("/deletion-requests", json=body, headers={"Idempotency-Key": uuid4().hex})
        assert made.status_code == 202, made.text
        return f"/deletion-requests/{made.json()['id']}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.http.close()


def until(condition: Callable[[], Any], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def gateway(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    monkeypatch.setattr(events, "POLL_S", 0.1)
    monkeypatch.setattr(events, "COMMENT_S", 0.2)
    made = Gateway(ledger, World(ledger))
    yield made
    made.stop()


def test_a_stream_whose_client_hangs_up_is_given_back(gateway: Gateway) -> None:
    path = f"{gateway.create()}/events"
    streams = gateway.app.state.streams
    with gateway.http.stream("GET", path, headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        until(lambda: next(lines).startswith("event: state"))
        assert len(streams._watches) == 1
        assert sum(streams._open.values()) == 1
    until(lambda: not streams._open and not streams._watches)


def test_streams_of_one_request_share_one_poll_and_all_see_its_end(gateway: Gateway) -> None:
    request = gateway.create()
    streams = gateway.app.state.streams
    with ExitStack() as open_streams:
        answers = [open_streams.enter_context(gateway.http.stream("GET", f"{request}/events", headers=STREAM)) for _ in range(4)]
        until(lambda: len(streams._watches) == 1 and len(next(iter(streams._watches.values())).queues) == 4)
        gateway.http.post(f"{request}/cancellation", json={"by": "operator"})
        for answer in answers:
            text = "".join(answer.iter_text())
            assert text.count("request.cancelled") == text.count('"type":"request.cancelled"') == 1
    until(lambda: not streams._open and not streams._watches)


def test_a_quiet_stream_is_kept_alive_by_comments(gateway: Gateway) -> None:
    with gateway.http.stream("GET", f"{gateway.create()}/events", headers=STREAM) as answer:
        comment = next(line for line in answer.iter_lines() if line.startswith(":"))
    assert comment == ": still here"


def test_a_stream_far_ahead_waits_and_ends_with_the_request(gateway: Gateway) -> None:
    request = gateway.create()
    cancel = threading.Timer(0.5, lambda: gateway.http.post(f"{request}/cancellation", json={"by": "operator"}))
    cancel.start()
    text = gateway.http.get(f"{request}/events", headers={**STREAM, "Last-Event-ID": "999999999"}).text
    cancel.join()
    assert "data:" not in text


def test_a_gateway_that_stops_ends_its_streams(gateway: Gateway) -> None:
    with gateway.http.stream("GET", f"{gateway.create()}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        stopper = threading.Thread(target=gateway.stop)
        stopper.start()
        with pytest.raises((httpx2.HTTPError, StopIteration)):
            until(lambda: next(lines) is None)
        stopper.join()
    assert not gateway.thread.is_alive()
