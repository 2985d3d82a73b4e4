"""`python -m control.render`: make HTML and PDF of reports, in a process of its own, so that control holds neither matplotlib nor its time.

One line of JSON in for each report, {statement, digest, figures}; one line out, {form: base64 of its bytes} or {error}. The process ends with
its input, after a minute without work, and after a hundred reports.
"""

import base64
import json
import os
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.errors import Cancelled

MEMORY_BYTES = 2 * 1024**3
CPU_S = 1200
TIMEOUT_S = 240.0
IDLE_S = 60.0
MOST_REPORTS = 100


class NotRendered(Exception):
    """The process that was to make the pages did not."""


class Renderer:
    """Has pages made by one child at a time, which stays warm between reports. `scratch` keeps matplotlib's list of fonts."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._child: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()
        self._closed = False

    def render(self, statement: Mapping[str, Any], *, digest: str, figures: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the bytes of each form.

        Raises:
            NotRendered: the child failed, or took more than four minutes. Cancelled: the renderer is closed; the report is rendered another time.
        """
        question = json.dumps({"statement": statement, "digest": digest, "figures": figures}).encode() + b"\n"
        with self._one_at_a_time:
            answer = self._ask(question) or self._ask(question)  # the first may have met a child on its way out
        if self._closed:
            raise Cancelled
        if not answer:
            raise NotRendered("the process ended without an answer")
        told: dict[str, str] = json.loads(answer)
        if "error" in told:
            raise NotRendered(told["error"])
        return {form: base64.b64decode(body) for form, body in told.items()}

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._closed = True
        if self._child is not None:
            self._child.kill()

    def _ask(self, question: bytes) -> bytes:
        """Return the child's answer, empty where it ended before one."""
        if self._closed:
            return b""
        child = self._started()
        watch = threading.Timer(TIMEOUT_S, child.kill)
        watch.start()
        try:
            if child.stdin is None or child.stdout is None:
                return b""
            child.stdin.write(question)
            child.stdin.flush()
            return child.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            watch.cancel()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            fonts = self._scratch / "matplotlib"
            fonts.mkdir(parents=True, exist_ok=True)
            env = {"PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(fonts), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
            self._child = subprocess.Popen([sys.executable, "-m", "control.render"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._child


def answer_to(line: bytes) -> dict[str, str]:
    """Return the pages that a line asks for, or only the kind of error: its text may hold what the report says."""
    from services.audit.rendering import rendered  # noqa: PLC0415  the module is imported by control as well, which needs no matplotlib

    question = json.loads(line)
    try:
        found = rendered(question["statement"], digest=question["digest"], figures=question["figures"])
    except Exception as error:  # noqa: BLE001  whatever is wrong with one report, the next one is made
        return {"error": type(error).__name__}
    return {one.form: base64.b64encode(one.body).decode() for one in found}


def main() -> None:
    """Answer line by line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # pages are read by people, later; jobs and requests go first
    for _ in range(MOST_REPORTS):
        ready, _, _ = select.select([sys.stdin], [], [], IDLE_S)
        line = sys.stdin.buffer.readline() if ready else b""
        if not line:
            return
        sys.stdout.write(json.dumps(answer_to(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
