"""The folder of derived artifacts: what is kept, what is believed, and what is destroyed."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services.clock import FixedClock
from services.derived import Folder, Limits, Root, key_of, short

AT = datetime(2026, 3, 1, tzinfo=UTC)
LIMITS = Limits(size_bytes=1_000_000, ttl_s=3600.0)
RECORDS = ("aa", "bb", "cc")
ROWS = {"p": np.arange(6, dtype=np.float32).reshape(3, 2), "n": np.arange(3, dtype=np.int64)}


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(AT)


@pytest.fixture
def folder(tmp_path: Path, clock: FixedClock) -> Folder:
    return Folder(tmp_path / "one", LIMITS, clock=clock)


def key(number: int) -> str:
    return key_of("test", {"number": number})


def left(folder: Folder) -> set[str]:
    return {path.name for path in folder.path.iterdir()} - {".lock"}


def test_a_key_is_a_digest_of_kind_and_document_whatever_the_order():
    assert key_of("a", {"x": 1, "y": [2]}) == key_of("a", {"y": [2], "x": 1})
    assert len({key_of("a", {"x": 1}), key_of("b", {"x": 1}), key_of("a", {"x": 2}), key_of("a", {"x": "1"})}) == 4
    assert short(bytes(range(32))) == bytes(range(16)).hex()


def test_what_was_written_is_read_with_its_bits_and_its_manifest(folder):
    odd = {"x": np.array([np.nan, -0.0, np.inf], dtype=np.float32), "b": np.array([True, False]), "counter": np.array(3)}

    assert folder.write(key(1), "noise", odd, None, "aggregate")
    manifest, arrays = folder.read(key(1))

    assert {name: array.tobytes() for name, array in arrays.items()} == {name: array.tobytes() for name, array in odd.items()}
    assert {name: array.shape for name, array in arrays.items()} == {"x": (3,), "b": (2,), "counter": ()}
    assert (manifest.kind, manifest.layout, manifest.records, manifest.created) == ("noise", "aggregate", None, AT.timestamp())
    assert folder.read(key(2)) is None
    assert all(oct(path.stat().st_mode)[-3:] == "600" for path in folder.path.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("fault", ["flip", "cut", "gone", "manifest", "other key", "not json"])
def test_a_wrong_digest_or_an_unreadable_file_is_a_miss_and_goes(fault, folder):
    folder.write(key(1), "test", ROWS, RECORDS, "rows")
    value, manifest = folder.path / f"{key(1)}.safetensors", folder.path / f"{key(1)}.json"
    raw = value.read_bytes()
    body = json.loads(manifest.read_bytes())
    match fault:
        case "flip":
            value.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "cut":
            value.write_bytes(raw[:-4])
        case "gone":
            value.unlink()
        case "manifest":
            manifest.write_text(json.dumps({**body, "digest": "0" * 64}))
        case "other key":
            manifest.write_text(json.dumps({**body, "key": key(2)}))
        case _:
            manifest.write_bytes(b"{")

    assert folder.read(key(1)) is None
    assert left(folder) == set()


def test_what_is_too_old_is_a_miss_and_goes(folder, clock):
    folder.write(key(1), "test", ROWS, RECORDS, "rows")
    clock.at = AT + timedelta(seconds=3601)

    assert folder.read(key(1)) is None
    assert left(folder) == set()


def test_the_least_recently_used_entry_makes_room(tmp_path, clock):
    folder = Folder(tmp_path / "one", Limits(size_bytes=2500, ttl_s=3600.0), clock=clock)
    for number in (1, 2):
        clock.at += timedelta(seconds=1)
        folder.write(key(number), "test", {"x": np.zeros(250, np.float32)}, None, "aggregate")
    clock.at += timedelta(seconds=1)
    assert folder.read(key(1)) is not None
    clock.at += timedelta(seconds=1)

    folder.write(key(3), "test", {"x": np.zeros(250, np.float32)}, None, "aggregate")

    assert [folder.read(key(number)) is not None for number in (1, 2, 3)] == [True, False, True]
    assert not folder.write(key(4), "test", {"x": np.zeros(900, np.float32)}, None, "aggregate")  # larger than the limit on its own
    assert folder.read(key(1)) is not None


def test_forgetting_drops_rows_and_destroys_aggregates_that_hold_the_record(folder):
    folder.write(key(1), "rows", ROWS, RECORDS, "rows")
    folder.write(key(2), "holds it", ROWS, RECORDS, "aggregate")
    folder.write(key(3), "holds it not", ROWS, ("aa", "cc"), "aggregate")
    folder.write(key(4), "of all", ROWS, None, "aggregate")
    folder.write(key(5), "this row alone", {"x": np.ones((1, 2))}, ("bb",), "rows")

    told = {each.kind: each.disposition for each in folder.forget({"bb", "zz"})}

    assert told == {
        "rows": "rows dropped",
        "holds it": "destroyed",
        "holds it not": "kept",
        "of all": "destroyed",
        "this row alone": "destroyed",
    }
    manifest, arrays = folder.read(key(1))
    assert manifest.records == ("aa", "cc")
    assert arrays["p"].tolist() == [[0, 1], [4, 5]]
    assert arrays["n"].tolist() == [0, 2]
    assert [folder.read(key(number)) is not None for number in (2, 3, 4, 5)] == [False, True, False, False]
    assert b'"bb"' not in b"".join((folder.path / f"{key(number)}.json").read_bytes() for number in (1, 3))


def test_a_damaged_entry_whose_rows_must_go_goes_whole(folder):
    folder.write(key(1), "rows", ROWS, RECORDS, "rows")
    (folder.path / f"{key(1)}.safetensors").write_bytes(b"damaged")

    assert [each.disposition for each in folder.forget({"bb"})] == ["destroyed"]
    assert left(folder) == set()


def test_a_closed_job_leaves_nothing_of_what_it_forgot_and_a_late_writer_neither(folder):
    folder.open("job", ["bb"])
    assert folder.write(key(1), "importance", ROWS, RECORDS, "aggregate", job="job")
    assert folder.write(key(2), "reference", ROWS, ("aa", "cc"), "aggregate", job="job")

    told = {each.kind: each.described() for each in folder.close("job")}

    assert told["importance"] == {"kind": "importance", "key": key(1), "layout": "aggregate", "disposition": "destroyed"}
    assert told["reference"]["disposition"] == "kept"
    assert told["reference"]["expires"] == (AT + timedelta(hours=1)).isoformat()
    assert not folder.write(key(1), "importance", ROWS, RECORDS, "aggregate", job="job")
    assert not folder.write(key(3), "noise", ROWS, None, "aggregate", job="job")
    assert folder.write(key(4), "reference", ROWS, ("aa",), "aggregate", job="job")
    assert folder.close("unknown") == []


def test_a_sweep_ends_what_a_crashed_job_left_and_spares_the_job_that_goes_on(folder, clock):
    folder.open("crashed", ["bb"])
    folder.write(key(1), "importance", ROWS, RECORDS, "aggregate", job="crashed")
    folder.write(key(2), "reference", ROWS, ("aa", "cc"), "aggregate", job="crashed")

    folder.sweep(spare="crashed")
    assert folder.read(key(1)) is not None
    folder.sweep()
    assert folder.read(key(1)) is None
    assert folder.read(key(2)) is not None

    clock.at = AT + timedelta(seconds=3601)
    folder.sweep()
    assert left(folder) == set()


def test_a_sweep_removes_what_a_killed_writer_left(folder):
    folder.write(key(1), "test", ROWS, RECORDS, "rows")
    (folder.path / f"{key(2)}.safetensors").write_bytes(b"without a manifest")
    (folder.path / f".{key(3)}.safetensors.0123").write_bytes(b"half")
    (folder.path / "odd.forget").write_bytes(b"{")

    folder.sweep()

    assert left(folder) == {f"{key(1)}.safetensors", f"{key(1)}.json"}


def test_two_writers_and_a_reader_of_one_key_never_see_half_of_it(folder):
    values = [np.full(20_000, number, np.float32) for number in (1, 2)]
    seen: list[set[float]] = []

    def write(value: np.ndarray) -> None:
        for _ in range(20):
            folder.write(key(1), "test", {"x": value}, None, "aggregate")

    writers = [threading.Thread(target=write, args=(value,)) for value in values]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = folder.read(key(1))
        if found is not None:
            seen.append(set(found[1]["x"].tolist()))
    for writer in writers:
        writer.join()

    assert folder.read(key(1)) is not None
    assert all(len(values) == 1 for values in seen)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import services.derived as derived

calls = 0
real = Path.replace
def replace(self, target):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
folder = derived.Folder(Path(sys.argv[1]), derived.Limits(10**6, 3600.0))
folder.write(derived.key_of("test", {"number": 1}), "test", {"x": np.ones(4, np.float32)}, None, "aggregate")
"""


