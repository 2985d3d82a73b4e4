"""Which device a job runs on, asked without torch: the supervisor must know before a runner tells."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from services.errors import HostMemoryShort

MODELS_HELD = 8
"""How often the weights stand in memory while a method runs: original, edited model, reference, its twin, gradient, two moments of Adam, a snapshot."""

RECORDS_HELD = 12
"""How many bytes in memory a byte of the compressed record file is taken to become: columns, tensors, one part again as a batch. Not measured."""


def choose(wanted: str) -> str:
    """Return `cpu` or `cuda`: what was asked for, or for `auto` a GPU where the driver shows one."""
    if wanted != "auto":
        return wanted
    return "cuda" if gpu_present() else "cpu"


def gpu_present() -> bool:
    """Say whether an NVIDIA driver with at least one device is here and not hidden from this process."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    return Path("/proc/driver/nvidia/gpus").is_dir() and any(Path("/proc/driver/nvidia/gpus").iterdir())


def memory_bytes() -> int:
    """Return the memory of this machine or of its control group, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def available_bytes() -> int:
    """Return how much memory a new process may take before the kernel must kill one: of the machine, or of its control group if that leaves less."""
    shown = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(shown["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(free, int(text) - int(used.read_text()))
    return free


def needed_bytes(folder: Path) -> int:
    """Return a rough estimate of the memory that the job in `folder` takes beside the libraries that a warm runner has loaded.

    A resumed job's folder holds other models beside the base; they are counted by MODELS_HELD already.
    """
    weights = max((path.stat().st_size for path in folder.glob("*.safetensors")), default=0)
    records = sum(path.stat().st_size for path in folder.glob("records.parquet"))
    return MODELS_HELD * weights + RECORDS_HELD * records


def check_memory(folder: Path) -> None:
    """Raise HostMemoryShort where the job in `folder` needs more memory than there is: it waits, instead of being killed half way."""
    needed, available = needed_bytes(folder), available_bytes()
    if needed > available:
        raise HostMemoryShort(needed_mib=needed // 1024**2, available_mib=available // 1024**2)


def describe(device: str, scratch: Path) -> dict[str, Any]:
    """Return what a job's attempt records of the machine."""
    return {
        "device": device,
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "scratch_free_bytes": shutil.disk_usage(scratch).free,
    }
