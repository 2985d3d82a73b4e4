"""The header gate, and the gate of finite values, in a process of its own with little memory and little time: for files that came from outside."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models_store.errors import Refused
from models_store.finite import refuse_non_finite
from models_store.header import TensorSpec, check_header, regular_file, spans

MEMORY_BYTES = 512 * 1024 * 1024
CPU_S = 20
VALUES_BYTES_PER_S = 100_000_000
"""How fast values are read at the very least; a large file has that much more time."""


def check_header_apart(path: Path, expected: Iterable[TensorSpec] | None, *, values: bool = False, timeout_s: float = 60.0) -> list[TensorSpec]:
    """As header.check_header, in a child process limited to 512 MiB of address space and 20 s of CPU; with `values`, gate 8 as well.

    Raises:
        Refused: with the gate's code; `header-malformed` when the child did not survive the file.
    """
    more_s = path.stat().st_size // VALUES_BYTES_PER_S if values else 0
    question = {
        "path": str(path.absolute()),
        "expected": None if expected is None else [asdict(spec) for spec in expected],
        "values": values,
        "cpu_s": CPU_S + more_s,
    }
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "models_store.sandbox"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=timeout_s + 4 * more_s,
            check=False,
            env={},
        )
    except subprocess.TimeoutExpired as error:
        raise Refused("header-malformed", f"checking it took more than {error.timeout} s") from error
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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    question = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (question["cpu_s"], question["cpu_s"]))
    path, expected = Path(question["path"]), question["expected"]
    try:
        specs = check_header(path, None if expected is None else _specs(expected))
        if question["values"]:
            with regular_file(path) as file:
                for span in spans(file):
                    refuse_non_finite(span)
        answer: dict[str, object] = {"tensors": [asdict(spec) for spec in specs]}
    except Refused as refused:
        answer = {"gate": refused.gate, "detail": refused.detail}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _answer()
