"""Cursors stay where they were issued."""

import base64
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.pages import Cursors
from services.errors import InvalidCursor

KEY = (datetime(2026, 11, 20, 9, 12, 0, 123456, tzinfo=UTC), UUID(int=5))
PLACE = {"tenant": UUID(int=1), "route": "models", "filters": {"state": "ready", "model": None}}
CURSORS = Cursors("33" * 32)


def test_a_cursor_gives_back_the_key_it_was_made_of() -> None:
    assert CURSORS.key_of(CURSORS.make(last=KEY, **PLACE), **PLACE) == KEY
    assert CURSORS.make(last=None, **PLACE) is None
    assert CURSORS.key_of(None, **PLACE) is None


@pytest.mark.parametrize(
    "moved",
    [{"tenant": UUID(int=2)}, {"route": "datasets"}, {"filters": {"state": "failed"}}, {"filters": {}}],
    ids=["tenant", "route", "other filter", "no filter"],
)
def test_a_cursor_is_not_taken_elsewhere(moved: dict[str, object]) -> None:
    cursor = CURSORS.make(last=KEY, **PLACE)
    with pytest.raises(InvalidCursor):
        CURSORS.key_of(cursor, **{**PLACE, **moved})


def test_a_cursor_of_another_deployment_is_not_taken() -> None:
    with pytest.raises(InvalidCursor):
        CURSORS.key_of(Cursors("44" * 32).make(last=KEY, **PLACE), **PLACE)


def test_every_changed_byte_of_a_cursor_is_noticed() -> None:
    raw = bytearray(base64.urlsafe_b64decode(CURSORS.make(last=KEY, **PLACE) + "=="))
    for place in range(len(raw)):
        changed = bytes(raw[:place]) + bytes([raw[place] ^ 1]) + bytes(raw[place + 1 :])
        with pytest.raises(InvalidCursor):
            CURSORS.key_of(base64.urlsafe_b64encode(changed).decode(), **PLACE)


@given(st.text(max_size=300))
def test_any_text_is_no_cursor(text: str) -> None:
    with pytest.raises(InvalidCursor):
        CURSORS.key_of(text, **PLACE)
