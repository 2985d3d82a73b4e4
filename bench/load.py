"""A bounded closed-loop load on a loopback address: so many calls by so many connections, then it stops."""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2


@dataclass(frozen=True, slots=True)
class Load:
    """What a load measured. `rate` is answers per second, `failures` counts answers that were not `expected`."""

    calls: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.calls / self.seconds


def post_many(
    url: str, *, calls: int, connections: int, headers: Callable[[int], Mapping[str, str]], body: Callable[[int], bytes], expected: int
) -> Load:
    """POST `calls` bodies over `connections` connections to a loopback address and wait for all answers."""
    if urlsplit(url).hostname != "127.0.0.1":
        raise ValueError("a load goes to 127.0.0.1 only")

    async def everything() -> Load:
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        numbers, times, failures = iter(range(calls)), [], [0]

        async def worker(client: httpx2.AsyncClient) -> None:
            for number in numbers:
                began = time.perf_counter()
                answer = await client.post(url, content=body(number), headers=dict(headers(number)))
                times.append(time.perf_counter() - began)
                failures[0] += answer.status_code != expected

        async with httpx2.AsyncClient(limits=limits, timeout=60) as client:
            began = time.perf_counter()
            await asyncio.gather(*(worker(client) for _ in range(connections)))
            took = time.perf_counter() - began
        cuts = statistics.quantiles(times, n=100)
        return Load(calls, failures[0], took, cuts[49] * 1000, cuts[98] * 1000)

    return asyncio.run(everything())


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far."""
    import psutil

    used: Any = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)
