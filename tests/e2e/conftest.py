"""One stack that `lethe up` started, shared by the tests that speak to it over HTTP: those of group `up`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

LETHE = str(Path(sys.executable).parent / "lethe")


PLUGIN = '''"""A method of another distribution.

Source: Acme, "Silence is golden", 2025.
"""

import torch

from services.unlearning.mechanisms.applicability import admit
from services.unlearning.method import METHODS, Needs, UnlearningMethod


@METHODS.register("acme_silence")
class Silence(UnlearningMethod):
    """Never answer with the class again."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"class"})
    guarantee = "suppression"
    needs = Needs(forget_set=False, retain_set=False)

    def unlearn(self, model, data, task, run):
        admit(self, data, task, run)
        heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == task.outputs]
        with torch.no_grad():
            heads[-1].bias[list(data.classes)] = -1e3
        run.note("steps", {"silence": 1})
        run.report(1, 1, stage="silence")
        return model.eval()
'''


def install_plugin(site: Path) -> dict[str, str]:
    """Write a distribution with one method in one file under `site`, and return the environment by which an operator allows it."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "acme_silence.py").write_text(PLUGIN)
    facts = site / "acme-1.0.dist-info"
    facts.mkdir(exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[lethe.methods]\nacme_silence = acme_silence\n")
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "LETHE_PLUGINS__ALLOWED": '["acme"]'}


def drawn(report: Mapping[str, Any]) -> set[str]:
    """Return the names of the figures that a report shows; those that were left out have a reason in place of data."""
    return {figure["name"] for figure in report["figures"] if figure["data_digest"]}


def start(home: Path, **extra: str) -> tuple[subprocess.Popen[str], str, str]:
    """Start `lethe up` and return the process, the address and the key it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")} | extra
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
    made = Up(home, *start(home, **install_plugin(server_home / "acme")))
    yield made
    family = psutil.Process(made.process.pid).children(recursive=True) if made.process.poll() is None else []
    made.process.kill()  # all of it dies with its parent; a graceful end waits for every kept connection, and is tested elsewhere
    made.process.wait()
    _, left = psutil.wait_procs(family, timeout=30)
    assert not left, "a stack outlived its parent"
