"""`python -m worker.runner`: a fresh interpreter that imports torch, says what it can run, does one job, and exits.

It is given files and one pipe: no credential, no database, no store. Standard input brings commands, standard output takes frames; whatever
else writes to standard output is turned to standard error, so that no print of a plug-in can garble a frame.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import torch
from pydantic import ValidationError

from models_store.errors import Refused
from models_store.manifest import FILE_BYTES
from services.errors import Cancelled, DeviceOutOfMemory, InvalidInput, LetheError, RunnerCrashed, UnsafeCheckpoint
from services.jobs.compute import plugins
from services.jobs.compute.context import Bench, open_bench
from services.jobs.compute.evaluate import evaluate, measure
from services.jobs.compute.reference import reference
from services.jobs.compute.train import train
from services.jobs.compute.unlearn import unlearn
from services.jobs.compute.verify import verify
from services.jobs.messages import (
    CancelFrame,
    DoneFrame,
    FailedFrame,
    Frame,
    GarbledFrame,
    JobFrame,
    ReadyFrame,
    StepFrame,
    encode,
    read_command,
)
from worker.launcher import OUT_OF_MEMORY, Crew

STEPS: dict[str, Callable[[Bench], None]] = {
    "train": train,
    "measure": measure,
    "unlearn": unlearn,
    "evaluate": evaluate,
    "verify": verify,
    "reference": reference,
}
SHARED_STEPS = frozenset({"train", "measure", "unlearn", "evaluate"})
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the thread that spawned this process ends; leave at once if it is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


class Pipe:
    """The runner's end of the pipe. `cancelled` is set by a cancel frame; end of file ends the process."""

    def __init__(self, commands: BinaryIO, frames: BinaryIO) -> None:
        self.cancelled = threading.Event()
        self.queue: SimpleQueue[JobFrame | StepFrame] = SimpleQueue()
        self._commands = commands
        self._frames = frames
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Write a frame; the parent's end being closed ends the process."""
        with self._lock:
            try:
                self._frames.write(encode(frame))
                self._frames.flush()
            except BrokenPipeError:
                os._exit(0)

    def _listen(self) -> None:
        for line in self._commands:
            try:
                command = read_command(line)
            except GarbledFrame:
                os._exit(2)
            if isinstance(command, CancelFrame):
                self.cancelled.set()
            else:
                self.queue.put(command)
        os._exit(0)


def attempt(pipe: Pipe, name: str, work: Callable[[], None]) -> bool:
    """Run `work` and send how it ended; say whether it did without an error."""
    started = time.perf_counter()
    try:
        work()
    except Exception as error:  # noqa: BLE001  whatever a plug-in raises becomes a frame; the supervisor decides by its class
        pipe.send(failure(name, error))
        return False
    pipe.send(DoneFrame(name=name, seconds=time.perf_counter() - started))
    return True


def failure(name: str, error: Exception) -> FailedFrame:
    """Return the frame of an error. An exception outside the error tree is a crash, and only its type is told."""
    known: LetheError | None = None
    if isinstance(error, LetheError):
        known = error
    elif isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):  # a RuntimeError of torch's CPU allocator
        known = DeviceOutOfMemory(detail=type(error).__name__)
    elif isinstance(error, Refused):
        known = UnsafeCheckpoint(name="base", gate=error.gate, detail=error.detail)
    elif isinstance(error, ValidationError):
        places = ", ".join(".".join(str(part) for part in entry["loc"]) or "the whole" for entry in error.errors()[:3])
        known = InvalidInput(detail=f"parameters are refused: {places}")
    if known is None:
        sys.excepthook(type(error), error, error.__traceback__)
        return FailedFrame(name=name, code="runner-error", retry_class="crash", detail=f"{type(error).__name__} in step {name}")
    return FailedFrame(name=name, code=known.code, retry_class=known.retry_class, detail=str(known))  # pyright: ignore[reportArgumentType]


