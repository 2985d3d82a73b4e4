"""The walk of the documentation, line by line, with curl, against a stack that `lethe up` started."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_up import start

WALK = Path(__file__).parents[2] / "docs" / "tutorial" / "walk.sh"


@pytest.mark.xdist_group("demo")
def test_the_walk_of_the_documentation_goes_from_nothing_to_a_checked_report(server_home: Path, tmp_path: Path):
    missing = [tool for tool in ("curl", "jq", "sha256sum") if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"the walk needs {', '.join(missing)}: install them to run this test")
    process, url, key = start(server_home / "walk-home")
    try:
        env = {**os.environ, "LETHE_URL": url, "LETHE_KEY": key, "LETHE": str(Path(sys.executable).parent / "lethe")}
        walked = subprocess.run(["bash", str(WALK)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400, check=False)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)

    assert walked.returncode == 0, walked.stdout[-3000:] + walked.stderr[-3000:]
    assert "model.safetensors: OK" in walked.stdout
    assert '"verdict": "passed"' in walked.stdout
    assert "event: state" in (tmp_path / "events.txt").read_text()
