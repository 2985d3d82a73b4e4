"""What a worker says of its memory, the job that would not fit it, and the job that several devices share."""

from pathlib import Path
from uuid import UUID

import pytest

from services.errors import HostMemoryShort
from services.jobs.messages import SPEC_FILE, JobSpec, Seeds
from services.memory import Capacity
from worker import device


def job_folder(path: Path, *, weights: int, records: int) -> Path:
    (path / "base.safetensors").write_bytes(b"w" * weights)
    (path / "records.parquet").write_bytes(b"r" * records)
    (path / "next_records.parquet").write_bytes(b"n" * 10_000)
    return path


def with_spec(folder: Path, **told: object) -> Path:
    spec = JobSpec(
        job_id=UUID(int=1), kind="unlearn", round=1, task="language_model", architecture="small_gpt", architecture_params={},
        adapter="question_answer", adapter_params={}, recipe=None, method="npo", params={}, request_kind="records", plan={}, seeds=Seeds(),
        device="cpu", deadline_s=10,
    )  # fmt: skip
    (folder / SPEC_FILE).write_text(spec.model_copy(update=told).model_dump_json())
    return folder


def test_the_memory_that_is_free_is_no_more_than_there_is() -> None:
    assert 0 < device.available_bytes() <= device.memory_bytes()


def test_what_a_job_needs_grows_with_its_weights_and_its_records(tmp_path: Path) -> None:
    assert device.need_of(tmp_path).total_bytes == 0
    folder = job_folder(tmp_path, weights=1000, records=50)
    assert device.need_of(folder).total_bytes == 8 * 1000 + 12 * 50
    (folder / "candidate.safetensors").write_bytes(b"c" * 1000)  # as a resumed job finds it
    assert device.need_of(folder).total_bytes == 8 * 1000 + 12 * 50


def test_what_a_job_needs_is_what_it_was_admitted_by(tmp_path: Path) -> None:
    folder = with_spec(job_folder(tmp_path, weights=1000, records=50), copies=5.0, batch_bytes=77)
    assert device.need_of(folder).total_bytes == 5 * 1000 + 12 * 50 + 77
    with_spec(folder, copies=4.0, weights_bytes=3000)  # a training, whose folder holds no weights yet
    assert device.need_of(folder).total_bytes == 4 * 3000 + 12 * 50


def test_a_job_goes_to_several_devices_only_where_one_is_too_small_and_its_method_can_share(tmp_path: Path) -> None:
    folder = with_spec(job_folder(tmp_path, weights=1000, records=0), copies=8.0, sharded=True)
    assert device.ranks_for(folder, Capacity(8000, 4)) == 1
    assert device.ranks_for(folder, Capacity(4000, 4)) == 2
    assert device.ranks_for(folder, Capacity(1000, 4)) == 1  # it fits nowhere: the first device says so
    assert device.ranks_for(folder, None) == 1
    assert device.ranks_for(with_spec(folder, copies=8.0), Capacity(4000, 4)) == 1


def test_the_capacity_of_a_worker_is_beside_what_its_runner_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_bytes", lambda: 10_000)
    cpu, gpu = {"device": "cpu", "held_bytes": 500}, {"device": "cuda", "held_bytes": 500, "memory_bytes": 80_000, "devices": 4}

    assert device.capacity_of(cpu, limit_bytes=0, ranks=1) == Capacity(9500, 1, "cpu")
    assert device.capacity_of(cpu, limit_bytes=3000, ranks=2) == Capacity(2500, 2, "cpu")
    assert device.capacity_of(cpu, limit_bytes=0, ranks=2) == Capacity(4500, 2, "cpu")
    assert device.capacity_of(gpu, limit_bytes=0, ranks=1) == Capacity(80_000, 4, "cuda")
    assert device.capacity_of({"device": "cuda"}, limit_bytes=0, ranks=1) is None


def test_a_job_that_does_not_fit_waits_and_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job_folder(tmp_path, weights=2 * 1024**2, records=1024**2)
    monkeypatch.setattr(device, "available_bytes", lambda: 27 * 1024**2)
    with pytest.raises(HostMemoryShort, match="about 28 MiB of memory, and 27 MiB are free") as refused:
        device.check_memory(folder)
    assert (refused.value.code, refused.value.retry_class) == ("memory-short", "transient")
    monkeypatch.setattr(device, "available_bytes", lambda: 28 * 1024**2)
    device.check_memory(folder)
