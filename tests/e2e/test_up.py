"""`lethe up` as a user runs it: the walk of the documentation against it, then it dies whole and starts again on the same data."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import LETHE, Up, start

WALK = Path(__file__).parents[2] / "docs" / "tutorial" / "walk.sh"


def models_of(url: str, key: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["items"]


def register(url: str, key: str, name: str) -> None:
    body = {"name": name, "task": "classification", "architecture": "tiny_cnn", "architecture_params": {"outputs": 10}}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", "Idempotency-Key": name}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", json.dumps(body).encode(), headers), timeout=20) as answer:
        assert answer.status == 201


def gone(pids: list[int]) -> bool:
    """Wait until none of the processes is left."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not left:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.soak
@pytest.mark.xdist_group("up")
def test_the_walk_of_the_documentation_goes_from_nothing_to_a_checked_report(up: Up, tmp_path: Path):
    missing = [tool for tool in ("curl", "jq", "sha256sum") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the walk needs {', '.join(missing)}: install them to run this test")
    env = {**os.environ, "LETHE_URL": up.url, "LETHE_KEY": up.key, "LETHE": LETHE}
    walked = subprocess.run(["bash", "-x", str(WALK)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False)

    report = tmp_path / "report.json"
    events = tmp_path / "events.txt"
    said = walked.stdout[-3000:] + walked.stderr[-2000:] + (report.read_text()[:6000] if report.exists() else "no report")
    said += events.read_text() if events.exists() else "no events"
    assert walked.returncode == 0, said
    assert "model.safetensors: OK" in walked.stdout
    assert '"verdict": "passed"' in walked.stdout, said
    assert "event: state" in (tmp_path / "events.txt").read_text()


@pytest.mark.soak
@pytest.mark.xdist_group("up")
def test_the_stack_dies_with_its_parent_and_starts_again_on_the_same_data(up: Up):
    register(up.url, up.key, "kept")
    family = [child.pid for child in psutil.Process(up.process.pid).children(recursive=True)]
    assert len(family) >= 6

    up.process.send_signal(signal.SIGKILL)
    up.process.wait(10)
    assert gone(family)

    held = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell without job control starts what runs in the background
    again, url, second_key = start(up.home)
    signal.signal(signal.SIGINT, held)
    assert second_key == up.key
    assert "kept" in [model["name"] for model in models_of(url, second_key)]
    family = [child.pid for child in psutil.Process(again.pid).children(recursive=True)]
    again.send_signal(signal.SIGINT)
    assert again.wait(120) == 0
    assert gone(family)


def test_a_second_stack_over_the_same_home_is_refused_with_the_reason(tmp_path: Path):
    owner = psutil.Process()
    (tmp_path / "stack.lock").write_text(json.dumps({"pid": owner.pid, "started": owner.create_time()}))

    done = subprocess.run([LETHE, "up", "--home", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert f"process {owner.pid} already runs a stack" in done.stderr


def test_up_refuses_to_bind_beyond_the_loopback_interface(tmp_path: Path):
    done = subprocess.run([LETHE, "up", "--home", str(tmp_path), "--host", "0.0.0.0"], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "loopback" in done.stderr
