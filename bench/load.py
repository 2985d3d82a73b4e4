"""A bounded closed-loop load on a loopback address: so many calls by so many connections, then it stops.

The client writes and reads HTTP/1.1 by hand over kept connections: it shares the machine with what it measures, so it must cost little.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a load measured. `failures` counts answers that were not `expected`; `client_cpu_s` is what the client itself used."""

    calls: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float

    @property
    def rate(self) -> float:
        """Expected answers per second."""
        return (self.calls - self.failures) / self.seconds


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end and return its status. Raises ValueError for an answer of unknown length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return int(head[9:12])


def post_many(
    url: str, *, calls: int, connections: int, headers: Callable[[int], Mapping[str, str]], body: Callable[[int], bytes], expected: int
) -> Load:
    """POST `calls` bodies over `connections` connections to a loopback address and wait for all answers."""
    parts = urlsplit(url)
    if parts.hostname != "127.0.0.1":
        raise ValueError("a load goes to 127.0.0.1 only")
    messages = [_message(parts.path or "/", headers(number), body(number)) for number in range(calls)]
    numbers, times, failures = iter(range(calls)), [], [0]

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", parts.port)
        try:
            for number in numbers:
                began = time.perf_counter()
                writer.write(messages[number])
                status = await asyncio.wait_for(_status(reader), ANSWER_TIMEOUT_S)
                times.append(time.perf_counter() - began)
                failures[0] += status != expected
        finally:
            writer.close()

    async def everything() -> Load:
        used, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(connections)))
        took, used = time.perf_counter() - began, time.process_time() - used
        cuts = statistics.quantiles(times, n=100)
        return Load(calls, failures[0], took, cuts[49] * 1000, cuts[98] * 1000, used)

    return asyncio.run(everything())


def _message(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far."""
    import psutil

    used: Any = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)
