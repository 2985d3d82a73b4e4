"""The bench of what forgetting costs with its evidence, at its smallest."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.worth import GOAL

PARTS = ("method_seconds", "cached_references", "cached_readings")


def test_a_line_holds_method_and_evidence_beside_a_retraining_and_says_whether_the_goal_is_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lines.jsonl"

    assert main(["worth", "--data", "digits", "--records", "300", "--kinds", "subset", "--json", str(file)]) == 0

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    told = [row["detail"] for row in rows]
    assert [one["method"] for one in told] == ["bad_teacher", "amnesiac"]
    assert all(row["goal"] == GOAL == 0.25 and row["detail"]["reached"] == (row["ratio"] <= GOAL) for row in rows)
    assert all(row["ratio"] == pytest.approx(sum(row["detail"][part] for part in PARTS) / row["detail"]["retraining"], rel=0.05) for row in rows)
    assert told[0]["first_references"] == pytest.approx(2 * told[0]["retraining"], abs=0.002)
    assert told[0]["cached_references"] < told[0]["retraining"] / 2
    assert (told[1]["first_references"], told[1]["retraining"]) == (None, told[0]["retraining"])
    assert "`amnesiac`" in capsys.readouterr().err
