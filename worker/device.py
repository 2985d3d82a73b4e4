"""Which device a job runs on, asked without torch: the supervisor must know before a runner tells."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any


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


def describe(device: str, scratch: Path) -> dict[str, Any]:
    """Return what a job's attempt records of the machine."""
    return {
        "device": device,
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "scratch_free_bytes": shutil.disk_usage(scratch).free,
    }
