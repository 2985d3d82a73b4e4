"""The doorbell: its configuration, and that it gives up in time."""

import socket
import time
import uuid

import pytest

from services.queue import CONFIGURATION, TASK, Bell, make_app, ring


def test_the_application_is_configured_for_bells_that_may_be_lost():
    conf = make_app("redis://127.0.0.1:1/0").conf
    assert conf.task_acks_late is False
    assert conf.task_ignore_result is True
    assert conf.result_backend is None
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_enable_remote_control is False
    assert conf.worker_send_task_events is False
    assert conf.task_serializer == "json"
    assert conf.accept_content == ["json"]
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.broker_connection_max_retries is None
    assert conf.worker_max_tasks_per_child is None
    assert conf.broker_transport_options == {"socket_keepalive": True, "health_check_interval": 30, "retry_on_timeout": True, "socket_timeout": 5}
    assert "visibility_timeout" not in CONFIGURATION["broker_transport_options"]


@pytest.fixture
def mute_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_broker_that_accepts_and_never_answers_costs_about_a_second(mute_server):
    began = time.monotonic()
    assert Bell(f"redis://127.0.0.1:{mute_server}/0").ring(uuid.uuid4(), "cpu") is False
    assert time.monotonic() - began < 10  # a bound against hanging, not a measurement: the machine may be busy


def test_a_broker_that_is_away_fails_quietly_and_no_broker_rings_nothing():
    assert ring(uuid.uuid4(), "cpu", url="redis://127.0.0.1:1/0") is False
    assert ring(uuid.uuid4(), "cpu", url="") is False


def test_a_bell_is_one_json_message_with_the_id_of_the_job(redis_server):
    import json

    import redis

    job = uuid.uuid4()
    bell = Bell(redis_server.url)
    assert bell.ring(job, "cpu") is True
    bell.close()
    client = redis.Redis.from_url(redis_server.url)
    message = json.loads(client.lpop("cpu"))
    assert message["headers"]["task"] == TASK
    assert message["content-type"] == "application/json"
    assert str(job) in message["headers"]["argsrepr"]
