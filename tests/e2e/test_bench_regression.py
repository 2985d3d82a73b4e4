"""The benches for real-valued targets: their sets and lines, and a plain refusal where the data is missing."""

import json
from pathlib import Path

import pytest
import torch

from bench import real_sets, regression, sets
from bench.__main__ import main

KEYS = {"bench", "data", "kind", "method", "seed", "before", "after", "retrained", "method_seconds", "retrain_seconds", "verdict", "parameters"}


@pytest.mark.soak
def test_a_quick_run_leaves_lines_with_the_numbers_of_all_three_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(regression, "AIN", {"seeds": 3, "steps": 5, "judged_rows": 50})
    lines = tmp_path / "rows.jsonl"
    options = ["--data", "digit_angle", "--quick", "--methods", "fine_tune", "--cache", str(tmp_path / "cache"), "--json", str(lines)]

    assert main(["regression", *options]) == 0

    (row,) = (json.loads(line) for line in lines.read_text().splitlines())
    assert set(row) >= KEYS
    assert (row["bench"], row["data"], row["kind"], row["method"]) == ("regression", "digit_angle", "range", "fine_tune")
    for column in ("before", "after", "retrained"):
        assert set(row[column]) == set(regression.PRINTED)
    assert row["before"]["forget_error"] < row["retrained"]["forget_error"]
    assert json.loads(capsys.readouterr().out.splitlines()[0])["verdict"] == row["verdict"]


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sets, "DATA_DIR", tmp_path)

    assert main(["forecasting", "--quick"]) == 1
    assert "bike_sharing_hourly.csv is not in" in "".join(capsys.readouterr().err.split("\n"))


def test_a_set_is_cut_by_range_and_by_random_records():
    real = real_sets.load("digit_angle", quick=True)
    ranged, random = (regression.cut(real, kind, 1) for kind in ("range", "subset"))

    assert float(ranged.forget.y.max()) < 15 <= float(ranged.retain.y.min())
    assert len(random.forget) == round(0.05 * len(real.bench.train))
    assert not set(random.forget.ids) & set(random.retain.ids)
    assert random.span is None
    with pytest.raises(ValueError, match="range"):
        regression.cut(real, "month", 1)
    assert torch.isfinite(real.bench.train.y).all()
