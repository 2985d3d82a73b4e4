"""The state machines: closed tables, ends that end, and clients' names for every state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.db.tables import TERMINAL_REQUEST
from services.errors import IllegalTransition
from services.requests.states import DRP, JOB, OPENDSR, REQUEST, RESUME, TARGET, allowed, following, terminal

TABLES = {"request": REQUEST, "job": JOB, "target": TARGET}


@pytest.mark.parametrize("name", TABLES)
def test_every_transition_leads_to_a_state_of_its_table(name: str) -> None:
    table = TABLES[name]
    assert {after for events in table.values() for after in events.values()} - {RESUME} <= set(table)


@pytest.mark.parametrize("name", TABLES)
def test_an_end_can_be_reached_from_every_state(name: str) -> None:
    table = TABLES[name]
    ends = {state for state in table if terminal(table, state)}
    for start in table:
        seen, line = {start}, [start]
        while line:
            for after in table[line.pop()].values():
                if after != RESUME and after not in seen:
                    seen.add(after)
                    line.append(after)
        assert seen & ends, start


def test_the_table_and_the_database_agree_on_what_is_closed() -> None:
    assert {state for state in REQUEST if terminal(REQUEST, state)} == set(TERMINAL_REQUEST)
    assert set(DRP) == set(OPENDSR) == set(REQUEST)


@given(name=st.sampled_from(sorted(TABLES)), data=st.data())
def test_an_event_is_taken_exactly_where_it_is_allowed(name: str, data: st.DataObject) -> None:
    table = TABLES[name]
    state = data.draw(st.sampled_from(sorted(table)))
    event = data.draw(st.sampled_from(sorted({event for events in table.values() for event in events})))
    if event in allowed(table, state):
        assert following(table, state, event, thing=name, resume="approved") in table
    else:
        with pytest.raises(IllegalTransition):
            following(table, state, event, thing=name, resume="approved")
