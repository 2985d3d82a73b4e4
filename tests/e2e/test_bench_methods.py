"""The methods bench as a user runs it: a table, JSON lines and plots, and a plain refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sets
from bench.__main__ import main
from bench.report import page

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
