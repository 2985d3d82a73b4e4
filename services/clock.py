"""Time and identifiers, injected so that tests can hold them still."""

import os
import time
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """Where a service gets the time from."""

    def now(self) -> datetime:
        """Return the time, aware and in UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the machine's time in UTC."""
        return datetime.fromtimestamp(time.time(), tz=UTC)


class FixedClock:
    """A clock that stands still until it is moved; for tests."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def now(self) -> datetime:
        """Return the time it was set to."""
        return self.at


def uuid7(clock: Clock) -> UUID:
    """Return a time-ordered UUID: 48 bits of milliseconds, 74 random bits.

    Source: RFC 9562, section 5.7. Differs: no counter within a millisecond; ids of one millisecond are ordered at random.
    """
    milliseconds = int(clock.now().timestamp() * 1000)
    random_bits = int.from_bytes(os.urandom(10), "big")
    high = (milliseconds & (2**48 - 1)) << 80
    version = 0x7 << 76
    rand_a = (random_bits >> 68) << 64
    variant = 0b10 << 62
    rand_b = random_bits & (2**62 - 1)
    return UUID(int=high | version | (rand_a & (0xFFF << 64)) | variant | rand_b)
