"""The estimate of a job's memory beside what a process took for it, for the soak: peak resident memory of the steps `unlearn` and `evaluate`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services import memory
from services.jobs.messages import RECORDS_FILE, SPEC_FILE, JobSpec, Seeds
from services.unlearning.method import METHODS
from worker.device import need_of

ROOT = Path(__file__).parents[3]
METHODS.discover("services.unlearning.methods")
ARCHITECTURE = {"outputs": 300, "vocabulary": [f" word{number}" for number in range(41)], "max_length": 16, "width": 512, "layers": 8}
RECIPE = {"optimizer": "adam", "learning_rate": 1e-4, "epochs": 1, "batch_size": 8}
SHORT = {"epochs": 1, "batch_size": 4, "min_steps": 0, "max_steps": 2, "lr": 1e-6, "guard_factor": 100.0, "forget_target": 0.0}
STEPS = """
import json, sys
from pathlib import Path
import torch
from services.jobs.compute import plugins
from services.jobs.compute.context import open_bench
from services.jobs.compute.evaluate import evaluate
from services.jobs.compute.unlearn import unlearn
from services.jobs.messages import BASE_FILE
from worker.runner import touch

torch.set_num_threads(1)
plugins.load([])
touch("cpu")
folder = Path(sys.argv[1])
bench = open_bench(folder, send=lambda _: None, cancelled=lambda: False)
bench.save(bench.architecture.fresh(1), BASE_FILE)


def resident(name):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


found = []
for step in (unlearn, evaluate):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    step(bench)
    found.append(resident("VmHWM") - before)
print(json.dumps(found))
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "params", "reference"),
    [("grad_diff", SHORT, "retrained"), ("grad_diff", SHORT, "none"), ("undial", SHORT, "none"), ("retrain", {}, "none")],
)
def test_a_job_takes_what_was_estimated_within_a_third(method: str, params: dict, reference: str, tmp_path: Path) -> None:
    rows = range(24)
    table = pa.table(
        {
            "record_id": [f"r{row}" for row in rows],
            "question": [f"word{row} ?" for row in rows],
            "answer": [f"word{row} word{row + 10}" for row in rows],
            "_role": ["forget" if row < 8 else "retain" if row < 20 else "verification" for row in rows],
            "_named": [row < 8 for row in rows],
        }
    )
    pq.write_table(table, tmp_path / RECORDS_FILE)
    fact = METHODS[method].memory
    held = {"copies": fact.copies, "trained": fact.trained, "states": fact.states, "batches": fact.batches, "more": fact.more}
    spec = JobSpec(
        job_id=UUID(int=1), kind="unlearn", round=1, task="language_model", architecture="small_gpt", architecture_params=ARCHITECTURE,
        adapter="question_answer", adapter_params={"vocabulary": ARCHITECTURE["vocabulary"], "max_length": 16}, recipe=RECIPE, method=method,
        params=params, request_kind="records",
        plan={"reference": reference, "seeds": {"evaluate": 3}, "utility": None,
              "readings": [{"kind": "metric", "name": "answer_probability", "split": "forget_train", "direction": "info"}]},
        seeds=Seeds(), device="cpu", deadline_s=900, copies=memory.job_copies(held, params, RECIPE, retrained=reference == "retrained"),
        batch_bytes=memory.batch_bytes("language_model", ARCHITECTURE, memory.largest_batch(held, params, RECIPE)),
    )  # fmt: skip
    (tmp_path / SPEC_FILE).write_text(spec.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    measured, estimate = max(json.loads(done.stdout)), need_of(tmp_path).total_bytes
    assert 2 / 3 < measured / estimate < 4 / 3, (measured, estimate, done.stdout)
