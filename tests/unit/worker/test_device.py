"""What a worker says of its memory, and the job that would not fit it."""

from pathlib import Path

import pytest

from services.errors import HostMemoryShort
from worker import device


def job_folder(path: Path, *, weights: int, records: int) -> Path:
    (path / "base.safetensors").write_bytes(b"w" * weights)
    (path / "records.parquet").write_bytes(b"r" * records)
    (path / "next_records.parquet").write_bytes(b"n" * 10_000)
    return path


def test_the_memory_that_is_free_is_no_more_than_there_is() -> None:
    assert 0 < device.available_bytes() <= device.memory_bytes()


def test_what_a_job_needs_grows_with_its_weights_and_its_records(tmp_path: Path) -> None:
    assert device.needed_bytes(tmp_path) == 0
    folder = job_folder(tmp_path, weights=1000, records=50)
    assert device.needed_bytes(folder) == 8 * 1000 + 12 * 50
    (folder / "candidate.safetensors").write_bytes(b"c" * 1000)  # as a resumed job finds it
    assert device.needed_bytes(folder) == 8 * 1000 + 12 * 50


def test_a_job_that_does_not_fit_waits_and_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job_folder(tmp_path, weights=2 * 1024**2, records=1024**2)
    monkeypatch.setattr(device, "available_bytes", lambda: 27 * 1024**2)
    with pytest.raises(HostMemoryShort, match="about 28 MiB of memory, and 27 MiB are free") as refused:
        device.check_memory(folder)
    assert (refused.value.code, refused.value.retry_class) == ("memory-short", "transient")
    monkeypatch.setattr(device, "available_bytes", lambda: 28 * 1024**2)
    device.check_memory(folder)
