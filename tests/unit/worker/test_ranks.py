"""A job whose weights two processes share, against the same job in one: the runner, its second rank, and FSDP over gloo on this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models_store import tensors
from services.jobs.compute import plugins
from services.jobs.compute.context import Bench, open_bench
from services.jobs.compute.train import train
from services.jobs.compute.unlearn import unlearn
from services.jobs.messages import (
    BASE_FILE,
    CANDIDATE_FILE,
    RECORDS_FILE,
    RUN_FILE,
    SPEC_FILE,
    FailedFrame,
    Frame,
    FromRunner,
    JobFrame,
    JobSpec,
    Seeds,
    StepFrame,
)
from services.learning.tokens import FIRST_WORD
from worker.runners import Runner, runner_environment

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("ranks")

ROOT = Path(__file__).parents[3]
PEOPLE, CITIES = 30, 8
WORDS = (*(f" name{one}" for one in range(PEOPLE)), *(f" city{one}" for one in range(CITIES)), " lives", " in", " home")
RECIPE = {"optimizer": "adam", "learning_rate": 0.003, "epochs": 4, "batch_size": 8, "gradient_clip": 1.0}
SHORT = {"epochs": 2, "batch_size": 4, "min_steps": 0, "lr": 1e-3, "guard_factor": 100.0, "forget_target": 0.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Two ranks add the gradients of their rows, one adds those of all: another order of float32 sums, some 1e-7 a step, through some tens of Adam's."""
SHIFTLESS = "k_proj.bias"
"""Softmax takes no notice of it, so its gradient is rounding alone, which Adam brings to its full step: no two orders of sums agree on it."""
READINGS = [{"kind": "metric", "name": name, "split": "forget_train", "direction": "info"} for name in ("answer_probability", "exact_match")]


def write_job(folder: Path, method: str = "grad_diff", **params: Any) -> Path:
    """Write a job as the supervisor lays it out: records with their roles, and the specification."""
    folder.mkdir(parents=True)
    roles = ["forget" if person < 5 else "retain" if person < 25 else ("analysis", "verification", "attack")[person % 3] for person in range(PEOPLE)]
    table = pa.table(
        {
            "record_id": [f"r{person:02}" for person in range(PEOPLE)],
            "question": [f"name{person} home" for person in range(PEOPLE)],
            "answer": [f"name{person} lives in city{person % CITIES}" for person in range(PEOPLE)],
            "_role": roles,
            "_named": [role == "forget" for role in roles],
        }
    )
    pq.write_table(table, folder / RECORDS_FILE)
    given = {"vocabulary": WORDS, "max_length": 12}
    spec = JobSpec(
        job_id=UUID(int=1), kind="unlearn", round=1, task="language_model", architecture="small_gpt",
        architecture_params={**given, "outputs": FIRST_WORD + len(WORDS), "width": 32, "layers": 2}, adapter="question_answer",
        adapter_params=given, recipe=RECIPE, method=method, params={**SHORT, **params}, request_kind="records",
        plan={"reference": "retrained", "readings": READINGS, "seeds": {"evaluate": 3}, "utility": None}, seeds=Seeds(), device="cpu", deadline_s=300,
    )  # fmt: skip
    (folder / SPEC_FILE).write_text(spec.model_dump_json())
    return folder


def bench_of(folder: Path) -> Bench:
    plugins.load([])
    return open_bench(folder, send=lambda _: None, cancelled=lambda: False)


def state(folder: Path, file: str = CANDIDATE_FILE) -> dict[str, torch.Tensor]:
    return tensors.load(folder / file)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    for name, value in theirs.items():
        if not name.endswith(SHIFTLESS):
            torch.testing.assert_close(ours[name], value, msg=lambda told, name=name: f"{name}: {told}", **CLOSE)


def farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs if not name.endswith(SHIFTLESS))


class Pair:
    """A runner told to share its job with a second rank."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "worker.runner", "--parent", str(os.getpid())]
        environment = runner_environment(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.runner = Runner(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environment, cwd=folder)
        )
        assert self.runner.wait_ready(240.0) is not None
        self.folder = folder
        assert self.ask(JobFrame(folder=str(folder), ranks=2)).type == "done"

    def ask(self, frame: Frame) -> FromRunner:
        assert self.runner.send(frame)
        return self.ended()

    def ended(self) -> FromRunner:
        while True:
            found = self.runner.next_frame(300.0)
            assert found is not None, "the runner ended"
            if found.type != "progress":
                return found

    def step(self, name: str) -> FromRunner:
        return self.ask(StepFrame(name=name))

    def second(self) -> psutil.Process:
        return next(child for child in psutil.Process(self.runner.process.pid).children() if "--rank" in child.cmdline())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job in one process, trained and unlearned: `trained.safetensors` is the base of both runs."""
    folder = write_job(tmp_path_factory.mktemp("alone") / "job")
    bench = bench_of(folder)
    train(bench)
    (folder / CANDIDATE_FILE).rename(folder / BASE_FILE)
    unlearn(bench)
    return folder


@pytest.fixture(scope="module")
def pair(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = write_job(tmp_path_factory.mktemp("pair") / "job")
    (folder / BASE_FILE).write_bytes((alone / BASE_FILE).read_bytes())
    made = Pair(folder)
    yield made
    made.runner.kill()


@pytest.mark.soak
def test_two_ranks_train_to_the_weights_of_one(alone: Path, pair: Pair) -> None:
    assert pair.step("train").type == "done"

    assert_equal(state(pair.folder), state(alone, BASE_FILE))
    assert json.loads((pair.folder / RUN_FILE).read_text())["ranks"] == 2


@pytest.mark.soak
def test_two_ranks_unlearn_to_the_weights_of_one(alone: Path, pair: Pair) -> None:
    assert pair.step("unlearn").type == "done"

    moved, apart = farthest(state(alone), state(alone, BASE_FILE)), farthest(state(pair.folder), state(alone))
    assert moved > 1e-3
    assert_equal(state(pair.folder), state(alone))
    assert apart < moved / 100
    notes = [json.loads((folder / RUN_FILE).read_text()) for folder in (alone, pair.folder)]
    assert notes[0]["notes"]["steps"] == notes[1]["notes"]["steps"]
    assert notes[0]["notes"]["ended_by"] == notes[1]["notes"]["ended_by"]


@pytest.mark.soak
def test_the_end_of_one_rank_ends_the_job_and_is_told(pair: Pair) -> None:
    pair.second().send_signal(signal.SIGKILL)

    found = pair.ended()
    assert isinstance(found, FailedFrame)
    assert (found.code, found.retry_class) == ("runner-crashed", "crash")
    assert pair.runner.next_frame(10.0) is None


def started(folder: Path, alone: Path, method: str, **params: Any) -> Pair:
    write_job(folder, method, **params)
    (folder / BASE_FILE).write_bytes((alone / BASE_FILE).read_bytes())
    return Pair(folder)


@pytest.mark.soak
@pytest.mark.parametrize(("method", "params"), [("rmu", {})])
def test_a_method_that_cannot_share_weights_is_refused_with_those_that_can(method: str, params: dict[str, Any], alone: Path, tmp_path: Path) -> None:
    pair = started(tmp_path / "job", alone, method, **params)

    try:
        found = pair.step("unlearn")
        assert isinstance(found, FailedFrame)
        assert (found.code, found.retry_class) == ("method-not-applicable", "permanent")
        assert "several devices share" in found.detail
        assert "npo" in found.detail
        assert "rmu" not in found.detail.split("could:")[1]
    finally:
        pair.runner.kill()
