"""The Celery process, its supervisor and the runner."""
