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
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

import torch
from pydantic import ValidationError

from models_store.errors import Refused
from models_store.manifest import FILE_BYTES
from services.errors import Cancelled, DeviceOutOfMemory, InvalidInput, LetheError, UnsafeCheckpoint
from services.jobs.compute import plugins
from services.jobs.compute.context import Bench, open_bench
from services.jobs.compute.evaluate import evaluate, measure
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

STEPS: dict[str, Callable[[Bench], None]] = {"train": train, "measure": measure, "unlearn": unlearn, "evaluate": evaluate, "verify": verify}
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


def serve(pipe: Pipe) -> None:
    """Take one job and run its steps as they are asked for, until the pipe ends."""
    bench: Bench | None = None

    def opened() -> None:
        nonlocal bench
        if not isinstance(command, JobFrame):
            raise InvalidInput(detail="a step came before its job")
        bench = open_bench(Path(command.folder), send=pipe.send, cancelled=pipe.cancelled.is_set)

    def stepped() -> None:
        if bench is None or not isinstance(command, StepFrame) or command.name not in STEPS:
            raise InvalidInput(detail="an unknown step, or one before its job")
        if pipe.cancelled.is_set():
            raise Cancelled
        STEPS[command.name](bench)

    while True:
        command = pipe.queue.get()
        if isinstance(command, JobFrame):
            attempt(pipe, "open", opened)
        else:
            attempt(pipe, command.name, stepped)


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
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    return {"device": device, "name": name, "threads": torch.get_num_threads()}


def main() -> None:
    """Warm up, tell the parent, then serve."""
    parser = argparse.ArgumentParser(prog="python -m worker.runner", description="Run one job for a supervisor, on files and a pipe.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-bytes", type=int, default=0)
    parser.add_argument("--allowed", default="")
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    limit(arguments.memory_bytes)
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    pipe = Pipe(sys.stdin.buffer, frames)
    plugins.load([name for name in arguments.allowed.split(",") if name])
    pipe.send(ReadyFrame(catalogue=plugins.catalogue(), device=touch(arguments.device), versions=plugins.versions()))
    serve(pipe)


if __name__ == "__main__":
    main()
