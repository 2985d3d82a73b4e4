"""Kill -9 of each process and server at each step of a job: the request still completes, with exactly one published version.

The moment of a step is told by a trigger of this test on the job table (LISTEN and NOTIFY), so that the kill follows the step's commit at once.
"""

import itertools
import os
import random
import signal
import threading
import time
import uuid

import psutil
import psycopg
import pytest

from cli.client import Client
from cli.embedded.stack import DATABASE, Stack

VICTIMS = ("runner", "worker", "gateway", "postgres", "redis")
STEPS = ("materialize", "plan", "unlearn", "evaluate", "verify", "publish")
SCENARIOS = list(itertools.product(VICTIMS, STEPS))
SEED = int(os.environ.get("LETHE_FAULT_SEED", "20261121"))
SAMPLED = 1
TIMEOUT_S = 150

TRIGGER = """
CREATE OR REPLACE FUNCTION tell_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('steps', NEW.id::text || ' ' || NEW.kind || ' ' || NEW.step); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER tell_step AFTER UPDATE ON job FOR EACH ROW
WHEN (NEW.step IS NOT NULL AND NEW.step IS DISTINCT FROM OLD.step) EXECUTE FUNCTION tell_step();
"""


class Killer(threading.Thread):
    """Waits until an unlearning job enters `step`, then kills `victim`; a step that is never entered is no kill."""

    def __init__(self, stack: Stack, victim: str, step: str) -> None:
        super().__init__(daemon=True)
        self.stack, self.victim, self.step = stack, victim, step
        self.listening = threading.Event()
        self.killed = threading.Event()
        self.victims: list[int] = []

    def run(self) -> None:
        url = self.stack.postgres.url("postgres", self.stack.secrets["superuser"], DATABASE)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TRIGGER)
            connection.execute("LISTEN steps")
            self.listening.set()
            for note in connection.notifies(timeout=TIMEOUT_S):
                _, kind, step = note.payload.split(" ")
                if kind == "unlearn" and step == self.step:
                    break
            else:
                return
        self.kill()
        self.killed.set()

    def kill(self) -> None:
        if self.victim == "runner":
            for runner in runners(self.stack):
                runner.kill()
                self.victims.append(runner.pid)
        elif self.victim in {"worker", "gateway"}:
            self.victims.append(self.stack.children[self.victim].pid)
            os.kill(self.victims[0], signal.SIGKILL)
        else:
            server = self.stack.postgres if self.victim == "postgres" else self.stack.redis
            assert server.child is not None
            self.victims.append(server.child.pid)
            server.kill()


def start_again(stack: Stack, victim: str) -> None:
    """Start what was killed. A child dies with the thread that spawned it, so this is for the test's main thread."""
    if victim in {"worker", "gateway"}:
        stack.children[victim].process.wait(10)
        stack.start_process(victim)
    elif victim == "postgres":
        stack.postgres.start()
    elif victim == "redis":
        stack.redis.start()


def runners(stack: Stack) -> list[psutil.Process]:
    """Every runner below the worker: the busy one and its warm successor."""
    family = psutil.Process(stack.children["worker"].pid).children(recursive=True)
    return [process for process in family if "worker.runner" in " ".join(process.cmdline())]


def trained_model(client: Client, dataset: str) -> str:
    """Register a small model under a new name and train version 1."""
    name = f"m-{uuid.uuid4().hex[:8]}"
    parameters = {"channels": 1, "width": 8, "outputs": 10}
    client.post("/models", {"name": name, "task": "classification", "architecture": "tiny_cnn", "architecture_params": parameters})
    recipe = {"epochs": 20, "batch_size": 128, "learning_rate": 0.003}  # converged: a barely trained one loses to a retrained one by chance
    job = client.post(f"/models/{name}/training-runs", {"dataset": dataset, "dataset_version": 1, "recipe": recipe, "seed": 1})
    patient(client, f"/jobs/{job['id']}", lambda document: document["done"])
    return name


def patient(client: Client, path: str, done) -> dict:
    """Wait as a client does that retries when the service is away for a moment."""
    import httpx2

    from cli.client import Refused

    deadline = time.monotonic() + TIMEOUT_S
    last: object = None
    while time.monotonic() < deadline:
        try:
            document = client.get(path)
            last = document
            if done(document):
                return document
        except httpx2.TransportError as error:
            last = error
        except Refused as error:
            if error.status != 503:
                raise
            last = error
        time.sleep(0.2)
    raise AssertionError(f"{path} was not done in {TIMEOUT_S} s: {last}")


def check_scenario(stack: Stack, client: Client, dataset: str, victim: str, step: str) -> None:
    model = trained_model(client, dataset)
    killer = Killer(stack, victim, step)
    killer.start()
    assert killer.listening.wait(20)
    scope = {"kind": "class_labels", "dataset": dataset, "labels": [str(random.Random(f"{victim}{step}").randrange(10))]}
    body = {"policy": "demo", "scope": scope, "method": "retrain", "models": [model], "note": "one model a scenario"}
    request = client.post("/deletion-requests", body)["id"]

    assert killer.killed.wait(TIMEOUT_S), f"the job never reached step {step}"
    assert killer.victims, f"no {victim} lived at step {step}: nothing was killed"
    start_again(stack, victim)
    finished = patient(client, f"/deletion-requests/{request}", lambda document: document["done"])

    assert finished["status"] == "completed", finished
    versions = client.get(f"/models/{model}/versions")["items"]
    assert sorted((version["number"], version["status"]) for version in versions) == [(1, "quarantined"), (2, "ready")]
    assert [version["version"] for version in finished["result"]["versions"]] == [2]
    unlearned = [job for job in client.get("/jobs", request=request)["items"] if job["kind"] == "unlearn"]
    assert [job["state"] for job in unlearned] == ["succeeded"]


def sampled() -> list[tuple[str, str]]:
    """The scenarios of the short form; the seed is in the test's id, LETHE_FAULT_SEED sets another."""
    return random.Random(SEED).sample(SCENARIOS, SAMPLED)


@pytest.mark.xdist_group("stack")
@pytest.mark.parametrize(("victim", "step"), sampled(), ids=lambda value: f"{value}-seed{SEED}")
def test_a_request_survives_a_kill(stack: Stack, client: Client, digits: str, victim: str, step: str):
    check_scenario(stack, client, digits, victim, step)


@pytest.mark.soak
@pytest.mark.parametrize(("victim", "step"), SCENARIOS)
def test_a_request_survives_every_kill_at_every_step(stack: Stack, client: Client, digits: str, victim: str, step: str):
    check_scenario(stack, client, digits, victim, step)