class Workplace:
    """The one job of a process: opened, shared with the other ranks where it has more than one, worked on step by step."""

    def __init__(self, pipe: Pipe, arguments: argparse.Namespace) -> None:
        self.pipe, self.arguments = pipe, arguments
        self.bench: Bench | None = None
        self.crew: Crew | None = None

    def open(self, job: JobFrame) -> None:
        """Open the job's bench. With several ranks the first starts the others, and all meet in the job's folder."""
        bench = open_bench(Path(job.folder), send=self.pipe.send, cancelled=self.pipe.cancelled.is_set)
        if job.ranks > 1:
            from services.jobs.compute.ranks import Ranks  # noqa: PLC0415  a second that every runner would wait

            rank = self.arguments.rank
            if rank == 0:
                self.crew = Crew(job, rank_arguments(self.arguments), self.lost)
            bench.join(Ranks.join(rank, job.ranks, folder=bench.folder, device=bench.device))
        self.bench = bench

    def step(self, frame: StepFrame) -> None:
        """Run one step, on every rank unless it is the verdict's, which has no model."""
        if self.bench is None or frame.name not in STEPS:
            raise InvalidInput(detail="an unknown step, or one before its job")
        if self.pipe.cancelled.is_set():
            raise Cancelled
        if self.crew is not None and frame.name in SHARED_STEPS:
            self.crew.tell(frame)
        STEPS[frame.name](self.bench)

    def lost(self, status: int) -> None:
        """Say that another rank has ended, and end: the next collective would wait for it."""
        error = DeviceOutOfMemory(detail="a rank") if status == OUT_OF_MEMORY else RunnerCrashed(detail=f"a rank ended with status {status}")
        self.pipe.send(failure("ranks", error))
        os._exit(1)


def serve(place: Workplace) -> None:
    """Take one job and run its steps as they are asked for, until the pipe ends."""
    while True:
        command = place.pipe.queue.get()
        if isinstance(command, JobFrame):
            attempt(place.pipe, "open", partial(place.open, command))
        else:
            attempt(place.pipe, command.name, partial(place.step, command))


class Silent(Pipe):
    """The pipe of a rank that is not the first: its frames go nowhere, and an error that the first rank does not meet ends the process."""

    def send(self, frame: Frame) -> None:
        """Send nothing; end where this rank alone can go no further."""
        if isinstance(frame, FailedFrame) and frame.retry_class in {"crash", "resource"}:
            os._exit(OUT_OF_MEMORY if frame.retry_class == "resource" else 1)


def rank_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return what a rank is started with by this process."""
    given = {"parent": os.getpid(), "device": arguments.device, "memory-bytes": arguments.memory_bytes, "allowed": arguments.allowed}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def limit(memory_bytes: int) -> None:
    """Leave no core file, write no file over what a checkpoint may be, and take no more address space than `memory_bytes` (0: as much as there is)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def touch(device: str) -> dict[str, object]:
    """Take one small training step on the device, so that all start-up lies before the job; return what the device is.

    The first optimizer of a process imports several seconds of torch.
    """
    place = torch.device(device)
    layer = torch.nn.Linear(8, 8, device=place)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.ones(8, 8, device=place)).sum().backward()
    optimizer.step()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found: dict[str, object] = {"device": device, "name": "cpu", "threads": torch.get_num_threads(), "held_bytes": held}
    if place.type == "cuda":
        memory = torch.cuda.get_device_properties(place).total_memory
        found |= {"name": torch.cuda.get_device_name(place), "memory_bytes": memory, "devices": torch.cuda.device_count()}
    return found


def main() -> None:
    """Warm up, tell the parent, then serve."""
    parser = argparse.ArgumentParser(prog="python -m worker.runner", description="Run one job for a supervisor, on files and a pipe.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-bytes", type=int, default=0)
    parser.add_argument("--allowed", default="")
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    limit(arguments.memory_bytes)
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    pipe = (Silent if arguments.rank else Pipe)(sys.stdin.buffer, frames)
    plugins.load([name for name in arguments.allowed.split(",") if name])
    pipe.send(ReadyFrame(catalogue=plugins.catalogue(), device=touch("cpu" if arguments.rank else arguments.device), versions=plugins.versions()))
    serve(Workplace(pipe, arguments))


if __name__ == "__main__":
    main()
