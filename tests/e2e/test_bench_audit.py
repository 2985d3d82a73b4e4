"""The audit of a method: a short run, its lines and its refusals."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.audit import BEFORE

pytestmark = pytest.mark.soak


def test_a_run_leaves_a_line_for_each_attack_and_method_and_shows_that_it_could_see_something(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    options = ["--data", "noisy_digits", "--shadows", "8", "--targets", "60", "--canaries", "60", "--epochs", "40", "--json", str(file)]

    assert main(["audit", "--method", "retrain,ssd", *options]) == 0

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["attack"], row["method"]) for row in rows] == [(one, name) for one in ("u_lira", "one_run") for name in (BEFORE, "retrain", "ssd")]
    by = {(row["attack"], row["method"]): row for row in rows}
    assert by["u_lira", BEFORE]["low"] > 0.6
    assert by["u_lira", "retrain"]["low"] < 0.55
    assert by["u_lira", BEFORE]["tpr_at_fpr"] == {"0.01": None, "0.001": None}
    assert by["one_run", BEFORE]["eps_lo"] > by["one_run", "retrain"]["eps_lo"] == 0
    assert by["one_run", "retrain"]["guesses"] == 30


@pytest.mark.parametrize("options", [["--shadows", "7"], ["--canaries", "11"], ["--targets", "700"]])
def test_an_audit_that_could_show_nothing_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--method", "retrain", *options]) == 2
    assert "at least 8 shadows and 12 canaries" in capsys.readouterr().err


def test_a_method_that_forgets_no_records_is_refused_with_those_that_do() -> None:
    with pytest.raises(SystemExit, match=r"these can: .*retrain"):
        main(["audit", "--method", "unsir"])
