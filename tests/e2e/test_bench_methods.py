"""The methods bench as a user runs it: a table, JSON lines and plots, and a plain refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import methods, sets
from bench.__main__ import main
from bench.report import line, page
from services.errors import Diverged
from services.learning.run import Run
from services.learning.tasks.classification import Classification
from services.unlearning.method import METHODS

KEYS = {
    "bench", "data", "kind", "method", "seed", "forget_accuracy", "retain_accuracy", "retrained_forget_accuracy", "retrained_retain_accuracy",
    "mia_auc", "zrf", "ain", "method_seconds", "retrain_seconds", "verdict", "parameters",
}  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "methods", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.soak
def test_a_run_prints_a_table_and_leaves_lines_and_plots(tmp_path: Path):
    lines, plots, cache = tmp_path / "rows.jsonl", tmp_path / "plots", tmp_path / "cache"
    options = [
        "--data",
        "digits",
        "--records",
        "300",
        "--methods",
        "retrain",
        "--cache",
        str(cache),
        "--json",
        str(lines),
        "--plots",
        str(plots),
        "--threads",
        "1",
    ]

    first = run(*options)

    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == 1
    assert set(rows[0]) >= KEYS
    assert (rows[0]["method"], rows[0]["verdict"], rows[0]["forget_accuracy"]) == ("retrain", "passed", 0.0)
    assert sorted(path.name for path in plots.iterdir()) == ["retain-forget.svg", "time-quality.svg"]
    assert len(list(cache.glob("*.safetensors"))) == 3
    assert "retrain" in first.stderr
    table = page(rows)
    assert "**digits, class request, mlp, 300 records to train on, 150 held out, seeds 1, 1 thread**" in table
    assert "| `retrain` | 0.000 | 0.000 |" in table


def test_missing_data_is_named_with_the_folder_it_was_looked_for_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sets, "DATA_DIR", tmp_path)

    assert main(["methods", "--data", "mnist", "--threads", "1"]) == 1
    assert "mnist/train-images-idx3-ubyte.gz is not in" in "".join(capsys.readouterr().err.split("\n"))


def test_a_method_that_cannot_serve_the_request_is_refused_with_those_that_can(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        main(["methods", "--kind", "subset", "--methods", "unsir", "--threads", "1"])

    assert "cannot forget by subset here: unsir; these can:" in str(refused.value) + capfd.readouterr().err


READINGS = tuple(methods.numbers({}))


@pytest.fixture(scope="module")
def world() -> methods.World:
    """A class request on a few digits, for methods that end before any of its models is asked anything."""
    METHODS.discover("services.unlearning.methods")
    held = sets.load("digits", records=60)
    fresh, device = held.architecture.fresh(0), torch.device("cpu")
    run = methods.printing_run(held, 1, device)
    splits = methods.cut(held, "class", 1)
    return methods.World(
        held, "class", 1, Classification(held.classes), splits, fresh, fresh, fresh, methods.Took(2.5, 2.0), device, run, {}, Path("unused")
    )


def refused(world: methods.World) -> dict[str, object]:
    """The line of a method that has no convolution to turn."""
    return methods.measured(world, "ct", sets.Setting())


def test_a_refused_method_writes_null_for_every_reading_and_for_its_effective_parameters(world: methods.World):
    written = json.loads(json.dumps(refused(world)))

    assert set(written) >= KEYS
    assert {"forget_accuracy", "retrained_retain_accuracy", "mia_auc", "mia_interval", "zrf", "ain", "js_divergence", "probe_auc"} <= set(READINGS)
    assert [written[name] for name in READINGS] == [None] * len(READINGS)
    assert written["parameters"]["effective"] is None
    assert written["parameters"]["epochs"] == 3
    assert written["verdict"].startswith("failed: Method 'ct' cannot serve this request")


def test_a_method_that_diverges_writes_null_though_it_had_planned_its_run(world: methods.World, monkeypatch: pytest.MonkeyPatch):
    def diverge(_world: object, _method: object, run: Run) -> None:
        run.note("effective", {"epochs": 3})
        raise Diverged(method="ct", stage="fine_tune", detail="too far")

    monkeypatch.setattr(methods, "unlearned", diverge)

    written = refused(world)

    assert {written[name] for name in READINGS} == {None}
    assert written["parameters"]["effective"] is None
    assert "too far" in written["verdict"]


def test_both_tables_show_a_refused_method_as_dashes_beside_what_retraining_took(world: methods.World):
    row = refused(world)

    assert line("ct", [row]) == "| `ct` |" + " - |" * 9 + " - | 2.00 | - | 1 of 1 ended without a model |"
    assert "- `ct`: Method 'ct' cannot serve this request" in page([row])
    cells = next(printed.split("│")[1:-1] for printed in drawn([row]).splitlines() if "│ ct " in printed)
    assert [cell.strip() for cell in cells[:10]] == ["ct", *["-"] * 9]
    assert cells[11].strip() == "2.50"


def seeds(**readings: tuple[float, float, float]) -> list[dict[str, object]]:
    """Three lines of one method, a seed each."""
    shared = {
        "data": "digits", "kind": "class", "method": "amnesiac", "variant": "", "architecture": "mlp", "records": 60, "held_out": 30, "threads": 1,
        "method_seconds": 0.5, "method_cpu_seconds": 0.5, "retrain_seconds": 3.0, "retrain_cpu_seconds": 2.0, "verdict": "passed",
    }  # fmt: skip
    intervals = ([0.4, 0.6], [0.45, 0.7], [0.35, 0.5])
    return [
        {**shared, "seed": seed, "mia_interval": intervals[seed], **{name: values[seed] for name, values in readings.items()}} for seed in range(3)
    ]


def test_the_spread_over_seeds_and_the_attacks_bounds_are_in_the_table_of_the_documentation():
    rows = seeds(forget_accuracy=(0.132, 0.0, 0.39), retain_accuracy=(0.9, 0.96, 0.93), mia_auc=(0.5, 0.58, 0.42))

    written = line("amnesiac", rows)

    assert written == (
        "| `amnesiac` | 0.174 [0.000, 0.390] | - | - | 0.930 [0.900, 0.960] | - | - | 0.500 [0.350, 0.700] | - | - | 0.50 | 2.00 | 4.0 | 3 of 3 passed |"
    )
    head = page(rows).splitlines()
    assert "In brackets the least and the greatest of the seeds" in head[0]
    assert head[2].count("|") == head[3].count("|") == written.count("|")
    assert "| MIA v2 |" in head[2]
    assert "| retrain CPU s |" in head[2]


def test_the_printed_table_shows_the_attacks_bounds_and_what_retraining_took():
    shown = drawn(seeds(forget_accuracy=(0.1, 0.0, 0.2), mia_auc=(0.5, 0.58, 0.42)))

    assert "retrain s" in shown
    assert "[0.350, 0.700]" in shown
    assert "3.00" in shown


def drawn(rows: list[dict[str, object]]) -> str:
    """What the console shows of the rows."""
    console = Console(width=300)
    with console.capture() as held:
        console.print(methods.table_of(rows, "title"))
    return held.get()
