"""The audit of a method: a short run, its lines and its refusals."""

import json
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.audit import ATTACKS, BEFORE

pytestmark = pytest.mark.soak


def test_a_run_leaves_a_line_for_each_attack_and_method_and_shows_that_it_could_see_something(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    options = [
        "--data",
        "noisy_digits",
        "--shadows",
        "8",
        "--targets",
        "60",
        "--canaries",
        "60",
        "--epochs",
        "40",
        "--models",
        "8",
        "--json",
        str(file),
    ]

    assert main(["audit", "--method", "retrain,ssd", *options]) == 0

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["attack"], row["method"]) for row in rows] == [(one, name) for one in ATTACKS for name in (BEFORE, "retrain", "ssd")]
    by = {(row["attack"], row["method"]): row for row in rows}
    assert by["u_lira", BEFORE]["low"] > 0.6
    assert by["u_lira", "retrain"]["low"] < 0.55
    assert by["u_lira", BEFORE]["tpr_at_fpr"] == {"0.01": None, "0.001": None}
    assert by["one_run", BEFORE]["eps_lo"] > by["one_run", "retrain"]["eps_lo"] == 0
    assert by["one_run", "retrain"]["guesses"] == 30
    assert {by["klom", name]["reason"] for name in (BEFORE, "retrain", "ssd")} == {"too_few_models"}
    assert by["neurips_f", BEFORE]["f"]["p"] < 0.05 < by["neurips_f", "retrain"]["f"]["p"]
    assert by["neurips_f", "retrain"]["f"]["null"] == by["neurips_f", BEFORE]["f"]["null"] < 0.5


def test_many_models_tell_those_before_erasure_from_retrained_ones_on_forgotten_records_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lines.jsonl"
    options = ["--data", "noisy_digits", "--models", "20", "--targets", "120", "--attack", "klom", "--json", str(file)]

    assert main(["audit", "--method", "retrain", *options]) == 0

    before, retrain = (json.loads(line)["p95"] for line in file.read_text().splitlines())
    assert before["forget"]["p"] == 1 / 200
    assert before["forget"]["value"] > before["forget"]["null"]
    assert {part: found["p"] > 0.01 for part, found in retrain.items()} == {"forget": True, "retain": True, "test": True}
    assert [found["null"] for found in before.values()] == [found["null"] for found in retrain.values()]
    assert "KLoM forgotten" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--shadows", "7"], ["--canaries", "11"], ["--targets", "700"]])
def test_an_audit_that_could_show_nothing_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--method", "retrain", *options]) == 2
    assert "at least 8 shadows and 12 canaries" in capsys.readouterr().err


def test_a_method_that_forgets_no_records_is_refused_with_those_that_do() -> None:
    with pytest.raises(SystemExit, match=r"these can: .*retrain"):
        main(["audit", "--method", "unsir"])


def test_an_attack_that_there_is_not_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "--attack", "klom,tea_leaves"])
    assert "no such attack: tea_leaves; there are u_lira" in capsys.readouterr().err