@pytest.mark.parametrize("at", ["1", "2"])
def test_a_writer_killed_before_either_rename_leaves_a_miss_and_the_next_writer_goes_on(at, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "one"), at], check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    folder = Folder(tmp_path / "one", LIMITS)

    assert done.returncode == -9
    assert left(folder)
    assert folder.read(key(1)) is None
    assert folder.write(key(1), "test", {"x": np.ones(4, np.float32)}, None, "aggregate")
    assert folder.read(key(1)) is not None
    folder.sweep()
    assert left(folder) == {f"{key(1)}.safetensors", f"{key(1)}.json"}


def test_a_root_keeps_tenants_apart_and_counts_them_together(tmp_path, clock):
    root = Root(tmp_path, Limits(size_bytes=1500, ttl_s=3600.0), clock=clock)
    mine, other = root.folder("0" * 32, "1" * 32), root.folder("2" * 32, "1" * 32)
    value = {"x": np.zeros(250, np.float32)}
    mine.write(key(1), "test", value, None, "aggregate")
    clock.at += timedelta(seconds=1)

    assert other.read(key(1)) is None
    other.write(key(2), "test", value, None, "aggregate")
    root.sweep()

    assert mine.read(key(1)) is None  # least recently used of both
    assert other.read(key(2)) is not None
    with pytest.raises(ValueError, match="32 hexadecimal"):
        root.folder("../" + "0" * 29, "1" * 32)
    assert Root(tmp_path, Limits(0, 1.0)).folder("0" * 32, "1" * 32) is None
    Root(tmp_path / "nothing", LIMITS).sweep()
