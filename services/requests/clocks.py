"""When a request must be answered: pure functions of the regulation, the moment of receipt, the time zone and the holidays.

Sources: GDPR Art. 12(3) with Regulation (EEC, Euratom) 1182/71, art. 3; CCPA, 11 CCR 7021. The results are stored, never computed again on reading.
"""

import calendar
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import holidays

Free = Callable[[date], bool]

GDPR_EXTENSION_MONTHS = 2
CCPA_DAYS, CCPA_EXTENDED_DAYS, CCPA_ACK_BUSINESS_DAYS = 45, 90, 10
POLICY_DAYS, POLICY_MOST_DAYS = 30, 90


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When to acknowledge (None: no such duty) and when to answer; aware, in UTC."""

    ack_due_at: datetime | None
    due_at: datetime


def deadlines(regulation: str, received_at: datetime, *, zone: ZoneInfo, free: Free, policy_days: int = POLICY_DAYS) -> Deadlines:
    """Return the deadlines of a request received at an aware moment.

    `gdpr`: one calendar month, the day of receipt not counted, rolled to the next working day. `ccpa`: 45 calendar days, and 10 business days
    to acknowledge. `policy`: `policy_days` calendar days, at most 90.
    """
    received = received_at.astimezone(zone).date()
    if regulation == "gdpr":
        return Deadlines(None, end_of_day(next_working_day(add_months(received, 1), free), zone))
    if regulation == "ccpa":
        ack = add_business_days(received, CCPA_ACK_BUSINESS_DAYS, free)
        return Deadlines(end_of_day(ack, zone), end_of_day(received + timedelta(days=CCPA_DAYS), zone))
    return Deadlines(None, end_of_day(received + timedelta(days=min(policy_days, POLICY_MOST_DAYS)), zone))


def extended(regulation: str, received_at: datetime, *, zone: ZoneInfo, free: Free) -> datetime:
    """Return the due date after the one extension: three months in all (`gdpr`), else 90 days in all."""
    received = received_at.astimezone(zone).date()
    if regulation == "gdpr":
        return end_of_day(next_working_day(add_months(received, 1 + GDPR_EXTENSION_MONTHS), free), zone)
    return end_of_day(received + timedelta(days=CCPA_EXTENDED_DAYS), zone)


def paused(due_at: datetime, pauses: list[tuple[datetime, datetime]]) -> datetime:
    """Return a due date moved by what closed pauses took."""
    return due_at + sum((until - since for since, until in pauses), timedelta())


def days_left(due_at: datetime, now: datetime, zone: ZoneInfo) -> int:
    """Return the days from today to the due date in the tenant's zone; negative when overdue."""
    return (due_at.astimezone(zone).date() - now.astimezone(zone).date()).days


def add_months(day: date, months: int) -> date:
    """Return the same-numbered day some months later, or that month's last day where it has none."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def next_working_day(day: date, free: Free) -> date:
    """Return the day itself, or the first after it that is neither Saturday, Sunday nor free."""
    while day.weekday() >= calendar.SATURDAY or free(day):
        day += timedelta(days=1)
    return day


def add_business_days(day: date, count: int, free: Free) -> date:
    """Return the day that is `count` working days after a day, which is not counted."""
    for _ in range(count):
        day = next_working_day(day + timedelta(days=1), free)
    return day


def end_of_day(day: date, zone: ZoneInfo) -> datetime:
    """Return 23:59:59 of a day in a zone, as UTC."""
    return datetime.combine(day, time(23, 59, 59), tzinfo=zone).astimezone(UTC)


def free_days(holiday_calendar: str | None) -> Free:
    """Return whether a day is a public holiday of a calendar such as `DE`, `DE-BY` or `US-CA`; without one no day is. Raises KeyError."""
    if not holiday_calendar:
        return lambda _: False
    listed = _calendar(holiday_calendar)
    return lambda day: day in listed


@cache
def _calendar(name: str) -> holidays.HolidayBase:
    country, _, subdivision = name.partition("-")
    try:
        return holidays.country_holidays(country, subdiv=subdivision or None)
    except NotImplementedError as error:
        raise KeyError(name) from error
