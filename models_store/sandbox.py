"""The header gate in a process of its own, with little memory and little time: for files that came from outside."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models_store.errors import Refused
from models_store.header import TensorSpec, check_header

MEMORY_BYTES = 512 * 1024 * 1024
CPU_S = 20


def check_header_apart(path: Path, expected: Iterable[TensorSpec] | None, *, timeout_s: float = 60.0) -> list[TensorSpec]:
    """As header.check_header, in a child process limited to 512 MiB of address space and 20 s of CPU.

    Raises:
        Refused: with the gate's code; `header-malformed` when the child did not survive the file.
    """
    question = {"path": str(path.absolute()), "expected": None if expected is None else [asdict(spec) for spec in expected]}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "models_store.sandbox"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={},
        )
    except subprocess.TimeoutExpired as error:
        raise Refused("header-malformed", f"checking it took more than {timeout_s} s") from error
    if child.returncode != 0:
        raise Refused("header-malformed", f"the checking process ended with {child.returncode}")
    answer = json.loads(child.stdout)
    if "gate" in answer:
        raise Refused(answer["gate"], answer["detail"])
    return _specs(answer["tensors"])


def _specs(entries: list[dict[str, Any]]) -> list[TensorSpec]:
    return [TensorSpec(str(entry["name"]), str(entry["dtype"]), tuple(entry["shape"])) for entry in entries]


def _answer() -> None:
    """Read a question from standard input, answer on standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    question = json.load(sys.stdin)
    expected = question["expected"]
    try:
        specs = check_header(Path(question["path"]), None if expected is None else _specs(expected))
        answer: dict[str, object] = {"tensors": [asdict(spec) for spec in specs]}
    except Refused as refused:
        answer = {"gate": refused.gate, "detail": refused.detail}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _answer()
