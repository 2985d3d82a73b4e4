"""Child processes that die with their parent: start, wait until ready, stop."""

import contextlib
import ctypes
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotReady(Exception):
    """A server did not answer in time; its log says why."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on now."""
    return free_ports(1)[0]


def _before_exec(user: str | None) -> Callable[[], None]:
    """Return what the child does before exec: become `user`, then ask the kernel for SIGKILL when the parent ends."""
    entry = pwd.getpwnam(user) if user is not None else None

    def prepare() -> None:
        if entry is not None:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which clears it

    return prepare


def free_ports(count: int) -> list[int]:
    """Return `count` different free TCP ports on 127.0.0.1; all are held while they are drawn."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass
class Child:
    """A child process with its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def tail(self, size_bytes: int = 2000) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-size_bytes:].decode("utf-8", "replace") if self.log.exists() else ""

    def stop(self, *, sent: signal.Signals = signal.SIGTERM, timeout_s: float = 10.0) -> None:
        """Signal the process and its group, wait, and kill what is left."""
        if self.running:
            self.process.send_signal(sent)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL the whole process group, as a crash would end it, and reap it."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def spawn(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    cwd: Path | None = None,
) -> Child:
    """Start `command` in a process group of its own, output appended to `log`.

    The kernel's parent-death signal follows the thread that spawned the child: call this from a thread that lives as long as the stack.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  our own command lines
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_before_exec(user),  # noqa: PLW1509  no thread of the stack holds a lock at this point
        )
    return Child(name, process, log)


def wait_until(ready: Callable[[], bool], child: Child, *, timeout_s: float, every_s: float = 0.05) -> None:
    """Wait until `ready` says so. Raises NotReady with the end of the log when the child ends or the time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not child.running:
            raise NotReady(f"{child.name} ended with code {child.process.returncode}:\n{child.tail()}")
        if ready():
            return
        time.sleep(every_s)
    raise NotReady(f"{child.name} did not answer within {timeout_s:.0f} s:\n{child.tail()}")
