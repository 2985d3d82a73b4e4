"""Which device a job runs on, asked without torch: the supervisor must know before a runner tells."""

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.errors import HostMemoryShort
from services.jobs.messages import SPEC_FILE, JobSpec
from services.memory import RECORDS_HELD, Capacity, Need

MODELS_HELD = 8.0
"""How often the weights stand in memory where the job does not say: as in a job with retrained references."""


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


def need_of(folder: Path) -> Need:
    """Return what the job in `folder` takes beside the libraries that a warm runner has loaded, by the formula that it was admitted by.

    A resumed job's folder holds other models beside the base; they are counted in its copies already.
    """
    spec = spec_of(folder)
    weights = max((path.stat().st_size for path in folder.glob("*.safetensors")), default=0)
    records = RECORDS_HELD * sum(path.stat().st_size for path in folder.glob("records.parquet"))
    if spec is None:
        return Need(weights, MODELS_HELD, records)
    return Need(max(weights, spec.weights_bytes), spec.copies, records, spec.batch_bytes)


def spec_of(folder: Path) -> JobSpec | None:
    """Return the specification of the job in `folder`; None where there is none yet."""
    path = folder / SPEC_FILE
    return JobSpec.model_validate_json(path.read_bytes()) if path.exists() else None


def check_memory(folder: Path, ranks: int = 1) -> None:
    """Raise HostMemoryShort where the job in `folder` needs more memory than there is: it waits, instead of being killed half way."""
    needed, available = ranks * need_of(folder).on(ranks), available_bytes()
    if needed > available:
        raise HostMemoryShort(needed_mib=needed // 1024**2, available_mib=available // 1024**2)


def capacity_of(found: Mapping[str, Any], *, limit_bytes: int, ranks: int) -> Capacity | None:
    """Return what a job may take on each device of this worker, from what its warm runner found; None where it could not tell.

    Args:
        found: the runner's `device`, with `memory_bytes` and `devices` of a GPU, and `held_bytes`, what the runner holds itself.
        limit_bytes: of a runner on a CPU; 0 is none.
        ranks: processes that may share a job on a CPU; they share its memory too.
    """
    held = int(found.get("held_bytes", 0))
    if found.get("device") != "cpu":
        memory = int(found.get("memory_bytes", 0))
        return Capacity(memory, int(found.get("devices", 1)), "cuda") if memory else None
    share = memory_bytes() // ranks
    return Capacity(max(1, (min(share, limit_bytes) if limit_bytes else share) - held), ranks, "cpu")


def ranks_for(folder: Path, capacity: Capacity | None) -> int:
    """Return how many devices share the job in `folder`: one where it fits on one, or where it cannot be shared."""
    spec = spec_of(folder)
    if capacity is None or spec is None:
        return 1
    return capacity.devices_for(need_of(folder), sharded=spec.sharded) or 1


def describe(device: str, scratch: Path) -> dict[str, Any]:
    """Return what a job's attempt records of the machine."""
    return {
        "device": device,
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "scratch_free_bytes": shutil.disk_usage(scratch).free,
    }
