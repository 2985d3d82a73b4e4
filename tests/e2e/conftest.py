"""One stack that `lethe up` started, shared by the tests that speak to it over HTTP: those of group `up`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LETHE = str(Path(sys.executable).parent / "lethe")


def start(home: Path) -> tuple[subprocess.Popen[str], str, str]:
    """Start `lethe up` and return the process, the address and the key it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    process = subprocess.Popen([LETHE, "up", "--home", str(home)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith("export "):
            _, url, key = line.split()
            return process, url.removeprefix("LETHE_URL="), key.removeprefix("LETHE_KEY=")
    raise AssertionError(process.stderr.read() if process.stderr else "no output")


@dataclass
class Up:
    """A stack that `lethe up` started, over a home of its own."""

    home: Path
    process: subprocess.Popen[str]
    url: str
    key: str


@pytest.fixture(scope="session")
def up(server_home: Path) -> Iterator[Up]:
    """A running stack."""
    home = server_home / "up-home"
    made = Up(home, *start(home))
    yield made
    if made.process.poll() is None:
        made.process.send_signal(signal.SIGINT)
        made.process.wait(120)
