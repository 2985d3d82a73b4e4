"""Runners as the supervisor sees them: spawned by one long-lived thread, spoken to over a pipe, killed as a group."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import IO

import structlog

from services.db.crash import crash_point
from services.jobs.messages import Frame, FromRunner, GarbledFrame, ReadyFrame, encode, read_answer

log = structlog.get_logger()

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
             "MKL_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES", "LETHE_CRASH_AT_RUNNER")  # fmt: skip


def runner_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a runner may see of the environment: a short list, in which no credential is."""
    return {name: environment[name] for name in PASSED_ON if name in environment} | {"PYTHONUNBUFFERED": "1"}


class Runner:
    """One runner process. Frames arrive in `frames`; None follows the last one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.frames: SimpleQueue[FromRunner | None] = SimpleQueue()
        self.ready: ReadyFrame | None = None
        self._warmed = threading.Event()
        self.last_frame_at = time.monotonic()
        threading.Thread(target=self._listen, name=f"frames-{process.pid}", daemon=True).start()

    def _listen(self) -> None:
        stdout: IO[bytes] | None = self.process.stdout
        for line in stdout or ():
            try:
                frame = read_answer(line)
            except GarbledFrame:
                log.warning("runner.garbled", pid=self.process.pid)
                self.kill()
                break
            self.last_frame_at = time.monotonic()
            if isinstance(frame, ReadyFrame):
                self.ready = frame
                self._warmed.set()
            else:
                self.frames.put(frame)
        self._warmed.set()
        self.frames.put(None)

    def send(self, frame: Frame) -> bool:
        """Write a frame; False when the runner is gone."""
        crash_point("before frame")
        try:
            if self.process.stdin is None:
                return False
            self.process.stdin.write(encode(frame))
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError, OSError):
            return False
        return True

    def next_frame(self, timeout_s: float) -> FromRunner | None:
        """Return the next frame; None when the runner has ended. Raises queue.Empty when nothing came in time."""
        return self.frames.get(timeout=timeout_s)

    def wait_ready(self, timeout_s: float) -> ReadyFrame | None:
        """Return the ready frame, waiting for it at most `timeout_s`; None when it has not come. Several threads may wait."""
        self._warmed.wait(timeout_s)
        return self.ready

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def kill(self) -> int:
        """Send SIGKILL to the whole process group, wait until it is reaped, and return its exit status."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("runner.gone", pid=self.process.pid)
        status = self.process.wait()
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                log.debug("runner.pipe_closed", pid=self.process.pid)
        return status


class Spawner(threading.Thread):
    """The one thread that spawns runners. The kernel kills a runner when this thread ends, so it must live as long as the pool child."""

    def __init__(self, *, device: str, allowed: Sequence[str], memory_bytes: int = 0) -> None:
        super().__init__(name="spawner", daemon=True)
        self._orders: SimpleQueue[SimpleQueue[Runner]] = SimpleQueue()
        self._command = [sys.executable, "-m", "worker.runner", "--parent", str(os.getpid()), "--device", device, "--allowed", ",".join(allowed)]
        if memory_bytes:
            self._command += ["--memory-bytes", str(memory_bytes)]
        self._warm: Runner | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Spawn one runner for each order."""
        while True:
            self._orders.get().put(self._spawn())

    def _spawn(self) -> Runner:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module, no shell
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=runner_environment(os.environ),
        )
        log.info("runner.spawned", pid=process.pid)
        return Runner(process)

    def warm(self) -> Runner:
        """Return the runner that warms up or is warm; one is spawned where there is none or it died."""
        with self._lock:
            if self._warm is None or not self._warm.alive:
                answer: SimpleQueue[Runner] = SimpleQueue()
                self._orders.put(answer)
                self._warm = answer.get()
            return self._warm

    def take(self) -> Runner:
        """Return a warm runner for a job; its successor is spawned by the next call of `warm`."""
        runner = self.warm()
        with self._lock:
            self._warm = None
        return runner

    def stop(self) -> None:
        """Kill the runner that waits for a job."""
        with self._lock:
            if self._warm is not None:
                self._warm.kill()
                self._warm = None
