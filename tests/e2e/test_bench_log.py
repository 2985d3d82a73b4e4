"""The bench of the audit log at its smallest: each number beside its goal, made by the service's own code."""

import json
from pathlib import Path

import pytest

from bench import log


@pytest.mark.soak
def test_each_number_of_the_log_is_told_beside_its_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(log, "DELAY_S", 1.0)
    monkeypatch.setattr(log, "TURNS", 1)
    lines = tmp_path / "log.jsonl"

    code = log.main(["--leaves", "3000", "--json", str(lines)])

    rows = {row["bench"]: row for row in map(json.loads, lines.read_text().splitlines())}
    assert code == 0
    assert capsys.readouterr().out == lines.read_text()
    assert list(rows) == ["log.verify_s", "log.leaves_per_s", "log.inclusion_p99_ms", "log.merge_delay_p99_s", "log.create_cost"]
    assert rows["log.leaves_per_s"]["detail"]["leaves"] == 3000
    assert all(row["ratio"] > 0 and row["goal"] > 0 for row in rows.values())
