"""`python -m control.inspect FILE EXPECTED`: read an uploaded parquet file in a process with little memory and little time.

EXPECTED is a JSON object, the named arguments of `records.inspect`. Standard output: one JSON object, either what that returns or {code, detail}.
"""

import json
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from services.datasets.forms import UploadChecks
from services.errors import InvalidInput, LetheError
from services.jobs import records

MEMORY_BYTES = 4 * 1024**3
CPU_S = 120
TIMEOUT_S = 300.0
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
"""Of the child: none of our secrets, and the same code as ours."""


def inspect_apart(path: Path, expected: UploadChecks) -> dict[str, Any]:
    """As `records.inspect`, in a child process. Raises InvalidInput when the file is refused or the child did not survive it."""
    command = [sys.executable, "-m", "control.inspect", str(path.absolute()), json.dumps(asdict(expected))]
    try:
        child = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False, env=ENVIRONMENT)  # noqa: S603  our own module
    except subprocess.TimeoutExpired as error:
        raise InvalidInput(detail=f"{path.name}: reading it took more than {TIMEOUT_S:.0f} seconds") from error
    if child.returncode != 0:
        raise InvalidInput(detail=f"{path.name}: the process that read it ended with {child.returncode}")
    answer: dict[str, Any] = json.loads(child.stdout)
    if "code" in answer:
        raise InvalidInput(detail=f"{path.name}: {answer['detail']}")
    return answer


def main() -> None:
    """Read the file named on the command line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = records.inspect(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    except LetheError as error:
        detail = error.facts.get("detail", "it is refused")
        answer = {"code": error.code, "detail": detail}
    except (pa.ArrowException, OSError, ValueError) as error:
        answer = {"code": "validation-error", "detail": f"it is no readable parquet file ({type(error).__name__})"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
