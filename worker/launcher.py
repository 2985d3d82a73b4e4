"""The other ranks of a job whose weights one device cannot hold: processes like the runner, which is the first of them, and gives them its steps.

A rank is `python -m worker.runner --rank`; it reads the frames that the runner writes to its standard input, and answers nothing: what it computes
comes back through the collectives of the ranks. A rank that ends ends the job, for the others would wait for it.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO

from services.jobs.messages import Frame, JobFrame, encode

OUT_OF_MEMORY = 12
"""Exit status of a rank whose device ran out of memory."""


class Crew:
    """The ranks 1 to `job.ranks` - 1, spawned with the runner's own `arguments`. `lost` is called with the exit status of one that ended."""

    def __init__(self, job: JobFrame, arguments: Sequence[str], lost: Callable[[int], None]) -> None:
        self._processes = [self._spawn(rank, arguments) for rank in range(1, job.ranks)]
        self._lost = lost
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), name=f"rank-{process.pid}", daemon=True).start()
        self.tell(job)

    @staticmethod
    def _spawn(rank: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start one rank in the runner's own process group, so that whoever kills that kills the rank."""
        command = [sys.executable, "-m", "worker.runner", "--rank", str(rank), *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603  our own interpreter and module, no shell

    def tell(self, frame: Frame) -> None:
        """Write a frame to every rank; one that is gone is the watch's to notice."""
        for process in self._processes:
            pipe: IO[bytes] | None = process.stdin
            if pipe is None:
                continue
            try:
                pipe.write(encode(frame))
                pipe.flush()
            except OSError:
                return

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        self._lost(process.wait())
