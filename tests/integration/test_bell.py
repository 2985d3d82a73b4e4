"""The bell of the outbox: who listens wakes at a commit, and a lost connection is no end of the loop."""

import threading
import time

import pytest

from control.loops import Loop
from services.clock import SystemClock, uuid7
from services.db import outbox
from services.db.session import unit_of_work

LONG = 30.0


@pytest.fixture
def tenant(ledger):
    return ledger.default_tenant()


def ring(ledger, tenant):
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        outbox.ring(session, tenant_id=tenant, topic="nothing", ref=uuid7(SystemClock()))


class Turns:
    """Counts the turns of a loop; `at_least` waits for so many."""

    def __init__(self):
        self.count, self.changed = 0, threading.Condition()

    def __call__(self):
        with self.changed:
            self.count += 1
            self.changed.notify_all()
        return 0

    def at_least(self, count, within_s):
        with self.changed:
            return self.changed.wait_for(lambda: self.count >= count, timeout=within_s)


def looping(ledger, turns, stopping):
    loop = Loop("test", ledger.engine("lethe_control"), turns, every_s=LONG, again=True, stopping=stopping, bell="lethe_outbox")
    loop.start()
    return loop


def test_a_committed_row_wakes_the_loop_and_one_rolled_back_does_not(ledger, tenant):
    turns, stopping = Turns(), threading.Event()
    loop = looping(ledger, turns, stopping)
    assert turns.at_least(1, within_s=10)

    ring(ledger, tenant)
    assert turns.at_least(2, within_s=LONG / 2)
    with unit_of_work(ledger.engine("lethe_gateway"), tenant=tenant) as session:
        outbox.ring(session, tenant_id=tenant, topic="nothing", ref=uuid7(SystemClock()))
        session.rollback()
    assert not turns.at_least(3, within_s=1)

    stopping.set()
    ring(ledger, tenant)  # it also wakes at the bell to find that it shall stop
    loop.join(timeout=10)
    assert not loop.is_alive()


def test_a_bell_rung_while_the_loop_works_is_heard_after_it(ledger, tenant):
    stopping, entered, go_on = threading.Event(), threading.Event(), threading.Event()
    turns = Turns()

    def work():
        turns()
        entered.set()
        go_on.wait(timeout=LONG)
        return 0

    loop = looping(ledger, work, stopping)
    assert entered.wait(timeout=10)
    ring(ledger, tenant)
    go_on.set()

    assert turns.at_least(2, within_s=LONG / 2)
    stopping.set()
    ring(ledger, tenant)
    loop.join(timeout=10)


def test_a_loop_whose_connection_is_cut_takes_another_and_hears_again(ledger, tenant):
    turns, stopping = Turns(), threading.Event()
    loop = looping(ledger, turns, stopping)
    assert turns.at_least(1, within_s=10)

    with ledger.server.server.admin() as admin:
        cut = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND usename = 'lethe_control'", [ledger.name]
        ).fetchall()
    assert (True,) in cut
    assert turns.at_least(2, within_s=15)  # by the new connection's first turn
    time.sleep(0.2)
    before = turns.count
    ring(ledger, tenant)
    assert turns.at_least(before + 1, within_s=LONG / 2)

    stopping.set()
    ring(ledger, tenant)
    loop.join(timeout=10)
