"""The Celery application of a worker: prefork, one pool child, early acknowledgement, JSON. It never imports torch.

Start: `celery -A worker.celery_app worker -Q cpu -c 1 --pool prefork`.
"""

from services.queue import make_app
from services.settings import Settings
from services.telemetry import configure_logging

configure_logging("worker")
settings = Settings()
app = make_app(settings.queue.url.get_secret_value())
app.conf.include = ["worker.tasks", "worker.pool_child"]
app.conf.worker_redirect_stdouts = False
app.set_default()
