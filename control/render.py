"""`python -m control.render`: make HTML and PDF of one report, in a process of its own, so that control holds neither matplotlib nor its time.

Standard input: {statement, digest, figures}. Standard output: {form: base64 of its bytes}.
"""

import base64
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 * 1024**3
CPU_S = 120
TIMEOUT_S = 240.0


class NotRendered(Exception):
    """The process that was to make the pages did not."""


def render_apart(statement: Mapping[str, Any], *, digest: str, figures: Mapping[str, Any], scratch: Path) -> dict[str, bytes]:
    """Return the bytes of each form. `scratch` keeps matplotlib's list of fonts from one report to the next.

    Raises:
        NotRendered: the process failed, or took more than four minutes.
    """
    fonts = scratch / "matplotlib"
    fonts.mkdir(parents=True, exist_ok=True)
    env = {"PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(fonts), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    question = json.dumps({"statement": statement, "digest": digest, "figures": figures})
    try:
        child = subprocess.run(
            [sys.executable, "-m", "control.render"], input=question.encode(), capture_output=True, timeout=TIMEOUT_S, check=False, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise NotRendered(f"it took more than {TIMEOUT_S:.0f} s") from error
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise NotRendered(lines[-1].split(":", 1)[0][:200] if lines else f"it ended with {child.returncode}")
    return {form: base64.b64decode(body) for form, body in json.loads(child.stdout).items()}


def main() -> None:
    """Answer the question on standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # pages are read by people, later; jobs and requests go first

    from services.audit.rendering import rendered  # noqa: PLC0415  the module is imported by control as well, which needs no matplotlib

    question = json.load(sys.stdin)
    found = rendered(question["statement"], digest=question["digest"], figures=question["figures"])
    json.dump({one.form: base64.b64encode(one.body).decode() for one in found}, sys.stdout)


if __name__ == "__main__":
    main()
