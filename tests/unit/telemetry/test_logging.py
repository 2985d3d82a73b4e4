"""Logs: JSON lines, listed keys, no exception text; and every call in the code uses listed keys."""

import ast
import json
import subprocess
import sys
from pathlib import Path

from services.telemetry import ALLOWED_KEYS, keep_allowed, name_error

ROOT = Path(__file__).resolve().parents[3]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def test_what_is_not_listed_is_dropped_and_counted():
    assert keep_allowed(None, "", {"event": "x", "email": "a@b.c", "job_id": "1"}) == {"event": "x", "job_id": "1", "dropped": 1}


def test_an_exception_is_named_and_its_text_is_not_written():
    try:
        int("ada@example.org")
    except ValueError as error:
        line = name_error(None, "", {"event": "x", "exc_info": error})
        assert name_error(None, "", {"event": "x", "exc_info": True})["error"] == "ValueError"
    assert line["error"] == "ValueError"
    assert "ada" not in json.dumps(line)
    assert "test_logging" in line["stack"][0]
    assert name_error(None, "", {"event": "x"}) == {"event": "x"}


def test_a_line_is_one_json_object():
    code = (
        "import structlog\nfrom services.telemetry import configure_logging\nconfigure_logging('control')\n"
        "log = structlog.get_logger()\nlog.info('job.claimed', job_id='j', email='a@b.c')\nlog.debug('hidden')\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('loop.failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert {key: first[key] for key in ("event", "job_id", "level", "process", "dropped")} == {
        "event": "job.claimed",
        "job_id": "j",
        "level": "info",
        "process": "control",
        "dropped": 1,
    }
    assert (second["event"], second["error"], second["level"]) == ("loop.failed", "ZeroDivisionError", "error")
    assert done.stdout == ""


def calls():
    for folder in ("api", "worker", "control", "services", "models_store"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                    owner = node.func.value
                    if isinstance(owner, ast.Name) and owner.id in {"log", "logger"}:
                        yield path.relative_to(ROOT), node


def test_every_log_call_has_a_constant_event_and_listed_keys():
    wrong = []
    for path, node in calls():
        if not (node.args and isinstance(node.args[0], ast.Constant)):
            wrong.append((str(path), node.lineno, "event"))
        wrong += [(str(path), node.lineno, word.arg) for word in node.keywords if word.arg not in ALLOWED_KEYS | {"exc_info"}]
    assert wrong == []
