"""Deadlines as properties of every date, and the worked cases of the regulations."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.requests import clocks

ZONES = st.sampled_from([ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Auckland")])
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))
NO_HOLIDAY = clocks.free_days(None)


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ("2026-11-20T09:12:00+00:00", "2026-12-21T23:59:59+00:00"),  # 20 December 2026 is a Sunday
        ("2027-01-31T12:00:00+00:00", "2027-03-01T23:59:59+00:00"),  # 28 February 2027 is a Sunday
        ("2028-01-31T12:00:00+00:00", "2028-02-29T23:59:59+00:00"),
        ("2026-12-15T12:00:00+00:00", "2027-01-15T23:59:59+00:00"),
    ],
)
def test_gdpr_gives_one_month_to_the_same_numbered_day_rolled_to_a_working_day(received: str, due: str) -> None:
    found = clocks.deadlines("gdpr", datetime.fromisoformat(received), zone=ZoneInfo("UTC"), free=NO_HOLIDAY)
    assert (found.due_at, found.ack_due_at) == (datetime.fromisoformat(due), None)


def test_a_holiday_rolls_as_a_sunday_does() -> None:
    free = clocks.free_days("DE")
    found = clocks.deadlines("gdpr", datetime(2026, 11, 25, 12, tzinfo=UTC), zone=ZoneInfo("Europe/Berlin"), free=free)
    assert found.due_at == datetime(2026, 12, 28, 22, 59, 59, tzinfo=UTC)  # the 25th and 26th are holidays, the 27th a Sunday


def test_an_unknown_calendar_is_an_error() -> None:
    with pytest.raises(KeyError):
        clocks.free_days("Atlantis")


@given(received=MOMENTS, zone=ZONES)
def test_gdpr_is_due_on_a_working_day_between_28_and_34_days_later(received: datetime, zone: ZoneInfo) -> None:
    due = clocks.deadlines("gdpr", received, zone=zone, free=NO_HOLIDAY).due_at.astimezone(zone)
    days = (due.date() - received.astimezone(zone).date()).days
    assert 28 <= days <= 34
    assert due.weekday() < 5
    assert (due.hour, due.minute, due.second) == (23, 59, 59)


@given(received=MOMENTS, zone=ZONES)
def test_ccpa_is_due_after_45_days_and_acknowledged_within_ten_business_days(received: datetime, zone: ZoneInfo) -> None:
    found = clocks.deadlines("ccpa", received, zone=zone, free=NO_HOLIDAY)
    day = received.astimezone(zone).date()
    assert (found.due_at.astimezone(zone).date() - day).days == 45
    assert found.ack_due_at is not None
    assert 12 <= (found.ack_due_at.astimezone(zone).date() - day).days <= 14
    assert (clocks.extended("ccpa", received, zone=zone, free=NO_HOLIDAY).astimezone(zone).date() - day).days == 90


@given(received=MOMENTS, zone=ZONES, days=st.integers(1, 400))
def test_a_policy_never_gives_more_than_90_days(received: datetime, zone: ZoneInfo, days: int) -> None:
    due = clocks.deadlines("policy", received, zone=zone, free=NO_HOLIDAY, policy_days=days).due_at
    assert (due.astimezone(zone).date() - received.astimezone(zone).date()).days == min(days, 90)


@given(received=MOMENTS, zone=ZONES, regulation=st.sampled_from(["gdpr", "ccpa", "policy"]))
def test_every_deadline_is_later_than_the_receipt_and_an_extension_later_still(received: datetime, zone: ZoneInfo, regulation: str) -> None:
    due = clocks.deadlines(regulation, received, zone=zone, free=NO_HOLIDAY).due_at
    assert received < due < clocks.extended(regulation, received, zone=zone, free=NO_HOLIDAY)


@given(earlier=MOMENTS, later=MOMENTS, zone=ZONES)
def test_a_later_receipt_is_never_due_earlier(earlier: datetime, later: datetime, zone: ZoneInfo) -> None:
    earlier, later = sorted((earlier, later))
    first = clocks.deadlines("gdpr", earlier, zone=zone, free=NO_HOLIDAY).due_at
    assert first <= clocks.deadlines("gdpr", later, zone=zone, free=NO_HOLIDAY).due_at


@given(day=st.dates(date(2020, 1, 1), date(2040, 1, 1)), months=st.integers(0, 36))
def test_adding_months_keeps_the_day_or_takes_the_last(day: date, months: int) -> None:
    after = clocks.add_months(day, months)
    assert (after.year * 12 + after.month) - (day.year * 12 + day.month) == months
    assert after.day == day.day or (after + timedelta(days=1)).day == 1


def test_pauses_move_the_due_date_and_days_left_count_in_the_tenant_zone() -> None:
    due = datetime(2026, 12, 21, 23, 59, 59, tzinfo=UTC)
    hour = timedelta(hours=1)
    assert clocks.paused(due, [(due - 3 * hour, due - hour), (due, due + hour)]) == due + 3 * hour
    assert clocks.days_left(due, datetime(2026, 11, 20, 9, 12, tzinfo=UTC), ZoneInfo("UTC")) == 31
    assert clocks.days_left(due, datetime(2026, 12, 22, 0, 0, tzinfo=UTC), ZoneInfo("UTC")) == -1
