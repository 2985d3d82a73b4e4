import subprocess
import sys

KEYS = {"LETHE_EMBEDDED": "true", "LETHE_QUEUE__URL": "redis://127.0.0.1:1/0", "PATH": "/usr/bin"}


def ask(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], env=KEYS, capture_output=True, text=True, check=True).stdout.strip()


def test_the_celery_process_never_imports_torch() -> None:
    assert ask("import worker.celery_app, worker.tasks, sys; print('torch' in sys.modules)") == "False"


def test_the_application_acknowledges_early_and_keeps_no_results() -> None:
    code = """
from worker.celery_app import app
c = app.conf
print(c.task_acks_late, c.task_ignore_result, c.worker_prefetch_multiplier, c.worker_enable_remote_control, c.worker_send_task_events,
      c.task_serializer, list(c.accept_content), c.worker_cancel_long_running_tasks_on_connection_loss, c.broker_connection_max_retries,
      c.worker_max_tasks_per_child)
"""
    assert ask(code) == "False True 1 False False json ['json'] False None None"


def test_a_garbled_bell_changes_nothing() -> None:
    assert ask("from worker.tasks import run_job; run_job.run('no job'); run_job.run(5); print('alive')").endswith("alive")
